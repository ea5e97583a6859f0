// Writes its log a few bytes at a time, each with a call of its own. small-writes DIR
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

__attribute__((noinline)) static void log_request(int file, int request) {
    char piece[16];
    for (int i = 0; i < 400; i++) {
        int length = snprintf(piece, sizeof piece, "%d ", request + i);
        if (write(file, piece, (size_t)length) < 0) _exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc < 2 || chdir(argv[1])) return 1;
    int file = open("log", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    puts("ready");
    fflush(stdout);
    for (int request = 0;; request++) {
        log_request(file, request);
        if (request % 10000 == 0 && (ftruncate(file, 0) || lseek(file, 0, SEEK_SET))) return 1;
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
}
