// A fixed list of system calls, made without a library in between, so that the numbers are known: tests/syscall.rs
// compares them with what `strace -c` counts.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void times(int n, long number, long a, long b, long c, long d) {
    for (int i = 0; i < n; i++)
        syscall(number, a, b, c, d, 0, 0);
}

static void nothing(int signal) { (void)signal; }

// Ends the thread inside of a call that never returns.
static void *stuck(void *pipe) {
    char byte;
    syscall(SYS_read, ((int *)pipe)[0], &byte, 1);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc > 1) { // what was executed after vfork
        times(3, SYS_getuid, 0, 0, 0, 0);
        return 0;
    }
    char buffer[4096] = {0};
    struct timespec ms = {0, 1000000};
    struct timespec s = {1, 0};
    struct rlimit limit;
    struct stat st;
    int ends[2], never[2];
    uint32_t word = 0;

    times(1000, SYS_getppid, 0, 0, 0, 0);
    times(500, SYS_getuid, 0, 0, 0, 0);
    times(100, SYS_getpriority, PRIO_PROCESS, 0, 0, 0);
    times(50, SYS_sched_yield, 0, 0, 0, 0);
    times(40, SYS_getrlimit, RLIMIT_NOFILE, (long)&limit, 0, 0);
    times(30, SYS_umask, 022, 0, 0, 0);
    times(20, SYS_getcwd, (long)buffer, sizeof buffer, 0, 0);
    times(11, SYS_getcwd, (long)buffer, 1, 0, 0); // ERANGE
    times(17, SYS_close, -1, 0, 0, 0); // EBADF
    times(13, SYS_dup, 999999, 0, 0, 0); // EBADF
    times(7, SYS_access, (long)"/no/such/file", F_OK, 0, 0); // ENOENT
    times(5, SYS_chdir, (long)"/dev/null", 0, 0, 0); // ENOTDIR
    times(6, SYS_kill, getpid(), 1000, 0, 0); // EINVAL
    times(9, SYS_lseek, -1, 0, SEEK_SET, 0); // EBADF
    times(8, SYS_sync_file_range, -1, 0, 0, 0); // EBADF
    times(25, SYS_nanosleep, (long)&ms, 0, 0, 0);
    times(4, SYS_futex, (long)&word, FUTEX_WAIT, 1, 0); // EAGAIN
    times(12, SYS_futex, (long)&word, FUTEX_WAKE, 1, 0);
    times(3, SYS_stat, (long)"/", (long)&st, 0, 0);
    times(2, SYS_sysinfo, (long)buffer, 0, 0, 0);
    times(14, SYS_getgroups, 0, 0, 0, 0);
    times(15, SYS_getsid, 0, 0, 0, 0);
    times(16, SYS_getpgid, 0, 0, 0, 0);
    times(18, SYS_capget, 0, 0, 0, 0); // EFAULT
    times(19, SYS_times, (long)buffer, 0, 0, 0);

    pipe(ends);
    pipe(never);
    for (int i = 0; i < 200; i++) {
        syscall(SYS_write, ends[1], buffer, 64);
        syscall(SYS_read, ends[0], buffer, 64);
    }
    struct iovec part = {buffer, 10};
    for (int i = 0; i < 33; i++) {
        syscall(SYS_writev, ends[1], &part, 1);
        syscall(SYS_readv, ends[0], &part, 1);
    }

    // A signal interrupts a call.
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval timer = {.it_value = {0, 20000}};
    for (int i = 0; i < 3; i++) {
        setitimer(ITIMER_REAL, &timer, NULL);
        syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &s, NULL); // EINTR
    }

    // vfork and exec, and what is executed makes calls of its own.
    for (int i = 0; i < 2; i++) {
        int child = vfork();
        if (child == 0) {
            execl("/proc/self/exe", argv[0], "child", NULL);
            _exit(1);
        }
        waitpid(child, NULL, 0);
    }

    // A thread that ends inside of a call, with the process.
    pthread_t thread;
    pthread_create(&thread, NULL, stuck, never);
    usleep(50000);
    _exit(0);
}
