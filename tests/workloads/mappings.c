// Mappings that end in unusual ways. Prints "ready", waits for a line, makes ROUNDS of each, and prints what each place
// still holds, bytes and mappings. Waits for the end of its input.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KB = 1024 };

__attribute__((noinline, noclone)) static char *touched(char *at, size_t size) {
    if (at == MAP_FAILED) exit(2);
    memset(at, 1, size);
    return at;
}

static const int RW = PROT_READ | PROT_WRITE, ANON = MAP_PRIVATE | MAP_ANONYMOUS;

#define PLACE(name, ...)                                                    \
    __attribute__((noinline, noclone)) static char *name(__VA_ARGS__)

// A reservation, of which a part is used. Both end with one call.
PLACE(reserved_and_used, void) {
    char *at = mmap(0, 800 * KB, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
    touched(mmap(at + 4 * KB, 400 * KB, RW, ANON | MAP_FIXED, -1, 0), 400 * KB);
    munmap(at, 800 * KB);
    return at;
}

PLACE(mapped_under, void) { return touched(mmap(0, 200 * KB, RW, ANON, -1, 0), 200 * KB); }
PLACE(mapped_over, char *at) { return touched(mmap(at, 40 * KB, RW, ANON | MAP_FIXED, -1, 0), 40 * KB); }

// Two that end with one call.
PLACE(side_by_side, void) {
    char *at = mmap(0, 80 * KB, PROT_NONE, ANON, -1, 0);
    touched(mmap(at, 40 * KB, RW, ANON | MAP_FIXED, -1, 0), 40 * KB);
    touched(mmap(at + 40 * KB, 40 * KB, RW, ANON | MAP_FIXED, -1, 0), 40 * KB);
    munmap(at, 80 * KB);
    return at;
}

PLACE(first_part_ends, void) {
    char *at = touched(mmap(0, 120 * KB, RW, ANON, -1, 0), 120 * KB);
    munmap(at, 40 * KB);
    return at;
}

PLACE(middle_ends, void) {
    char *at = touched(mmap(0, 120 * KB, RW, ANON, -1, 0), 120 * KB);
    munmap(at + 40 * KB, 40 * KB);
    return at;
}

PLACE(ends_without_library, void) {
    char *at = touched(mmap(0, 40 * KB, RW, ANON, -1, 0), 40 * KB);
    syscall(SYS_munmap, at, 40 * KB);
    return at;
}

PLACE(fails, void) {
    if (mmap(0, 1ul << 60, RW, ANON, -1, 0) != MAP_FAILED) exit(3);
    return 0;
}

PLACE(stays, void) { return touched(mmap(0, 40 * KB, RW, ANON, -1, 0), 40 * KB); }

int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 100;
    puts("ready");
    fflush(stdout);
    getchar();
    for (long i = 0; i < rounds; i++) {
        reserved_and_used();
        mapped_over(mapped_under() + 80 * KB);
        side_by_side();
        first_part_ends();
        middle_ends();
        ends_without_library();
        fails();
        stays();
        __asm__ volatile("" ::: "memory");
    }
    printf("reserved_and_used 0 0\nside_by_side 0 0\nends_without_library 0 0\nfails 0 0\n");
    printf("mapped_under %ld %ld\nmapped_over %ld %ld\n", rounds * 160 * KB, rounds, rounds * 40 * KB, rounds);
    printf("first_part_ends %ld %ld\nmiddle_ends %ld %ld\n", rounds * 80 * KB, rounds, rounds * 80 * KB, rounds);
    printf("stays %ld %ld\ndone\n", rounds * 40 * KB, rounds);
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
