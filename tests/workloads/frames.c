// Frames that are hard to leave. Usage: frames DEPTH [MB] spins at the bottom of DEPTH calls, walking through so much
// memory that nothing else stays in the caches; frames signal, in a handler that interrupts a leaf function, every
// other time on a stack of its own. Both until they are killed.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

static volatile uint64_t sink;

static volatile char *memory;
static size_t memory_size;

__attribute__((noinline, noclone)) void spin(void) {
    for (size_t at = 0; memory_size; at = (at + 64) % memory_size) memory[at]++;
    for (;;) sink = sink * 2862933555777941757ull + 3037000493ull;
}

// Frames of different sizes, none of them a tail call.
__attribute__((noinline, noclone)) uint64_t descend(int depth) {
    volatile uint64_t room[1 + depth % 7];
    room[0] = depth;
    if (depth <= 1) spin();
    return descend(depth - 1) + room[0];
}

__attribute__((noinline, noclone)) void interrupted(void) {
    for (;;) sink = sink * 6364136223846793005ull + 1442695040888963407ull;
}

// Longer than half the time between two signals, so that most samples are taken in here.
__attribute__((noinline, noclone)) void in_handler(void) {
    struct timespec now;
    uint64_t end = 0, ns;
    do {
        for (int i = 0; i < 2000; i++) sink = sink * 2862933555777941757ull + 3037000493ull;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        ns = now.tv_sec * 1000000000ull + now.tv_nsec;
        if (!end) end = ns + 6000000;
    } while (ns < end);
}

// Each makes the other the next signal's.
static void on_same_stack(int signal);

__attribute__((noinline, noclone)) static void on_other_stack(int signal) {
    in_handler();
    sigaction(signal, &(struct sigaction){.sa_handler = on_same_stack, .sa_flags = SA_RESTART}, 0);
}

__attribute__((noinline, noclone)) static void on_same_stack(int signal) {
    in_handler();
    sigaction(signal, &(struct sigaction){.sa_handler = on_other_stack, .sa_flags = SA_RESTART | SA_ONSTACK}, 0);
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    puts("ready");
    fflush(stdout);
    if (argc > 2) memory = calloc(1, memory_size = atol(argv[2]) << 20);
    if (strcmp(argv[1], "signal")) return (int)descend(atoi(argv[1]));
    char other_stack[1 << 16]; // further out than what is interrupted: this one goes down when it is left
    sigaltstack(&(stack_t){.ss_sp = other_stack, .ss_size = sizeof other_stack}, 0);
    sigaction(SIGPROF, &(struct sigaction){.sa_handler = on_same_stack, .sa_flags = SA_RESTART}, 0);
    struct itimerval every = {{0, 10000}, {0, 10000}};
    setitimer(ITIMER_PROF, &every, 0);
    interrupted();
    return 0;
}
