// Programs that leak, and programs that only look as if they did: `leak MODE [SPEED]` runs until it is killed. Its first
// line says what it does: `leaks FUNCTION BYTES_PER_SECOND`, or `harmless`, or `undecidable`. With SPEED all that takes
// time goes so many times faster, and rates are as much higher. Everything is paced by the clock.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define FRAME __attribute__((noinline, noclone))
// After a call, so that it is none that the compiler turns into a jump.
#define STAY __asm__ volatile("" ::: "memory")

static double speed = 1, started;

// The program's own time, s.
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (t.tv_sec + t.tv_nsec / 1e9 - started) * speed;
}

static void rest(void) { usleep(5000); }

// How many events at `rate` a second are due at `t`, of which `*done` are done. Those that a busy machine makes late by
// more than a second are left out, if `may_skip`.
static uint64_t due(double t, double rate, uint64_t *done, int may_skip) {
    uint64_t all = t * rate, n = all > *done ? all - *done : 0;
    *done = all;
    return may_skip && n > rate ? (uint64_t)rate : n;
}

static __thread uint64_t seed = 88172645463325252ull;
static uint64_t random64(void) {
    seed ^= seed << 13, seed ^= seed >> 7;
    return seed ^= seed << 17;
}
static double random01(void) { return (random64() >> 11) / 9007199254740992.0; }

static void *volatile sink;

// What is never freed stays reachable, as in most leaks.
struct object {
    struct object *next;
};
static struct object *volatile kept;
static void keep(void *memory) {
    struct object *object = memory;
    object->next = kept;
    kept = object;
}

FRAME void churn(size_t size) {
    void *p = malloc(size);
    sink = p;
    free(p);
}

static void leaks(const char *function, double bytes_per_second) {
    printf("leaks %s %.0f\n", function, bytes_per_second * speed);
}

// --- leaks

FRAME void leak_session(size_t size) {
    keep(malloc(size));
    STAY;
}

static void *churner(void *rate) {
    uint64_t done = 0;
    for (;; rest())
        for (uint64_t n = due(now(), *(double *)rate / speed, &done, 1); n; n--) churn(64 + n % 200);
    return 0;
}

// Eight threads that allocate a million times a second; one of them leaks.
static void threads(void) {
    static double rate = 125000;
    leaks("leak_session", 102400);
    for (int i = 0; i < 8; i++) {
        pthread_t thread;
        pthread_create(&thread, 0, churner, &rate);
    }
    uint64_t done = 0;
    for (;; rest())
        for (uint64_t n = due(now(), 100, &done, 0); n; n--) leak_session(1024);
}

static void steady(double per_second, size_t size) {
    leaks("leak_session", per_second * size);
    uint64_t done = 0, other = 0;
    for (;; rest()) {
        double t = now();
        for (uint64_t n = due(t, per_second, &done, 0); n; n--) leak_session(size);
        for (uint64_t n = due(t, 500, &other, 1); n; n--) churn(100);
    }
}
static void slow(void) { steady(16, 64); }
static void fast(void) { steady(160, 65536); }

FRAME void *xmalloc(size_t size) {
    void *p = malloc(size);
    STAY;
    return p;
}
FRAME void parse_request(void) {
    void *p = xmalloc(300);
    sink = p;
    free(p);
}
FRAME void render_page(void) {
    static void *last[100];
    static int i;
    free(last[i]);
    last[i] = xmalloc(2000);
    i = (i + 1) % 100;
}
FRAME void log_request(void) {
    keep(xmalloc(200));
    STAY;
}
// A wrapper with three callers, of which one leaks.
static void callers(void) {
    leaks("log_request", 20000);
    uint64_t done = 0;
    for (;; rest())
        for (uint64_t n = due(now(), 100, &done, 0); n; n--) parse_request(), render_page(), log_request();
}

static char *buffer;
static size_t buffer_size;
FRAME void append(size_t size) {
    buffer = realloc(buffer, buffer_size += size);
    buffer[buffer_size - 1] = 1;
}
// A buffer that only ever grows.
static void grow(void) {
    leaks("append", 102400);
    uint64_t done = 0;
    for (;; rest())
        for (uint64_t n = due(now(), 25, &done, 0); n; n--) append(4096);
}

FRAME void map_chunk(void) {
    sink = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    STAY;
}
static void maps(void) {
    leaks("map_chunk", 4 * 65536);
    uint64_t done = 0;
    for (;; rest())
        for (uint64_t n = due(now(), 4, &done, 0); n; n--) map_chunk();
}

// Now and then, at random, in an error path: some are freed in the end.
FRAME void fail_request(void) {
    void *message = malloc(200 + random64() % 400);
    if (random64() % 3 == 0) free(message);
    else keep(message);
}
static void errors(void) {
    leaks("fail_request", 20 * 2 / 3.0 * 399.5);
    uint64_t done = 0;
    for (;; rest())
        for (uint64_t n = due(now(), 20, &done, 0); n; n--) fail_request();
}

static void *idle(void *unused) {
    for (;;) pause();
    return unused;
}
FRAME void spawn_worker(void) {
    pthread_t thread;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 1 << 20);
    pthread_create(&thread, &attr, idle, 0);
}
// Threads that nobody ends. What their stacks take is what they touch of them: not known to the byte.
static void workers(void) {
    leaks("spawn_worker", 0);
    uint64_t done = 0;
    for (;; rest())
        for (uint64_t n = due(now(), 1, &done, 0); n; n--) spawn_worker();
}

FRAME void open_session(void) {
    keep(malloc(500));
    STAY;
}
static void collect(void **objects, uint64_t *count) {
    while (*count) free(objects[--*count]);
}
FRAME void *young_object(void) {
    void *p = malloc(500);
    STAY;
    return p;
}
// A collector's sawtooth, and a leak of a tenth of that beside it.
static void gc_leak(void) {
    static void *objects[100000];
    uint64_t count = 0, done = 0, leaked = 0;
    double next = 12;
    leaks("open_session", 20 * 500);
    for (;; rest()) {
        double t = now();
        for (uint64_t n = due(t, 200, &done, 0); n; n--) objects[count++] = young_object();
        for (uint64_t n = due(t, 20, &leaked, 0); n; n--) open_session();
        if (t >= next) collect(objects, &count), next += 12;
    }
}

// --- no leaks

struct entry {
    struct entry *next;
    char value[440];
};
FRAME struct entry *cache_insert(void) {
    struct entry *entry = malloc(sizeof *entry);
    STAY;
    return entry;
}
// Fills at an even rate until it is full, then evicts the oldest.
static void fifo(const char *kind, double full_after, double per_second) {
    puts(kind);
    uint64_t capacity = full_after * per_second, count = 0, done = 0;
    struct entry *oldest = 0, *newest = 0;
    for (;; rest())
        for (uint64_t n = due(now(), per_second, &done, 0); n; n--) {
            struct entry *entry = cache_insert();
            entry->next = 0;
            if (newest) newest->next = entry;
            else oldest = entry;
            newest = entry;
            if (++count > capacity) {
                struct entry *old = oldest;
                oldest = old->next;
                free(old), count--;
            }
        }
}
static void lru(void) { fifo("harmless", 75, 200); }
static void lru_late(void) { fifo("harmless", 225, 200); }
static void lru_even(void) { fifo("undecidable", 1e9, 200); }

// Keys are asked for at random, as by users: the more are there, the fewer are added.
static void lru_random(void) {
    enum { KEYS = 40000 };
    static struct entry *entries[KEYS];
    puts("harmless");
    uint64_t done = 0;
    for (;; rest())
        for (uint64_t n = due(now(), 400, &done, 0); n; n--) {
            uint64_t key = random64() % KEYS;
            if (!entries[key]) entries[key] = cache_insert();
        }
}

static void sawtooth(double period) {
    static void *objects[1000000];
    uint64_t count = 0, done = 0;
    double next = period;
    puts("harmless");
    for (;; rest()) {
        double t = now();
        for (uint64_t n = due(t, 1000, &done, 0); n; n--) objects[count++] = young_object();
        if (t >= next) collect(objects, &count), next += period;
    }
}
static void gc(void) { sawtooth(20); }
static void gc_slow(void) { sawtooth(70); }

FRAME void load_table(void) {
    keep(malloc(1024));
    STAY;
}
static void warm_up(void) {
    uint64_t done = 0, other = 0;
    puts("harmless");
    for (;; rest()) {
        double t = now();
        for (uint64_t n = due(t < 30 ? t : 30, 1000, &done, 0); n; n--) load_table();
        for (uint64_t n = due(t, 500, &other, 1); n; n--) churn(100);
    }
}

FRAME void *arena_grow(void) {
    void *chunk = malloc(1 << 20);
    memset(chunk, 1, 1 << 20);
    return chunk;
}
// A pool that takes what it needs at its busiest, gives objects out and takes them back, and returns nothing.
static void arena(void) {
    enum { SLOT = 1024, SLOTS = 64 << 10 };
    static void *free_slots[SLOTS], *used[SLOTS];
    uint64_t free_count = 0, used_count = 0, done = 0;
    puts("harmless");
    for (;; rest())
        for (uint64_t n = due(now(), 2000, &done, 1); n; n--) {
            // Ever busier until 60 s, then up and down below that.
            double t = now(), busy = t < 60 ? t / 60 : 0.5 + 0.4 * ((uint64_t)(t / 20) % 2);
            uint64_t wanted = busy * (SLOTS / 2);
            if (used_count < wanted) {
                if (!free_count)
                    for (char *chunk = arena_grow(), *end = chunk + (1 << 20); chunk < end; chunk += SLOT)
                        free_slots[free_count++] = chunk;
                used[used_count++] = free_slots[--free_count];
            } else if (used_count) {
                uint64_t i = random64() % used_count;
                free_slots[free_count++] = used[i];
                used[i] = used[--used_count];
            }
        }
}

FRAME void *ring_message(void) {
    void *p = malloc(100 + random64() % 900);
    STAY;
    return p;
}
static void ring(void) {
    static void *slots[5000];
    uint64_t done = 0, at = 0;
    puts("harmless");
    for (;; rest())
        for (uint64_t n = due(now(), 400, &done, 0); n; n--) {
            free(slots[at]);
            slots[at] = ring_message();
            at = (at + 1) % 5000;
        }
}

// Ten seconds of work, all freed, five seconds of rest.
static void batch(void) {
    static void *objects[1000000];
    uint64_t count = 0, done = 0;
    puts("harmless");
    for (;; rest()) {
        double t = now(), cycle = t - (uint64_t)(t / 15) * 15;
        uint64_t n = due(t, 500, &done, 1);
        if (cycle < 10)
            for (; n; n--) objects[count++] = young_object();
        else
            collect(objects, &count);
    }
}

static void many(void) {
    static double rate = 200000;
    puts("harmless");
    churner(&rate);
}

struct connection {
    char *in, *out;
};
FRAME void connect_one(struct connection *connection) {
    connection->in = malloc(16384);
    connection->out = malloc(16384);
}
// Ever more slowly towards its maximum, which it reaches after some 100 s.
static void pool(void) {
    static struct connection connections[400];
    uint64_t count = 0, done = 0;
    puts("harmless");
    for (;; rest()) {
        for (uint64_t n = due(now(), 20, &done, 0); n && count < 400; n--)
            if (random64() % 400 >= count) connect_one(&connections[count++]);
    }
}

struct timed {
    double until;
    void *memory;
};
FRAME void *new_request(void) {
    void *p = malloc(1000);
    STAY;
    return p;
}
// Objects live for a random time of `mean` s; `rate` of them begin each second, at `t`.
static void lives(double (*rate)(double), double mean) {
    enum { MAX = 200000 };
    static struct timed heap[MAX];
    uint64_t count = 0;
    double last = 0, owed = 0;
    puts("harmless");
    for (;; rest()) {
        double t = now();
        for (owed += (t - last) * rate(t); owed >= 1 && count < MAX; owed--) {
            double u = random01();
            // -ln(u) without libm: by its series around powers of two.
            int e = 0;
            while (u < 0.5) u *= 2, e++;
            double x = (1 - u) / (1 + u), y = 2 * (x + x * x * x / 3 + x * x * x * x * x / 5);
            struct timed new = {t + mean * (y + e * 0.693147), new_request()};
            uint64_t i = count++;
            for (; i && heap[(i - 1) / 2].until > new.until; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
            heap[i] = new;
        }
        last = t;
        while (count && heap[0].until <= t) {
            free(heap[0].memory);
            struct timed moved = heap[--count];
            uint64_t i = 0, child;
            for (; (child = 2 * i + 1) < count; i = child) {
                if (child + 1 < count && heap[child + 1].until < heap[child].until) child++;
                if (moved.until <= heap[child].until) break;
                heap[i] = heap[child];
            }
            heap[i] = moved;
        }
    }
}
static double growing_load(double t) { return 50 + t; }
static double even_load(double t) { return t >= 0 ? 100 : 0; }
static void load(void) { lives(growing_load, 2); }
static void sessions(void) { lives(even_load, 30); }

static const struct {
    const char *name;
    void (*run)(void);
} MODES[] = {
    {"threads", threads}, {"slow", slow},         {"fast", fast},         {"callers", callers},
    {"grow", grow},       {"maps", maps},         {"errors", errors},     {"workers", workers},
    {"gc-leak", gc_leak}, {"lru", lru},           {"lru-late", lru_late}, {"lru-random", lru_random},
    {"gc", gc},           {"gc-slow", gc_slow},   {"warm-up", warm_up},   {"arena", arena},
    {"ring", ring},       {"batch", batch},       {"many", many},         {"pool", pool},
    {"load", load},       {"sessions", sessions}, {"lru-even", lru_even},
};

int main(int argc, char **argv) {
    if (argc > 2) speed = atof(argv[2]);
    started = now() / speed;
    setvbuf(stdout, 0, _IOLBF, 0);
    for (size_t i = 0; argc > 1 && i < sizeof MODES / sizeof *MODES; i++)
        if (!strcmp(argv[1], MODES[i].name)) MODES[i].run();
    fprintf(stderr, "usage: leak MODE [SPEED]\n");
    return 2;
}
