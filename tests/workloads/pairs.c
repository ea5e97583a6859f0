// Allocates and frees at once, for so many seconds from so many threads, at this depth of the stack, either as fast as it
// can or so many thousand pairs a second and thread: says "ready", waits for a line, works, and says how many pairs a
// second there were in all.
//   pairs SECONDS THREADS DEPTH [THOUSAND_PER_SECOND]
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NOINLINE __attribute__((noinline, noclone))
#define KEEP __asm__ volatile("" ::: "memory")
enum { BATCH = 100 };

static double seconds, pace;
static int depth;
static atomic_long pairs;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

NOINLINE void allocate(void) {
    for (int i = 0; i < BATCH; i++) {
        void *volatile object = malloc(64);
        free(object);
    }
    KEEP;
}

NOINLINE void descend(int left) {
    volatile char frame[24];
    frame[0] = left;
    if (left > 0) {
        descend(left - 1);
    } else {
        double start = now();
        long done = 0;
        for (double passed = 0; passed < seconds; passed = now() - start) {
            if (pace > 0 && done > pace * passed) {
                struct timespec rest = {0, 200000};
                nanosleep(&rest, NULL);
                continue;
            }
            allocate();
            done += BATCH;
        }
        pairs += done;
    }
    KEEP;
}

static void *work(void *unused) {
    descend(depth);
    return unused;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    seconds = atof(argv[1]);
    int count = atoi(argv[2]);
    depth = atoi(argv[3]);
    pace = argc > 4 ? atof(argv[4]) * 1000 : 0;
    pthread_t threads[64];
    char line[16];
    puts("ready");
    fflush(stdout);
    if (count > 64 || !fgets(line, sizeof line, stdin)) return 1;
    for (int i = 0; i < count; i++) pthread_create(&threads[i], NULL, work, NULL);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    printf("%.0f\n", pairs / seconds);
}
