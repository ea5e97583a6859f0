// Makes one kind of system call for a number of seconds and prints what CPU time a call took, ns (what else runs on the
// machine does not count):
// callrate getppid|pipe SECONDS
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    int ends[2], with_pipe = strcmp(argv[1], "pipe") == 0;
    char byte = 0;
    if (pipe(ends))
        return 1;
    double begin = now(CLOCK_PROCESS_CPUTIME_ID), end = now(CLOCK_MONOTONIC) + atof(argv[2]);
    long calls = 0;
    while (now(CLOCK_MONOTONIC) < end) {
        for (int i = 0; i < 1000; i++) {
            if (with_pipe) {
                if (write(ends[1], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1)
                    return 1;
                calls += 2;
            } else {
                syscall(SYS_getppid);
                calls++;
            }
        }
    }
    printf("%.1f\n", (now(CLOCK_PROCESS_CPUTIME_ID) - begin) * 1e9 / calls);
    return 0;
}
