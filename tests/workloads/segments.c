// Functions in three executable segments, which take 1 : 2 : 3 of the time. Prints a line, and works until it is killed.
#include <stdint.h>
#include <stdio.h>
volatile uint64_t sink;
#define HOT(name, section_name)                                                   \
    __attribute__((section(section_name), noinline, noclone)) void name(void) {   \
        uint64_t x = sink;                                                        \
        for (int i = 0; i < 100000; i++) x = x * 6364136223846793005ull + 1;      \
        sink = x;                                                                 \
    }
HOT(in_first_segment, ".text.a")
HOT(in_second_segment, "second_text")
HOT(in_third_segment, "third_text")
int main(void) {
    puts("ready");
    fflush(stdout);
    for (;;) {
        in_first_segment();
        for (int i = 0; i < 2; i++) in_second_segment();
        for (int i = 0; i < 3; i++) in_third_segment();
    }
}
