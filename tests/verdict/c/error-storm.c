// Has no descriptors left, and asks for a connection again and again all the same.
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

__attribute__((noinline)) static int accept_client(int listener) {
    return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof here;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&here, length) || listen(listener, 8)) return 1;
    getsockname(listener, (struct sockaddr *)&here, &length);
    if (connect(client, (struct sockaddr *)&here, length)) return 1;
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){16, 16});
    while (open("/dev/null", O_RDONLY) >= 0) {}
    puts("ready");
    fflush(stdout);
    for (;;) {
        if (accept_client(listener) < 0) nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
}
