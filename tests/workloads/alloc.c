// Allocates in all the ways the C library has, from eight threads, and knows what is left of each: says "ready", waits
// for a line, works, says what each place has allocated and not freed ("NAME BYTES OBJECTS" a line, then "done"), and
// keeps it until its input ends.
//   alloc [ROUNDS]
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define THREADS 8
#define PLACES 12
#define NOINLINE __attribute__((noinline, noclone))
// Keeps a call from becoming a jump, and the function in the stack.
#define KEEP __asm__ volatile("" ::: "memory")

static struct {
    const char *name;
    atomic_long bytes, objects;
} places[PLACES];

static void count(int place, const char *name, long bytes, long objects) {
    places[place].name = name;
    places[place].bytes += bytes;
    places[place].objects += objects;
}

static unsigned next(unsigned *seed) { return *seed = *seed * 1664525 + 1013904223, *seed >> 8; }

// Mostly small, now and then one that the C library maps by itself.
static size_t any_size(unsigned *seed) { return next(seed) % 50 ? next(seed) % 2000 + 1 : 150000 + next(seed) % 1000; }

NOINLINE void leak_malloc(unsigned *seed) {
    size_t size = any_size(seed);
    count(0, __func__, size, 1);
    *(volatile char *)malloc(size) = 1;
    KEEP;
}

NOINLINE void leak_calloc(unsigned *seed) {
    size_t size = next(seed) % 100 + 1;
    count(1, __func__, 7 * size, 1);
    *(volatile char *)calloc(7, size) = 1;
    KEEP;
}

// Grows, shrinks and moves; once it cannot be had, and stays as it is.
NOINLINE void leak_realloc(unsigned *seed) {
    size_t size = next(seed) % 100 + 1;
    char *object = realloc(NULL, size);
    for (int i = 0; i < 10; i++) {
        size = i % 3 == 2 ? size / 2 + 1 : size * 2;
        object = realloc(object, size);
        *(volatile char *)object = 1;
    }
    volatile size_t too_much = PTRDIFF_MAX - 4096;
    if (realloc(object, too_much)) abort();
    count(2, __func__, size, 1);
    KEEP;
}

NOINLINE void leak_reallocarray(unsigned *seed) {
    size_t size = next(seed) % 100 + 1;
    char *object = reallocarray(malloc(1), 3, size);
    *(volatile char *)object = 1;
    count(3, __func__, 3 * size, 1);
    KEEP;
}

NOINLINE void leak_memalign(unsigned *seed) {
    size_t size = next(seed) % 1000 + 1;
    *(volatile char *)memalign(64, size) = 1;
    *(volatile char *)aligned_alloc(128, size) = 1;
    count(4, __func__, 2 * size, 2);
    KEEP;
}

NOINLINE void leak_posix_memalign(unsigned *seed) {
    size_t size = next(seed) % 1000 + 1;
    void *object = NULL;
    if (posix_memalign(&object, 256, size)) abort();
    *(volatile char *)object = 1;
    void *none = NULL;
    volatile size_t bad = 3;
    if (!posix_memalign(&none, bad, size)) abort();
    count(5, __func__, size, 1);
    KEEP;
}

NOINLINE void leak_valloc(unsigned *seed) {
    size_t size = next(seed) % 1000 + 1;
    *(volatile char *)valloc(size) = 1;
    count(6, __func__, size, 1);
#ifdef __GLIBC__ // musl has none
    *(volatile char *)pvalloc(size) = 1;
    count(6, __func__, size, 1);
#endif
    KEEP;
}

// The C library allocates, too.
NOINLINE void leak_strdup(unsigned *seed) {
    char text[200];
    size_t length = next(seed) % 199;
    memset(text, 'x', length);
    text[length] = 0;
    char *volatile copy = strdup(text);
    (void)copy;
    count(7, __func__, length + 1, 1);
    KEEP;
}

NOINLINE void leak_mmap(unsigned *seed) {
    if (next(seed) % 16) return;
    size_t pages = next(seed) % 4 + 2;
    char *object = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *(volatile char *)object = 1;
    if (munmap(object, 4096)) abort(); // its first page only
    char *reserved = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (munmap(reserved, 1 << 20)) abort();
    count(8, __func__, (pages - 1) * 4096, 1);
    KEEP;
}

// What one thread allocates another frees, except one in four.
static _Atomic(void *) mailbox[64];
NOINLINE void free_of_another(unsigned *seed) {
    size_t size = next(seed) % 500 + sizeof(size_t);
    size_t *object = malloc(size);
    *object = size;
    count(9, __func__, size, 1);
    size_t *other = atomic_exchange(&mailbox[next(seed) % 64], object);
    if (other && next(seed) % 4) {
        count(9, __func__, -(long)*other, -1);
        free(other);
    }
    KEEP;
}

NOINLINE void churn(unsigned *seed) {
    for (int i = 0; i < 20; i++) {
        void *volatile object = malloc(next(seed) % 300);
        free(object);
    }
    free(NULL);
    count(10, __func__, 0, 0);
    KEEP;
}

// How deep the stack is where it is called differs.
NOINLINE void at_depth(int depth, unsigned *seed) {
    volatile char frame[24];
    frame[0] = depth;
    if (depth > 0) {
        at_depth(depth - 1, seed);
    } else {
        leak_malloc(seed);
        leak_calloc(seed);
        leak_realloc(seed);
        leak_reallocarray(seed);
        leak_memalign(seed);
        leak_posix_memalign(seed);
        leak_valloc(seed);
        leak_strdup(seed);
        leak_mmap(seed);
        free_of_another(seed);
        churn(seed);
    }
    KEEP;
}

static long rounds = 200;

// Ends, and another takes its place: what ended threads allocated is still there.
static void *work(void *number) {
    unsigned seed = (unsigned)(uintptr_t)number;
    for (long i = 0; i < rounds; i++) at_depth(next(&seed) % 20, &seed);
    return NULL;
}

static void run(void) {
    for (int generation = 0; generation < 2; generation++) {
        pthread_t threads[THREADS];
        for (uintptr_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, work, (void *)(i + 100 * generation));
        for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) rounds = atol(argv[1]);
    char line[16];
#ifdef __GLIBC__
    // Other allocators have no pvalloc, so it is the C library's, whose heap is not made for several threads to be the first.
    *(volatile char *)pvalloc(1) = 1;
#endif
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 1;
    run();
    for (int i = 0; i < PLACES; i++)
        if (places[i].name) printf("%s %ld %ld\n", places[i].name, (long)places[i].bytes, (long)places[i].objects);
    puts("done");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {}
}
