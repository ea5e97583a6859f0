// An event loop that never sleeps, because there is always something to do: each turn computes for a random time up to
// 2 ms, and every hundredth for 20 or 80 ms. Prints "ready", waits for a line, runs for SECONDS and ends with a line
// "stall START LENGTH" for each turn longer than 5 ms (CLOCK_MONOTONIC, ns), and "turns COUNT SUM MEDIAN".
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

static uint64_t ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

__attribute__((noinline, noclone)) void handle_event(uint64_t length) {
    uint64_t end = ns(CLOCK_THREAD_CPUTIME_ID) + length;
    volatile uint64_t x = 1;
    while (ns(CLOCK_THREAD_CPUTIME_ID) < end)
        for (int i = 0; i < 1000; i++) x = x * 2862933555777941757ull + 3037000493ull;
    __asm__ volatile("");
}

static int by_length(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    enum { MOST = 1 << 20 };
    static uint64_t starts[MOST], lengths[MOST];
    struct epoll_event event = {.events = EPOLLIN};
    int epoll = epoll_create1(0), ready = eventfd(1, 0);
    if (argc != 2 || epoll_ctl(epoll, EPOLL_CTL_ADD, ready, &event)) return 1;
    puts("ready");
    fflush(stdout);
    if (getchar() < 0) return 1;
    unsigned seed = 1;
    size_t turns = 0;
    uint64_t end = ns(CLOCK_MONOTONIC) + (uint64_t)(atof(argv[1]) * 1e9), sum = 0, start;
    if (epoll_wait(epoll, &event, 1, -1) != 1) return 1;
    start = ns(CLOCK_MONOTONIC);
    while (start < end && turns < MOST) {
        size_t turn = turns++;
        handle_event(turn % 200 == 99 ? 20000000 : turn % 200 == 199 ? 80000000 : rand_r(&seed) % 2000000);
        starts[turn] = start;
        lengths[turn] = ns(CLOCK_MONOTONIC) - start;
        sum += lengths[turn];
        if (epoll_wait(epoll, &event, 1, -1) != 1) return 1;
        start = ns(CLOCK_MONOTONIC);
    }
    for (size_t turn = 0; turn < turns; turn++)
        if (lengths[turn] > 5000000)
            printf("stall %llu %llu\n", (unsigned long long)starts[turn], (unsigned long long)lengths[turn]);
    qsort(lengths, turns, sizeof *lengths, by_length);
    printf("turns %zu %llu %llu\n", turns, (unsigned long long)sum, (unsigned long long)lengths[turns / 2]);
    return 0;
}
