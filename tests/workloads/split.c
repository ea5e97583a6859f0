// Three functions that take 60, 30 and 10 % of the CPU time, in chunks of random length so that no sampling
// period can keep step with them. Usage: split SECONDS [THREADS]; with THREADS, thread N runs only function N%3.
// SECONDS are of CPU time, for each thread: a busy machine makes the run longer, not the samples fewer.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifndef SHARES
#define SHARES 0.6, 0.3, 0.1
#endif

static double seconds;

static uint64_t cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

// Spins until the thread has used `ns` more CPU time; the work is inside the caller's own loop.
#define SPIN(ns)                                                     \
    do {                                                             \
        uint64_t end = cpu_ns() + (ns);                              \
        volatile uint64_t x = 1;                                     \
        do {                                                         \
            for (int i = 0; i < 200000; i++) x = x * 2862933555777941757ull + 3037000493ull; \
        } while (cpu_ns() < end);                                    \
    } while (0)

__attribute__((noinline, noclone)) void work_sixty(uint64_t ns) { SPIN(ns); __asm__ volatile(""); }
__attribute__((noinline, noclone)) void work_thirty(uint64_t ns) { SPIN(ns); __asm__ volatile(""); }
__attribute__((noinline, noclone)) void work_ten(uint64_t ns) { SPIN(ns); __asm__ volatile(""); }

__attribute__((noinline, noclone)) void mixed(void) {
    unsigned seed = 1;
    uint64_t end = (uint64_t)(seconds * 1e9);
    // Totals are kept, so that the shares are exact whatever the chunks are.
    double spent[3] = {0, 0, 0}, share[3] = {SHARES};
    while (cpu_ns() < end) {
        int most_behind = 0;
        for (int i = 1; i < 3; i++)
            if (spent[i] / share[i] < spent[most_behind] / share[most_behind]) most_behind = i;
        uint64_t before = cpu_ns(), ns = 500000 + rand_r(&seed) % 6000000;
        if (most_behind == 0) work_sixty(ns);
        if (most_behind == 1) work_thirty(ns);
        if (most_behind == 2) work_ten(ns);
        spent[most_behind] += cpu_ns() - before;
    }
    double total = spent[0] + spent[1] + spent[2];
    printf("work_sixty %.2f work_thirty %.2f work_ten %.2f\n", 100 * spent[0] / total, 100 * spent[1] / total,
           100 * spent[2] / total);
    fflush(stdout);
    __asm__ volatile("");
}

__attribute__((noinline, noclone)) void *one(void *arg) {
    uint64_t end = (uint64_t)(seconds * 1e9);
    while (cpu_ns() < end) {
        if ((intptr_t)arg % 3 == 0) work_sixty(1000000);
        if ((intptr_t)arg % 3 == 1) work_thirty(1000000);
        if ((intptr_t)arg % 3 == 2) work_ten(1000000);
    }
    return 0;
}

int main(int argc, char **argv) {
    seconds = argc > 1 ? atof(argv[1]) : 1;
    int count = argc > 2 ? atoi(argv[2]) : 0;
    if (!count) {
        mixed();
        return 0;
    }
    pthread_t threads[count];
    for (intptr_t i = 0; i < count; i++) {
        char name[16];
        pthread_create(&threads[i], 0, one, (void *)i);
        snprintf(name, sizeof name, "worker-%d", (int)i);
        pthread_setname_np(threads[i], name);
    }
    for (int i = 0; i < count; i++) pthread_join(threads[i], 0);
    return 0;
}
