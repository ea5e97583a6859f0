// compat FIFO: by 32-bit calls, as 32-bit programs make them, opens a FIFO that a child opens 100 ms later, reads a byte that
// it writes another 100 ms later, and closes and removes it at once. Ends with code 3 if it cannot.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void cannot(int signal) {
    (void)signal;
    _exit(3);
}

#ifdef __x86_64__
static long call32(long number, long a, long b, long c) {
    __asm__ volatile("int $0x80" : "+a"(number) : "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
    return (int)number;
}
#else
static long call32(long number, long a, long b, long c) {
    (void)number, (void)a, (void)b, (void)c;
    _exit(3);
}
#endif

int main(int argc, char **argv) {
    signal(SIGSEGV, cannot);
    // Where a 32-bit address leads.
    char *low = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (argc < 2 || low == MAP_FAILED || strlen(argv[1]) > 4000 || mkfifo(argv[1], 0600))
        return 1;
    strcpy(low, argv[1]);
    call32(20, 0, 0, 0); // getpid, arch/x86/entry/syscalls/syscall_32.tbl
    if (fork() == 0) {
        usleep(100000);
        int fifo = open(argv[1], O_WRONLY);
        usleep(100000);
        return write(fifo, "x", 1) != 1;
    }
    long fifo = call32(5, (long)low, O_RDONLY, 0); // open
    long n = call32(3, fifo, (long)low + 4096, 1); // read
    call32(6, fifo, 0, 0); // close
    unlink(argv[1]);
    wait(NULL);
    return n != 1;
}
