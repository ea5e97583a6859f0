// Changes while it runs. Spins until a line on stdin says what to become: "load PATH" opens a library, this same file
// compiled with -DLIBRARY, and spins in it from then on, called back through it; what was opened before is unloaded first.
// "exec PATH" is another program. Where a library's function is, is said.
#define _GNU_SOURCE
#include <stdint.h>

#ifdef LIBRARY

// Not a tail call: what is called back has this frame below it.
__attribute__((noinline)) uint64_t through_library(uint64_t (*back)(uint64_t), uint64_t x) {
#ifdef ROOM
    // The same code but for the frame's size.
    volatile char room[ROOM];
    room[x % ROOM] = 1;
#endif
    for (int i = 0; i < 1000; i++) x = x * 2862933555777941757ull + 3037000493ull;
    return back(x) + 1;
}

#else

#include <dlfcn.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

__attribute__((noinline, noclone)) uint64_t work(uint64_t x) {
    for (int i = 0; i < 1000; i++) x = x * 6364136223846793005ull + 1442695040888963407ull;
    return x;
}

static uint64_t (*library)(uint64_t (*)(uint64_t), uint64_t);

__attribute__((noinline, noclone)) uint64_t some_work(uint64_t x) {
    for (int i = 0; i < 1000; i++) x = library ? library(work, x) : work(x);
    return x;
}

static int change(void) {
    char line[4096];
    ssize_t len = read(0, line, sizeof line - 1);
    if (len < 5) return 1;
    line[len - (line[len - 1] == '\n')] = 0;
    if (!strncmp(line, "exec ", 5)) {
        execl(line + 5, line + 5, (char *)0);
        return 2;
    }
    static void *handle;
    if (handle) dlclose(handle);
    handle = dlopen(line + 5, RTLD_NOW);
    *(void **)&library = handle ? dlsym(handle, "through_library") : 0;
    printf("%p\n", (void *)library);
    fflush(stdout);
    return library ? 0 : 3;
}

int main(void) {
    puts("ready");
    fflush(stdout);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    volatile uint64_t x = 1;
    for (;;) {
        x = some_work(x);
        if (poll(&input, 1, 0) > 0) {
            int code = change();
            if (code) return code;
        }
    }
}

#endif
