// A process and threads whose names are hostile: parentheses, newlines, separators, escapes, no text at all.
#include <pthread.h>
#include <stdint.h>
#include <sys/prctl.h>

volatile uint64_t sink;

__attribute__((noinline)) void hot(void) {
    uint64_t x = sink;
    for (int i = 0; i < 100000; i++) x = x * 6364136223846793005ull + 1;
    sink = x;
}

static void *run(void *name) {
    prctl(PR_SET_NAME, name);
    for (;;) hot();
}

int main(void) {
    static const char *names[] = {"a) R 1 (b", "line1\nline2 7", "x;y <z> & 42", "\x1b[31mred", "\xff\xfe\xfd", ""};
    pthread_t thread;
    for (int i = 0; i < 6; i++) pthread_create(&thread, 0, run, (void *)names[i]);
    prctl(PR_SET_NAME, "m)\n;\x1b[7m\xff<&");
    pthread_join(thread, 0);
}
