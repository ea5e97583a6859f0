// Healthy: replaces the entries of a cache that has reached its limit, at random.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LIMIT = 20000 };
static char *cache[LIMIT];

__attribute__((noinline)) static void fetch(unsigned key) {
    free(cache[key % LIMIT]);
    size_t size = 200 + key % 1800;
    cache[key % LIMIT] = malloc(size);
    memset(cache[key % LIMIT], 'x', size);
}

int main(void) {
    for (unsigned i = 0; i < 10 * LIMIT; i++) fetch((unsigned)rand());
    puts("ready");
    fflush(stdout);
    for (;;) {
        for (int i = 0; i < 20; i++) fetch((unsigned)rand());
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}
