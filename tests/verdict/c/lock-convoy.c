// Eight threads want one lock, whose holder does slow work in it.
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t account = PTHREAD_MUTEX_INITIALIZER;
static volatile long balance;

__attribute__((noinline)) static void transfer(void) {
    pthread_mutex_lock(&account);
    balance++;
    nanosleep(&(struct timespec){.tv_nsec = 15000000}, NULL);
    pthread_mutex_unlock(&account);
}

static void *serve(void *unused) {
    for (;;) transfer();
    return unused;
}

int main(void) {
    pthread_t thread;
    for (int i = 0; i < 8; i++) pthread_create(&thread, NULL, serve, NULL);
    puts("ready");
    fflush(stdout);
    pause();
}
