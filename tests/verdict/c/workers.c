// Healthy: four threads that wait for jobs on a condition variable, and get one now and then.
#include <pthread.h>
#include <stdio.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int jobs;

__attribute__((noinline)) static double job(void) {
    double sum = 0;
    for (int i = 1; i < 200000; i++) sum += 1.0 / i;
    return sum;
}

static void *work(void *unused) {
    for (volatile double sum = 0;;) {
        pthread_mutex_lock(&lock);
        while (jobs == 0) pthread_cond_wait(&wake, &lock);
        jobs--;
        pthread_mutex_unlock(&lock);
        sum += job();
    }
    return unused;
}

int main(void) {
    pthread_t thread;
    for (int i = 0; i < 4; i++) pthread_create(&thread, NULL, work, NULL);
    puts("ready");
    fflush(stdout);
    for (;;) {
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        pthread_mutex_lock(&lock);
        jobs++;
        pthread_cond_signal(&wake);
        pthread_mutex_unlock(&lock);
    }
}
