// Allocates many objects of 16 bytes from one place and keeps them; otherwise as alloc.c.
//   hoard OBJECTS
#include <stdio.h>
#include <stdlib.h>

__attribute__((noinline, noclone)) void hoard_here(void **last) {
    void **object = malloc(16);
    *object = *last; // so that it is used
    *last = object;
}

int main(int argc, char **argv) {
    long objects = argc > 1 ? atol(argv[1]) : 1;
    char line[16];
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 1;
    void *last = NULL;
    for (long i = 0; i < objects; i++) hoard_here(&last);
    printf("hoard_here %ld %ld\ndone\n", 16 * objects, objects);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {}
}
