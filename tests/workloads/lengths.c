// Waits N times for MS milliseconds in clock_nanosleep, then as often in read from a pipe that a child writes to so late.
// Says how long that took by its own clock, read right before and after each call, ns: all sleeps, all reads, and the
// longest read.
#include <stdio.h>
#include <stdlib.h>
#include <poll.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000 + now.tv_nsec;
}

int main(int argc, char **argv) {
    int ms = argc > 2 ? atoi(argv[1]) : 0, n = argc > 2 ? atoi(argv[2]) : 0;
    long slept = 0, waited = 0, longest = 0;
    struct timespec length = {ms / 1000, ms % 1000 * 1000000};
    int go[2], ends[2];
    char byte = 0;
    if (n <= 0 || pipe(go) || pipe(ends))
        return 2;
    now(); // the first one may be slow
    for (int i = 0; i < n; i++) {
        long start = now();
        clock_nanosleep(CLOCK_MONOTONIC, 0, &length, NULL);
        slept += now() - start;
    }
    if (fork() == 0) {
        close(go[1]);
        while (read(go[0], &byte, 1) == 1) {
            poll(NULL, 0, ms);
            if (write(ends[1], &byte, 1) != 1)
                return 1;
        }
        return 0;
    }
    for (int i = 0; i < n; i++) {
        if (write(go[1], &byte, 1) != 1)
            return 1;
        long start = now();
        if (read(ends[0], &byte, 1) != 1)
            return 1;
        long took = now() - start;
        waited += took;
        longest = took > longest ? took : longest;
    }
    close(go[1]);
    wait(NULL);
    printf("lengths %ld %ld %ld\n", slept, waited, longest);
    return 0;
}
