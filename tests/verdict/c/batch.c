// Healthy: computes without a pause.
#include <stdio.h>

__attribute__((noinline)) static double integrate(int steps) {
    double sum = 0;
    for (int i = 1; i <= steps; i++) sum += 1.0 / ((double)i * i);
    return sum;
}

int main(void) {
    puts("ready");
    fflush(stdout);
    volatile double sum = 0;
    // Volatile, or the sum is computed once and then added up.
    for (volatile int steps = 10000000;;) sum += integrate(steps);
}
