// Stacks that cross a border.
//   borders signals   handlers within handlers, on a stack above the thread's own: run, raises, first, second, hot
//   borders fiber     a fiber, whose first function nobody has called: entry, hot
//   borders compiled  code made at run time, with a frame pointer, called by what has other things to keep there: keeps_other
// Prints a line, and works until it is killed.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

volatile uint64_t sink;

__attribute__((noinline, noclone)) void hot(void) {
    uint64_t x = sink;
    for (int i = 0; i < 300000; i++) x = x * 6364136223846793005ull + 1;
    sink = x;
}

static void second(int number) {
    (void)number;
    hot();
    sink++;
}

static void first(int number) {
    (void)number;
    raise(SIGUSR2);
    sink++;
}

__attribute__((noinline, noclone)) void raises(void) {
    raise(SIGUSR1);
    sink++;
}

static void *run(void *alternate) {
    stack_t stack = {.ss_sp = alternate, .ss_size = 1 << 18};
    sigaltstack(&stack, 0);
    for (;;) {
        raises();
        sink++;
    }
}

static void signals(void) {
    struct sigaction a = {.sa_handler = first, .sa_flags = SA_ONSTACK}, b = {.sa_handler = second, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &a, 0);
    sigaction(SIGUSR2, &b, 0);
    char *all = mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, all, 1 << 20);
    pthread_t thread;
    pthread_create(&thread, &attributes, run, all + (2 << 20));
    pthread_join(thread, 0);
}

static ucontext_t home, fiber;

static void entry(void) {
    for (;;) {
        hot();
        swapcontext(&fiber, &home);
    }
}

static void fibers(void) {
    getcontext(&fiber);
    fiber.uc_stack.ss_sp = malloc(65536);
    fiber.uc_stack.ss_size = 65536;
    fiber.uc_link = &home;
    makecontext(&fiber, entry, 0);
    for (;;) swapcontext(&home, &fiber);
}

#if defined(__x86_64__)
// push %rbp; mov %rsp, %rbp; some milliseconds; pop %rbp; ret
static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xb9, 0xc0, 0xc6, 0x2d, 0, 0xff, 0xc9, 0x75, 0xfc, 0x5d, 0xc3};

__asm__(".text\n"
        ".type keeps_other, @function\n"
        "keeps_other: .cfi_startproc\n"
        "push %rbp\n"
        ".cfi_adjust_cfa_offset 8\n"
        ".cfi_offset %rbp, -16\n"
        "mov $5, %ebp\n"
        "call *%rdi\n"
        "pop %rbp\n"
        ".cfi_adjust_cfa_offset -8\n"
        ".cfi_restore %rbp\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size keeps_other, . - keeps_other\n");
void keeps_other(void (*called)(void));

static void compiled(void) {
    unsigned char *jit = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(jit, code, sizeof code);
    for (;;) keeps_other((void (*)(void))jit);
}
#else
static void compiled(void) {}
#endif

int main(int argc, char **argv) {
    puts("ready");
    fflush(stdout);
    if (argc > 1 && !strcmp(argv[1], "signals")) signals();
    if (argc > 1 && !strcmp(argv[1], "compiled")) compiled();
    fibers();
}
