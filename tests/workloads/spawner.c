// Starts RATE processes a second for SECONDS; each execs this program again, works a little under the name
// "spawned" and ends. Prints a line once the first has run.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

__attribute__((noinline, noclone)) void spawned_work(void) {
    volatile uint64_t x = 1;
    for (int i = 0; i < 300000; i++) x = x * 2862933555777941757ull + 3037000493ull;
    __asm__ volatile("");
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "work")) {
        prctl(PR_SET_NAME, "spawned");
        spawned_work();
        return 0;
    }
    uint64_t gap = 1000000000ull / atoi(argv[1]), start = ns(CLOCK_MONOTONIC), count = 0;
    uint64_t end = start + atoi(argv[2]) * 1000000000ull;
    while (ns(CLOCK_MONOTONIC) < end) {
        if (!vfork()) {
            execl("/proc/self/exe", argv[0], "work", (char *)0);
            _exit(1);
        }
        if (!count++) {
            wait(0);
            puts("ready");
            fflush(stdout);
        }
        while (waitpid(-1, 0, WNOHANG) > 0) {}
        uint64_t next = start + count * gap, now = ns(CLOCK_MONOTONIC);
        if (next > now) {
            struct timespec pause = {0, (long)(next - now)};
            nanosleep(&pause, 0);
        }
    }
    while (wait(0) > 0) {}
    return 0;
}
