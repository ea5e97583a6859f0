// Takes 32 MB from the kernel for every request and gives them back: most of its time goes into page faults.
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

__attribute__((noinline)) static long render(void) {
    size_t size = 32 << 20;
    char *frame = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (frame == MAP_FAILED) return 0;
    madvise(frame, size, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < size; i += 4096) frame[i] = 1;
    long sum = frame[size / 2];
    munmap(frame, size);
    return sum;
}

int main(void) {
    puts("ready");
    fflush(stdout);
    for (volatile long sum = 0;;) {
        sum += render();
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
}
