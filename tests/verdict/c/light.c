// Healthy: an epoll server with small answers to few requests; none without load.
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof here;
    int listener = socket(AF_INET, SOCK_STREAM, 0), loop = epoll_create1(0);
    if (bind(listener, (struct sockaddr *)&here, length) || listen(listener, 64)) return 1;
    getsockname(listener, (struct sockaddr *)&here, &length);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, &event);
    printf("ready port=%d\n", ntohs(here.sin_port));
    fflush(stdout);
    for (;;) {
        if (epoll_wait(loop, &event, 1, -1) < 1) continue;
        if (event.data.fd == listener) {
            event.data.fd = accept(listener, NULL, NULL);
            event.events = EPOLLIN;
            epoll_ctl(loop, EPOLL_CTL_ADD, event.data.fd, &event);
            continue;
        }
        char request[4096];
        const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        if (read(event.data.fd, request, sizeof request) <= 0 || write(event.data.fd, answer, strlen(answer)) < 0)
            close(event.data.fd);
    }
}
