// Three threads that wait for each other's locks, one that waits for one of these, one that waits for a lock it holds itself,
// and two that take turns at a lock, which is none. Prints "ready" and the thread ids in that order when the first five are
// stuck, and ends when its input does.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t locks[5] = {
    PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER,
};
static pthread_barrier_t first_taken;
static _Atomic int tids[6];

__attribute__((noinline)) static void take_next(long i) {
    pthread_mutex_lock(&locks[(i + 1) % 3]);
    __asm__ volatile("");
}

__attribute__((noinline)) static void take_again(void) {
    pthread_mutex_lock(&locks[3]);
    __asm__ volatile("");
}

static void *circle(void *arg) {
    long i = (long)arg;
    tids[i] = (int)syscall(SYS_gettid);
    pthread_mutex_lock(&locks[i]);
    pthread_barrier_wait(&first_taken);
    take_next(i);
    return NULL;
}

static void *behind(void *arg) {
    (void)arg;
    tids[3] = (int)syscall(SYS_gettid);
    pthread_barrier_wait(&first_taken);
    pthread_mutex_lock(&locks[0]);
    return NULL;
}

static void *alone(void *arg) {
    (void)arg;
    tids[4] = (int)syscall(SYS_gettid);
    pthread_mutex_lock(&locks[3]);
    take_again();
    return NULL;
}

static void *in_turn(void *arg) {
    (void)arg;
    for (;;) {
        pthread_mutex_lock(&locks[4]);
        usleep(20000);
        pthread_mutex_unlock(&locks[4]);
        usleep(100);
    }
}

// Whether a thread is in a futex call.
static int is_stuck(int tid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    FILE *file = fopen(path, "r");
    long number = -1;
    if (file) {
        if (fscanf(file, "%ld", &number) != 1) number = -1;
        fclose(file);
    }
    return number == SYS_futex;
}

int main(void) {
    pthread_t thread;
    pthread_barrier_init(&first_taken, NULL, 4);
    for (long i = 0; i < 3; i++) pthread_create(&thread, NULL, circle, (void *)i);
    pthread_create(&thread, NULL, behind, NULL);
    pthread_create(&thread, NULL, alone, NULL);
    for (int i = 0; i < 2; i++) pthread_create(&thread, NULL, in_turn, NULL);
    for (int i = 0; i < 5; i++) {
        while (!tids[i] || !is_stuck(tids[i])) usleep(1000);
    }
    printf("ready %d %d %d %d %d\n", tids[0], tids[1], tids[2], tids[3], tids[4]);
    fflush(stdout);
    while (getchar() != EOF) {}
    _exit(0);
}
