// Work that is counted: prints how many rounds one thread made per second of wall time in the last SECONDS - 1 of
// SECONDS, then goes on until it is killed. A few calls deep, so that a stack has something to it.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static volatile uint64_t sink;

__attribute__((noinline, noclone)) uint64_t leaf(uint64_t x) {
    for (int i = 0; i < 2000; i++) x = x * 2862933555777941757ull + 3037000493ull;
    return x;
}

__attribute__((noinline, noclone)) uint64_t nest(int depth, uint64_t x) {
    uint64_t result = depth ? nest(depth - 1, x) + 1 : leaf(x);
    __asm__ volatile("" : "+r"(result));
    return result;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 5, start = now(), from = 0;
    uint64_t rounds = 0;
    for (;;) {
        for (int i = 0; i < 100; i++) sink = nest(10, sink);
        double t = now();
        if (!from) {
            if (t >= start + 1) from = t;
            continue;
        }
        rounds += 100;
        if (t >= start + seconds) {
            printf("%.0f\n", rounds / (t - from));
            fflush(stdout);
            start = 1e18; // once
        }
    }
}
