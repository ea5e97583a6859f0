// Makes every record durable by itself. fsync DIR
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

__attribute__((noinline)) static void commit(int journal, const char *record) {
    if (write(journal, record, strlen(record)) < 0 || fsync(journal) < 0) _exit(1);
}

int main(int argc, char **argv) {
    if (argc < 2 || chdir(argv[1])) return 1;
    int journal = open("journal", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    puts("ready");
    fflush(stdout);
    for (long i = 0;; i++) {
        commit(journal, "a record\n");
        if (i % 100000 == 0 && ftruncate(journal, 0)) return 1;
    }
}
