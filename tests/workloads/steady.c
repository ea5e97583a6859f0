// Goes on until it is told to end (SIGTERM), and notices when something has been done to it: allocates, writes, sleeps
// and computes, and checks what comes of it. Prints "ready" when it has begun. Ends with code 0 if all was well.
//
// steady             as above
// steady strict      allowed to read, write and end only (seccomp): computes
// steady threads N   with N threads beside, that sleep and wake
// steady stacks N    allocates at N places in its code, one after the other, and keeps the last 1,000 objects
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t over;
static void end(int signal) { (void)signal, over = 1; }

__attribute__((noinline)) uint64_t steady_work(void) {
    uint64_t x = 1;
    for (int i = 0; i < 200000; i++) x = x * 6364136223846793005u + 1442695040888963407u;
    __asm__ volatile("" : "+r"(x));
    return x;
}

static void *beside(void *unused) {
    while (!over) usleep(500000);
    return unused;
}

static void *kept[1000];
static unsigned turn;

// Each `path` is a stack of its own: its bits are the calls.
static void left(uint32_t path, int depth);
static void right(uint32_t path, int depth);
__attribute__((noinline)) static void leaf(void) {
    free(kept[turn % 1000]);
    kept[turn++ % 1000] = malloc(64);
    __asm__ volatile("" ::: "memory");
}
static void down(uint32_t path, int depth) {
    if (depth == 0) leaf();
    else if (path & 1) left(path >> 1, depth - 1);
    else right(path >> 1, depth - 1);
    __asm__ volatile("" ::: "memory");
}
__attribute__((noinline)) static void left(uint32_t path, int depth) { down(path, depth); __asm__ volatile("" ::: "memory"); }
__attribute__((noinline)) static void right(uint32_t path, int depth) { down(path, depth); __asm__ volatile("" ::: "memory"); }

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "";
    uint32_t count = argc > 2 ? strtoul(argv[2], 0, 0) : 0, path = 0;
    signal(SIGTERM, end);
    if (strcmp(kind, "threads") == 0) {
        pthread_attr_t small;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 64 << 10);
        pthread_t thread;
        for (uint32_t i = 0; i < count; i++)
            if (pthread_create(&thread, &small, beside, 0)) return 3;
    }
    int null = open("/dev/null", O_WRONLY);
    const uint64_t right_answer = steady_work();
    puts("ready");
    fflush(stdout);
    if (strcmp(kind, "strict") == 0) {
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
        while (!over)
            if (steady_work() != right_answer) syscall(SYS_exit, 1);
        syscall(SYS_exit, 0);
    }
    while (!over) {
        if (steady_work() != right_answer) return 1;
        if (strcmp(kind, "stacks") == 0) {
            for (int i = 0; i < 100; i++) down(path++ % count, 20);
            continue;
        }
        char *memory = malloc(1000);
        memset(memory, 7, 1000);
        if (write(null, memory, 1000) != 1000) return 2;
        for (int i = 0; i < 1000; i++)
            if (memory[i] != 7) return 4;
        free(memory);
        usleep(1000);
    }
    return 0;
}
