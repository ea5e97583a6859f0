// Threads that wait in known ways and say how long they did. The process prints "ready", reads a line, runs, and ends
// with a line for each thread:
//   NAME tid=N wall=NS on_cpu=NS run_queue=NS runs=N CAUSE=NS...
// and two for the process: "held=ADDRESS", the lock of `hold`, and "waits=NS,NS,...", the waits for a CPU of threads
// that only spin, one by one.
//
// blockers each SECONDS FILE      one thread for each way to wait
// blockers many SECONDS THREADS   threads that spin, sleep and share locks
// blockers hold SECONDS THREADS   threads that wait for a lock which the first one holds; the second waits for a vfork
// blockers spin SECONDS THREADS   threads that only spin, on the first two CPUs
// blockers rest SECONDS 1         a thread that starts a crowd of those again and again, and sleeps meanwhile
// blockers breed SECONDS 1        a thread that starts another one each millisecond, which waits for ever
//
// What a thread waited is the wall time around the call, less its CPU time and less the time it waited for a CPU, by
// the kernel's own books. What `rest` slept is what it asked for.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum cause { DISK, NETWORK, LOCK, PARK, SLEEP, POLL, PIPE, PAGE_FAULT, CHILD, CAUSES };
static const char *const cause_names[] = {"disk", "network", "lock", "park", "sleep", "poll", "pipe", "page_fault", "child"};

static uint64_t ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

struct stamp {
    uint64_t wall, on_cpu, run_queue, runs;
};

struct thread {
    char name[16];
    void (*work)(struct thread *);
    pthread_t id;
    int tid, number, schedstat;
    sem_t go;
    struct stamp start, end;
    int64_t waited[CAUSES]; // the noise of the clocks cancels out, so that it may be below zero for a while
    uint64_t *queue; // single waits for a CPU
    size_t queued;
};

static uint64_t deadline;
static const char *file;

#define CHECK(condition)                                    \
    do {                                                    \
        if (!(condition)) {                                 \
            perror(#condition);                             \
            exit(1);                                        \
        }                                                   \
    } while (0)

// All clocks at once: a stretch in which the thread did not leave its CPU.
static struct stamp stamp(struct thread *self) {
    struct stamp now = {0, 0, 0, 0};
    for (;;) {
        now.wall = ns(CLOCK_MONOTONIC);
        now.on_cpu = ns(CLOCK_THREAD_CPUTIME_ID);
        char line[80] = {0};
        unsigned long long on_cpu, run_queue, runs;
        CHECK(pread(self->schedstat, line, sizeof line - 1, 0) > 0);
        CHECK(sscanf(line, "%llu %llu %llu", &on_cpu, &run_queue, &runs) == 3);
        if (runs == now.runs) return now;
        now.run_queue = run_queue, now.runs = runs;
    }
}

// Does `call` and adds what it waited to `cause`.
#define WAIT(self, cause, call)                                                           \
    do {                                                                                  \
        struct stamp a = stamp(self);                                                     \
        call;                                                                             \
        struct stamp b = stamp(self);                                                     \
        (self)->waited[cause] += (b.wall - a.wall) - (b.on_cpu - a.on_cpu) - (b.run_queue - a.run_queue); \
    } while (0)

static int running(void) { return ns(CLOCK_MONOTONIC) < deadline; }

static void pause_ns(uint64_t length) {
    struct timespec pause = {length / 1000000000, length % 1000000000};
    nanosleep(&pause, 0);
}

__attribute__((noinline, noclone)) void spin_ns(uint64_t length) {
    uint64_t end = ns(CLOCK_THREAD_CPUTIME_ID) + length;
    volatile uint64_t x = 1;
    do {
        for (int i = 0; i < 1000; i++) x = x * 2862933555777941757ull + 3037000493ull;
    } while (ns(CLOCK_THREAD_CPUTIME_ID) < end);
    __asm__ volatile("");
}

// A function for each way to wait, to be found in the stacks. The statement behind the call keeps the frame.
#define WAY(name, cause, call)                                            \
    __attribute__((noinline, noclone)) void wait_##name(struct thread *self) { \
        WAIT(self, cause, call);                                          \
        __asm__ volatile("");                                             \
    }

// What the feeder feeds, every ten milliseconds.
static int a_pipe[2], tcp[2], a_unix[2], polled[2], epolled[2], event, listener;
static struct sockaddr_in address = {.sin_family = AF_INET};
static pthread_mutex_t condition_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static uint64_t signalled;
static int stop_feeding;

// A page that is absent until the feeder provides it.
enum { PAGE = 4096 };
static char *absent;
static int faults;
static void prepare_fault(void) {
    struct uffdio_api api = {.api = UFFD_API};
    CHECK((faults = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)) >= 0);
    CHECK((absent = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) != MAP_FAILED);
    struct uffdio_register range = {{(uintptr_t)absent, PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    CHECK(ioctl(faults, UFFDIO_API, &api) == 0 && ioctl(faults, UFFDIO_REGISTER, &range) == 0);
}

static void provide_page(void) {
    struct uffd_msg fault;
    if (read(faults, &fault, sizeof fault) != sizeof fault) return; // nobody waits
    struct uffdio_zeropage zero = {{(uintptr_t)absent, PAGE}, 0, 0};
    CHECK(ioctl(faults, UFFDIO_ZEROPAGE, &zero) == 0);
}

static void send_all(void) {
    uint64_t one = 1;
    CHECK(write(a_pipe[1], "x", 1) == 1 && write(tcp[1], "x", 1) == 1 && write(a_unix[1], "x", 1) == 1);
    CHECK(write(polled[1], "x", 1) == 1 && write(epolled[1], "x", 1) == 1 && write(event, &one, 8) == 8);
    int caller = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(caller, (struct sockaddr *)&address, sizeof address) == 0);
    close(caller);
    pthread_mutex_lock(&condition_mutex);
    signalled++;
    pthread_mutex_unlock(&condition_mutex);
    pthread_cond_signal(&condition);
    provide_page();
}

static void *feed(void *nothing) {
    (void)nothing;
    pthread_setname_np(pthread_self(), "feeder");
    while (!__atomic_load_n(&stop_feeding, __ATOMIC_RELAXED)) {
        pause_ns(10000000);
        send_all();
    }
    return 0;
}

static void prepare(void) {
    CHECK(pipe(a_pipe) == 0 && pipe(polled) == 0 && pipe(epolled) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, a_unix) == 0);
    CHECK((event = eventfd(0, 0)) >= 0);
    prepare_fault();
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK((listener = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 64) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    CHECK((tcp[1] = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    CHECK(connect(tcp[1], (struct sockaddr *)&address, size) == 0);
    CHECK((tcp[0] = accept(listener, 0, 0)) >= 0);
}

#define MANY_BYTES 4096
#define DRAIN(fd)                                       \
    do {                                                \
        char bytes[MANY_BYTES];                         \
        CHECK(read(fd, bytes, sizeof bytes) > 0);       \
    } while (0)

WAY(sleep, SLEEP, pause_ns(5000000))
WAY(pipe, PIPE, DRAIN(a_pipe[0]))
WAY(unix, PIPE, DRAIN(a_unix[0]))
WAY(event, PIPE, DRAIN(event))
WAY(recv, NETWORK, char bytes[MANY_BYTES]; CHECK(recv(tcp[0], bytes, sizeof bytes, 0) > 0))
WAY(accept, POLL, close(accept(listener, 0, 0)))

__attribute__((noinline, noclone)) void wait_poll(struct thread *self) {
    struct pollfd wanted = {polled[0], POLLIN, 0};
    WAIT(self, POLL, CHECK(poll(&wanted, 1, -1) == 1));
    DRAIN(polled[0]);
}

__attribute__((noinline, noclone)) void wait_epoll(struct thread *self) {
    static int epoll = -1;
    struct epoll_event wanted = {.events = EPOLLIN};
    if (epoll < 0) {
        CHECK((epoll = epoll_create1(0)) >= 0);
        CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, epolled[0], &wanted) == 0);
    }
    WAIT(self, POLL, CHECK(epoll_wait(epoll, &wanted, 1, -1) == 1));
    DRAIN(epolled[0]);
}

__attribute__((noinline, noclone)) void wait_condition(struct thread *self) {
    static uint64_t seen;
    pthread_mutex_lock(&condition_mutex);
    while (seen == signalled) WAIT(self, PARK, pthread_cond_wait(&condition, &condition_mutex));
    seen = signalled;
    pthread_mutex_unlock(&condition_mutex);
}

__attribute__((noinline, noclone)) void wait_fsync(struct thread *self) {
    enum { SIZE = 2 << 20 };
    static int fd = -1;
    static char *bytes;
    if (fd < 0) {
        CHECK((fd = open(file, O_RDWR | O_CREAT | O_TRUNC, 0600)) >= 0);
        CHECK((bytes = calloc(1, SIZE)));
    }
    WAIT(self, DISK, CHECK(pwrite(fd, bytes, SIZE, 0) == SIZE && fsync(fd) == 0));
}

// Touches a page that the feeder has yet to provide.
__attribute__((noinline, noclone)) void wait_fault(struct thread *self) {
    WAIT(self, PAGE_FAULT, (void)*(volatile char *)absent);
    CHECK(madvise(absent, PAGE, MADV_DONTNEED) == 0);
}

__attribute__((noinline, noclone)) void wait_child(struct thread *self) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        pause_ns(20000000);
        _exit(0);
    }
    WAIT(self, CHILD, CHECK(waitpid(child, 0, 0) == child));
}

// Locks that their keepers hold for 15 of every 20 ms.
static pthread_mutex_t kept = PTHREAD_MUTEX_INITIALIZER, kept_pi;
WAY(mutex, LOCK, pthread_mutex_lock(&kept))
WAY(pi_mutex, LOCK, pthread_mutex_lock(&kept_pi))

#define KEEP(self, mutex)                          \
    do {                                           \
        WAIT(self, LOCK, pthread_mutex_lock(&mutex)); \
        WAIT(self, SLEEP, pause_ns(15000000));     \
        pthread_mutex_unlock(&mutex);              \
        WAIT(self, SLEEP, pause_ns(5000000));      \
    } while (0)

static void run_sleep(struct thread *self) { while (running()) wait_sleep(self); }
static void run_pipe(struct thread *self) { while (running()) wait_pipe(self); }
static void run_unix(struct thread *self) { while (running()) wait_unix(self); }
static void run_event(struct thread *self) { while (running()) wait_event(self); }
static void run_recv(struct thread *self) { while (running()) wait_recv(self); }
static void run_accept(struct thread *self) { while (running()) wait_accept(self); }
static void run_poll(struct thread *self) { while (running()) wait_poll(self); }
static void run_epoll(struct thread *self) { while (running()) wait_epoll(self); }
static void run_condition(struct thread *self) { while (running()) wait_condition(self); }
static void run_fsync(struct thread *self) { while (running()) wait_fsync(self); }
static void run_fault(struct thread *self) { while (running()) wait_fault(self); }
static void run_child(struct thread *self) { while (running()) wait_child(self); }
static void run_keeper(struct thread *self) { while (running()) KEEP(self, kept); }
static void run_pi_keeper(struct thread *self) { while (running()) KEEP(self, kept_pi); }

static void run_mutex(struct thread *self) {
    while (running()) {
        wait_mutex(self);
        pthread_mutex_unlock(&kept);
        WAIT(self, SLEEP, pause_ns(1000000));
    }
}

static void run_pi_mutex(struct thread *self) {
    while (running()) {
        wait_pi_mutex(self);
        pthread_mutex_unlock(&kept_pi);
        WAIT(self, SLEEP, pause_ns(1000000));
    }
}

static void run_spinner(struct thread *self) {
    (void)self;
    while (running()) spin_ns(1000000);
}

// Spins, and whenever time has jumped asks the kernel whether that was a wait for a CPU, and how long.
static void run_hungry(struct thread *self) {
    enum { MOST = 1 << 16 };
    self->queue = malloc(MOST * sizeof *self->queue);
    struct stamp last = stamp(self);
    if (last.runs == 1) self->queue[self->queued++] = last.run_queue; // the first, before it ran at all
    uint64_t before = ns(CLOCK_MONOTONIC);
    while (before < deadline) {
        uint64_t now = ns(CLOCK_MONOTONIC);
        if (now - before > 1000) {
            struct stamp at = stamp(self);
            if (at.runs > last.runs && self->queued < MOST) self->queue[self->queued++] = at.run_queue - last.run_queue;
            last = at;
            now = ns(CLOCK_MONOTONIC);
        }
        before = now;
    }
}

static void *crowd(void *until) {
    while (ns(CLOCK_MONOTONIC) < *(uint64_t *)until) {}
    return 0;
}

// Falls asleep when it has had more than its share of a CPU and its crowd has yet to spread over the CPUs: Linux 6.12 and
// newer leave it in the run queue for a while, and may move it to another one.
static void run_rester(struct thread *self) {
    enum { NAP = 100000000, CROWD = 16 };
    while (running()) {
        pthread_t ids[CROWD];
        uint64_t until = ns(CLOCK_MONOTONIC) + NAP;
        for (int i = 0; i < CROWD; i++) CHECK(pthread_create(&ids[i], 0, crowd, &until) == 0);
        pause_ns(NAP);
        self->waited[SLEEP] += NAP;
        for (int i = 0; i < CROWD; i++) pthread_join(ids[i], 0);
    }
}

static void *idle(void *never) {
    sem_wait(never);
    return 0;
}

static void run_breeder(struct thread *self) {
    static sem_t never;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384);
    sem_init(&never, 0, 0);
    while (running()) {
        pthread_t id;
        CHECK(pthread_create(&id, &small, idle, &never) == 0);
        WAIT(self, SLEEP, pause_ns(1000000));
    }
}

// A bit of everything, different for each.
enum { SHARED = 64 };
static pthread_mutex_t shared[SHARED];
static void run_mixed(struct thread *self) {
    unsigned seed = self->number + 1;
    while (running()) {
        uint64_t length = 200000 + rand_r(&seed) % 2000000;
        pthread_mutex_t *mutex = &shared[rand_r(&seed) % SHARED * self->number % SHARED];
        switch (rand_r(&seed) % 3) {
        case 0: WAIT(self, SLEEP, pause_ns(length * 3)); break;
        case 1: spin_ns(length / 2); break;
        default:
            WAIT(self, LOCK, pthread_mutex_lock(mutex));
            WAIT(self, SLEEP, pause_ns(length));
            pthread_mutex_unlock(mutex);
        }
    }
}

// A lock that is held for the whole run, those who wait for it, and a wait that no signal ends.
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static sem_t taken;
static uint64_t left(void) {
    uint64_t now = ns(CLOCK_MONOTONIC);
    return now < deadline ? deadline - now : 0;
}

__attribute__((noinline, noclone)) void hold_lock(struct thread *self) {
    pthread_mutex_lock(&held);
    sem_post(&taken);
    WAIT(self, SLEEP, pause_ns(left()));
    pthread_mutex_unlock(&held);
}

WAY(held, LOCK, pthread_mutex_lock(&held))
static void run_queuer(struct thread *self) {
    wait_held(self);
    pthread_mutex_unlock(&held);
}

__attribute__((noinline, noclone)) void wait_vfork(struct thread *self) {
    uint64_t length = left();
    WAIT(self, CHILD, if (!vfork()) { pause_ns(length); _exit(0); });
    wait(0);
}

static sem_t all_there;

static void *begin(void *argument) {
    struct thread *self = argument;
    self->tid = gettid();
    pthread_setname_np(pthread_self(), self->name);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/schedstat", self->tid);
    CHECK((self->schedstat = open(path, O_RDONLY)) >= 0);
    // None begins before all are there, or the start of the last would be a wait for the others.
    WAIT(self, PARK, sem_wait(&all_there));
    self->work(self);
    // One ends after the other, or the last stretch of hundreds of threads would be lost in waiting for a CPU.
    WAIT(self, PARK, sem_wait(&self->go));
    self->end = stamp(self);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    const char *mode = argv[1];
    int each = !strcmp(mode, "each"), count = each ? 0 : atoi(argv[3]);
    file = argv[3];
    static const struct { const char *name; void (*work)(struct thread *); } ways[] = {
        {"sleep", run_sleep}, {"pipe", run_pipe}, {"unix", run_unix}, {"event", run_event}, {"recv", run_recv},
        {"accept", run_accept}, {"poll", run_poll}, {"epoll", run_epoll}, {"condition", run_condition},
        {"fsync", run_fsync}, {"fault", run_fault}, {"child", run_child}, {"keeper", run_keeper},
        {"mutex", run_mutex}, {"pi_keeper", run_pi_keeper}, {"pi_mutex", run_pi_mutex}, {"spinner", run_spinner},
    };
    if (each) count = sizeof ways / sizeof *ways;
    struct thread *threads = calloc(count, sizeof *threads);
    if (each) prepare();
    pthread_mutexattr_t inherit;
    pthread_mutexattr_init(&inherit);
    pthread_mutexattr_setprotocol(&inherit, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&kept_pi, &inherit);
    for (int i = 0; i < SHARED; i++) pthread_mutex_init(&shared[i], 0);
    sem_init(&taken, 0, 0);
    int rest = !strcmp(mode, "rest");
    if (rest || !strcmp(mode, "spin")) {
        cpu_set_t all, two;
        CPU_ZERO(&two);
        CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
        for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&two) < 2; cpu++)
            if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &two);
        CHECK(sched_setaffinity(0, sizeof two, &two) == 0);
    }

    puts("ready");
    fflush(stdout);
    if (getchar() < 0) return 1;
    deadline = ns(CLOCK_MONOTONIC) + (uint64_t)(atof(argv[2]) * 1e9);
    int held_before = 0;
    sem_init(&all_there, 0, 0);
    pthread_t feeder;
    if (each) CHECK(pthread_create(&feeder, 0, feed, 0) == 0);
    for (int i = 0; i < count; i++) {
        struct thread *thread = &threads[i];
        thread->number = i;
        if (each) thread->work = ways[i].work;
        else if (!strcmp(mode, "spin")) thread->work = run_hungry;
        else if (rest) thread->work = run_rester;
        else if (!strcmp(mode, "breed")) thread->work = run_breeder;
        else if (!strcmp(mode, "many")) thread->work = run_mixed;
        else thread->work = i == 0 ? hold_lock : i == 1 ? wait_vfork : run_queuer;
        if (each) snprintf(thread->name, sizeof thread->name, "%s", ways[i].name);
        else snprintf(thread->name, sizeof thread->name, "%s-%d", mode, i);
        sem_init(&thread->go, 0, 0);
        thread->start.wall = ns(CLOCK_MONOTONIC);
        CHECK(pthread_create(&thread->id, 0, begin, thread) == 0);
        if (thread->work != hold_lock) continue;
        sem_post(&all_there);
        sem_wait(&taken);
        held_before = 1;
    }
    for (int i = held_before; i < count; i++) sem_post(&all_there);
    // To sleep until then, or it would be one more to compete.
    uint64_t now = ns(CLOCK_MONOTONIC);
    if (now < deadline) pause_ns(deadline - now);
    for (int i = 0; i < count; i++) {
        sem_post(&threads[i].go);
        pthread_join(threads[i].id, 0);
    }
    if (each) {
        __atomic_store_n(&stop_feeding, 1, __ATOMIC_RELAXED);
        pthread_join(feeder, 0);
    }
    for (int i = 0; i < count; i++) {
        struct thread *t = &threads[i];
        printf("%s tid=%d wall=%llu on_cpu=%llu run_queue=%llu runs=%llu", t->name, t->tid,
               (unsigned long long)(t->end.wall - t->start.wall), (unsigned long long)t->end.on_cpu,
               (unsigned long long)t->end.run_queue, (unsigned long long)t->end.runs);
        for (int cause = 0; cause < CAUSES; cause++)
            if (t->waited[cause] > 0) printf(" %s=%lld", cause_names[cause], (long long)t->waited[cause]);
        puts("");
    }
    printf("held=%llu\n", (unsigned long long)(uintptr_t)&held);
    const char *separator = "waits=";
    for (int i = 0; i < count; i++)
        for (size_t j = 0; j < threads[i].queued; j++, separator = ",")
            printf("%s%llu", separator, (unsigned long long)threads[i].queue[j]);
    puts("");
    return 0;
}
