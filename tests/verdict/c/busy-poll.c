// Asks for events without ever waiting: epoll_wait with a timeout of zero, a whole CPU for nothing.
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

__attribute__((noinline)) static int poll_events(int loop) {
    struct epoll_event events[16];
    return epoll_wait(loop, events, 16, 0);
}

int main(void) {
    int loop = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec every = {{.tv_nsec = 100000000}, {.tv_nsec = 100000000}};
    struct epoll_event event = {.events = EPOLLIN};
    timerfd_settime(timer, 0, &every, NULL);
    epoll_ctl(loop, EPOLL_CTL_ADD, timer, &event);
    puts("ready");
    fflush(stdout);
    for (;;) {
        long ticks;
        if (poll_events(loop) > 0 && read(timer, &ticks, sizeof ticks) < 0) return 1;
    }
}
