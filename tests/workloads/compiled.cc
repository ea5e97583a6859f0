// What C++ compiles to: virtual and std::function calls, exceptions thrown through several frames, sorting and
// recursion, in the main thread and in one more. Runs until it is killed.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

uint64_t next(uint64_t &state) { return state = state * 6364136223846793005ull + 1442695040888963407ull; }

struct Shape {
    virtual ~Shape() = default;
    virtual uint64_t weight(uint64_t seed) const = 0;
};

struct Leaf : Shape {
    [[gnu::noinline]] uint64_t weight(uint64_t seed) const override {
        for (int i = 0; i < 50; i++) next(seed);
        return seed;
    }
};

struct Node : Shape {
    std::unique_ptr<Shape> left, right;
    Node(std::unique_ptr<Shape> l, std::unique_ptr<Shape> r) : left(std::move(l)), right(std::move(r)) {}
    [[gnu::noinline]] uint64_t weight(uint64_t seed) const override {
        return left->weight(seed) ^ right->weight(seed + 1);
    }
};

std::unique_ptr<Shape> tree(int depth) {
    if (depth == 0) return std::make_unique<Leaf>();
    return std::make_unique<Node>(tree(depth - 1), tree(depth - 1));
}

[[gnu::noinline]] uint64_t thrower(int depth, uint64_t seed) {
    std::string owned(40 + depth, 'x');
    if (depth == 0) throw std::runtime_error(owned);
    return thrower(depth - 1, seed) + owned.size();
}

[[gnu::noinline]] uint64_t catches(uint64_t seed) {
    try {
        return thrower(static_cast<int>(seed % 12), seed);
    } catch (const std::runtime_error &error) {
        return std::string(error.what()).size();
    }
}

[[gnu::noinline]] uint64_t sorts(uint64_t seed) {
    std::vector<std::string> words;
    for (int i = 0; i < 500; i++) words.push_back(std::to_string(next(seed)));
    std::sort(words.begin(), words.end(), [](const auto &a, const auto &b) { return a > b; });
    std::map<std::string, uint64_t> counts;
    for (const auto &word : words) counts[word.substr(0, 3)]++;
    return counts.size();
}

// A frame that the compiler aligns itself.
[[gnu::noinline]] uint64_t aligned(uint64_t seed, const std::function<uint64_t(uint64_t)> &call) {
    alignas(64) volatile uint64_t lanes[8] = {};
    for (int i = 0; i < 8; i++) lanes[i] = call(seed + i);
    return lanes[seed % 8];
}

[[noreturn]] void work(uint64_t seed) {
    auto root = tree(9);
    std::vector<std::function<uint64_t(uint64_t)>> jobs = {
        [&](uint64_t x) { return root->weight(x); },
        [](uint64_t x) { return catches(x); },
        [](uint64_t x) { return sorts(x); },
        [&](uint64_t x) { return aligned(x, [&](uint64_t y) { return catches(x ^ y); }); },
    };
    for (volatile uint64_t sum = 0;;) sum = sum + jobs[next(seed) % jobs.size()](seed >> 32);
}

}  // namespace

int main() {
    std::puts("ready");
    std::fflush(stdout);
    std::thread(work, 1).detach();
    work(2);
}
