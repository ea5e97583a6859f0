// The same two functions in unusual places; `hot` takes most of the time and is called by `caller`.
//   places leader-ends   the main thread ends, another one works on
//   places memfd         executed out of a file in memory
//   places deleted       its file is removed
//   places copied        its code is copied to anonymous memory, which then takes the place of the file's
// Prints a line when it has begun, and works until it is killed.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

volatile uint64_t sink;

__attribute__((noinline, noclone)) void hot(void) {
    uint64_t x = sink;
    for (int i = 0; i < 100000; i++) x = x * 6364136223846793005ull + 1;
    sink = x;
}

__attribute__((noinline, noclone)) void *caller(void *unused) {
    (void)unused;
    for (;;) {
        hot();
        sink++;
    }
    return 0;
}

extern char __executable_start, etext;

static void copy_text(void) {
    uintptr_t page = sysconf(_SC_PAGESIZE), start = (uintptr_t)&__executable_start, end = (uintptr_t)&etext;
    // The executable segment: from the page of the first function to that of the last.
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        char permissions[5];
        if (sscanf(line, "%lx-%lx %4s", &from, &to, permissions) == 3 && permissions[2] == 'x' && from >= start && from < end)
            start = from, end = to;
    }
    fclose(maps);
    size_t len = (end - start + page - 1) & ~(page - 1);
    void *copy = mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(copy, (void *)start, len);
    if (mprotect(copy, len, PROT_READ | PROT_EXEC)) exit(1);
    // One call, so that there is code at every moment.
    if (mremap(copy, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)start) == MAP_FAILED) exit(1);
}

int main(int argc, char **argv) {
    const char *place = argc > 1 ? argv[1] : "";
    if (!strcmp(place, "memfd")) {
        int from = open("/proc/self/exe", O_RDONLY), fd = memfd_create("service", 0);
        struct stat of;
        fstat(from, &of);
        for (off_t left = of.st_size; left > 0;) {
            ssize_t sent = sendfile(fd, from, 0, left);
            if (sent <= 0) return 1;
            left -= sent;
        }
        char *arguments[] = {"service", "run", 0}, *environment[] = {0};
        fexecve(fd, arguments, environment);
        return 1;
    }
    if (!strcmp(place, "copied")) copy_text();
    if (!strcmp(place, "deleted")) unlink(argv[0]);
    pthread_t worker;
    if (!strcmp(place, "leader-ends")) {
        pthread_create(&worker, 0, caller, 0);
        pthread_detach(worker);
        printf("ready\n");
        fflush(stdout);
        pthread_exit(0);
    }
    printf("ready\n");
    fflush(stdout);
    caller(0);
}
