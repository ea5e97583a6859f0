// Makes one kind of system call for a number of seconds and prints what a call took, ns:
// callrate getppid|pipe SECONDS
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    int ends[2], with_pipe = strcmp(argv[1], "pipe") == 0;
    char byte = 0;
    if (pipe(ends))
        return 1;
    double begin = now(), end = begin + atof(argv[2]), last = begin;
    long calls = 0;
    while (last < end) {
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
        last = now();
    }
    printf("%.1f\n", (last - begin) * 1e9 / calls);
    return 0;
}
