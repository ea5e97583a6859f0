// Programs that leak or do not, in C++: `leak MODE [SPEED]`, as leak.c.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>

static double speed = 1;
static const auto started = std::chrono::steady_clock::now();

// The program's own time, s.
static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count() * speed;
}

// Calls `each` `rate` times a second for ever.
template <typename F> static void paced(double rate, F each) {
    for (unsigned long done = 0;; std::this_thread::sleep_for(std::chrono::milliseconds(5)))
        for (unsigned long all = now() * rate; done < all; done++) each();
}

struct Session {
    Session *next;
    char state[1000];
};
static Session *volatile sessions;

[[gnu::noinline]] void open_session() {
    auto *session = new Session;
    session->next = sessions;
    sessions = session;
}

[[gnu::noinline]] void remember(std::map<unsigned long, std::string> &cache, unsigned long key) {
    cache[key] = std::string(300, 'x');
    if (cache.size() > 3000) cache.erase(cache.begin());
}

int main(int argc, char **argv) {
    std::string mode = argc > 1 ? argv[1] : "";
    if (argc > 2) speed = atof(argv[2]);
    setvbuf(stdout, nullptr, _IOLBF, 0);
    if (mode == "new") {
        printf("leaks open_session %.0f\n", 50 * sizeof(Session) * speed);
        paced(50, open_session);
    } else if (mode == "map") {
        puts("harmless");
        std::map<unsigned long, std::string> cache;
        unsigned long key = 0;
        paced(200, [&] { remember(cache, key++); });
    }
    fprintf(stderr, "usage: leak new|map [SPEED]\n");
    return 2;
}
