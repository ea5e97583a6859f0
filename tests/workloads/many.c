// Many of something, each making ten calls of getppid:
// many threads N    all alive at once
// many forks N      processes, at most 100 at once
// many compat N     calls by int 0x80, as 32-bit programs make them, and N by syscall; ends with code 3 if it cannot
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_barrier_t all;

static void ten(void) {
    for (int i = 0; i < 10; i++)
        syscall(SYS_getppid);
}

static void *thread(void *unused) {
    ten();
    pthread_barrier_wait(&all);
    return unused;
}

static void cannot(int signal) {
    (void)signal;
    _exit(3);
}

int main(int argc, char **argv) {
    int n = argc > 2 ? atoi(argv[2]) : 0;
    if (n <= 0)
        return 2;
    if (strcmp(argv[1], "threads") == 0) {
        pthread_attr_t small;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 32 * 1024);
        pthread_barrier_init(&all, NULL, n + 1);
        for (int i = 0; i < n; i++) {
            pthread_t made;
            if (pthread_create(&made, &small, thread, NULL))
                return 1;
            pthread_detach(made);
        }
        pthread_barrier_wait(&all);
    } else if (strcmp(argv[1], "forks") == 0) {
        for (int i = 0, alive = 0; i < n || alive > 0;) {
            if (i < n && alive < 100) {
                int child = fork();
                if (child < 0)
                    return 1;
                if (child == 0) {
                    ten();
                    _exit(0);
                }
                i++;
                alive++;
            } else {
                wait(NULL);
                alive--;
            }
        }
    } else {
#ifdef __x86_64__
        signal(SIGSEGV, cannot);
        for (int i = 0; i < n; i++) {
            long result = 64; // getppid, arch/x86/entry/syscalls/syscall_32.tbl; semget by syscall
            __asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
            syscall(SYS_getppid);
        }
#else
        cannot(0);
#endif
    }
    return 0;
}
