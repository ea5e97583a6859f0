// A just-in-time compiler: code without a file, whose names are up to whoever runs it.
//   jit regions      runs functions in two regions of memory, far from each other, 2 : 1; prints where they are
//   jit reuse        gives the same memory to three functions in turn, 4 : 2 : 1, and writes each into a perf map
// Each runs for a second and more of CPU time after a line is read, and prints a line before.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

// With a frame pointer, a loop of some milliseconds.
#if defined(__x86_64__)
static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xb9, 0xc0, 0xc6, 0x2d, 0, 0xff, 0xc9, 0x75, 0xfc, 0x5d, 0xc3};
#elif defined(__aarch64__)
static const uint32_t code[] = {
    0xa9bf7bfd, // stp x29, x30, [sp, #-16]!
    0x910003fd, // mov x29, sp
    0x52b005a0, // mov w0, #0x2d << 16 (about 3 million)
    0x71000400, // subs w0, w0, #1
    0x54ffffe1, // b.ne -4
    0xa8c17bfd, // ldp x29, x30, [sp], #16
    0xd65f03c0, // ret
};
#endif

static uint64_t cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static unsigned char *region(unsigned char *at) {
    if (mprotect(at, 65536, PROT_READ | PROT_WRITE | PROT_EXEC)) exit(1);
    return at;
}

static void compile(unsigned char *at) {
    memcpy(at, code, sizeof code);
    __builtin___clear_cache((char *)at, (char *)at + sizeof code);
}

static void run(unsigned char *at, uint64_t ns) {
    for (uint64_t end = cpu_ns() + ns; cpu_ns() < end;) ((void (*)(void))at)();
}

static void wait_for_line(void) {
    fflush(stdout);
    for (int c = 0; c != '\n' && c != EOF;) c = getchar();
}

int main(int argc, char **argv) {
    unsigned char *all = mmap(0, 64 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (argc > 1 && !strcmp(argv[1], "regions")) {
        unsigned char *first = region(all), *second = region(all + (48 << 20));
        for (int i = 0; i < 8; i++) compile(first + 64 * i), compile(second + 64 * i);
        printf("%lx %lx\n", (unsigned long)first, (unsigned long)second);
        wait_for_line();
        for (int i = 0; i < 80; i++) run(first + 64 * (i % 8), 10000000), run(second + 64 * (i % 8), 5000000);
        return 0;
    }
    static const char *names[] = {"first_tenant", "second_tenant", "third_tenant"};
    unsigned char *jit = region(all);
    compile(jit);
    char path[64];
    sprintf(path, "/tmp/perf-%d.map", getpid());
    puts(path);
    wait_for_line();
    FILE *map = fopen(path, "w");
    for (int i = 0; i < 3; i++) {
        fprintf(map, "%lx 100 %s\n", (unsigned long)jit, names[i]);
        fflush(map);
        run(jit, 600000000ull << (2 - i));
    }
    unlink(path);
    return 0;
}
