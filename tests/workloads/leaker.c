// Says "ready", waits for a line, then for so many seconds each of so many threads frees all that it allocates, as fast as
// it can, and keeps one object of 1 KiB a millisecond (not with zero seconds: then it does nothing). Says what it kept
// ("leak_here BYTES OBJECTS"), "done", and waits for the end of its input.
// With a third argument it does what there is to do in so many milliseconds at once, and sleeps in between.
//   leaker THREADS SECONDS [BURST_MS]
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NOINLINE __attribute__((noinline, noclone))

static atomic_long kept;
static double seconds;
static int burst_ms;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

NOINLINE void leak_here(void) {
    char *object = malloc(1024);
    for (int i = 0; i < 1024; i += 64) ((volatile char *)object)[i] = 1;
    kept++;
    __asm__ volatile("" ::: "memory");
}

NOINLINE void churn_here(unsigned *seed) {
    void *volatile object = malloc((*seed = *seed * 1664525 + 1013904223) % 400 + 1);
    free(object);
    __asm__ volatile("" ::: "memory");
}

static void *work_in_bursts(unsigned seed) {
    double end = now() + seconds;
    while (now() < end) {
        for (int ms = 0; ms < burst_ms; ms++) {
            for (int i = 0; i < 50; i++) churn_here(&seed);
            leak_here();
        }
        struct timespec time = {burst_ms / 1000, burst_ms % 1000 * 1000000L};
        nanosleep(&time, NULL);
    }
    return NULL;
}

static void *work(void *number) {
    unsigned seed = (unsigned)(size_t)number;
    if (burst_ms > 0) return work_in_bursts(seed);
    double start = now(), next = start;
    for (double time = start; time < start + seconds; time = now()) {
        for (int i = 0; i < 20; i++) churn_here(&seed);
        if (time >= next) {
            leak_here();
            next += 0.001;
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int count = atoi(argv[1]);
    seconds = atof(argv[2]);
    burst_ms = argc > 3 ? atoi(argv[3]) : 0;
    pthread_t threads[64];
    char line[16];
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 1;
    for (long i = 0; i < count && seconds > 0; i++) pthread_create(&threads[i], NULL, work, (void *)(i + 1));
    for (long i = 0; i < count && seconds > 0; i++) pthread_join(threads[i], NULL);
    printf("leak_here %ld %ld\ndone\n", kept * 1024, (long)kept);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {}
}
