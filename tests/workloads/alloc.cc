// As alloc.c, with operator new, arrays, containers, and an operator new that throws (not with an argument: some
// allocators' abort).
#include <cstdio>
#include <new>
#include <string>
#include <vector>

static long bytes, objects;

extern "C" __attribute__((noinline)) void leak_new(unsigned i) {
    size_t size = i % 500 + 1;
    *(volatile char *)::operator new(size) = 1;
    *(volatile char *)new char[size] = 1;
    bytes += 2 * size;
    objects += 2;
    asm volatile("" ::: "memory");
}

extern "C" __attribute__((noinline)) void delete_all(unsigned i) {
    std::vector<std::string> words;
    for (unsigned n = 0; n < i % 20; n++) words.push_back(std::string(n * 10, 'x'));
    asm volatile("" ::: "memory");
}

// How deep the stack is where it throws differs, so that calls after it are both above and below.
extern "C" __attribute__((noinline)) void too_much(unsigned depth) {
    volatile char frame[48];
    frame[0] = depth;
    if (depth > 0) {
        too_much(depth - 1);
        asm volatile("" ::: "memory");
        return;
    }
    try {
        volatile size_t size = (size_t)-1 / 2 - 4096;
        *(volatile char *)::operator new(size) = 1;
    } catch (const std::bad_alloc &) {
    }
    asm volatile("" ::: "memory");
}

int main(int argc, char **) {
    char line[16];
    std::puts("ready");
    std::fflush(stdout);
    if (!std::fgets(line, sizeof line, stdin)) return 1;
    for (unsigned i = 0; i < 1000; i++) {
        leak_new(i);
        delete_all(i);
        if (argc == 1) too_much(i % 5);
    }
    std::printf("leak_new %ld %ld\ndelete_all 0 0\ntoo_much 0 0\ndone\n", bytes, objects);
    std::fflush(stdout);
    while (std::fgets(line, sizeof line, stdin)) {}
}
