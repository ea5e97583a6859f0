// Two threads that send a byte to and fro over two pipes, on CPU number CPU: every read is a context switch. Prints
// the round trips per second in the last SECONDS - 2 of SECONDS, then goes on until it is killed.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int there[2], back[2];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void *answer(void *nothing) {
    char byte;
    while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1) {}
    return nothing;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 5, start = now(), from = 0;
    if (argc > 2) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(atoi(argv[2]), &one);
        if (sched_setaffinity(0, sizeof one, &one)) return 1;
    }
    pthread_t other;
    if (pipe(there) || pipe(back) || pthread_create(&other, 0, answer, 0)) return 1;
    char byte = 'x';
    for (uint64_t rounds = 0;; rounds++) {
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) return 1;
        if (rounds % 256) continue;
        double t = now();
        if (!from && t >= start + 2) from = t, rounds = 0;
        if (from && t >= start + seconds) {
            printf("%.0f\n", rounds / (t - from));
            fflush(stdout);
            start = 1e18; // once
        }
    }
}
