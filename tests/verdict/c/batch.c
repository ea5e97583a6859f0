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
    for (volatile double sum = 0;;) sum += integrate(10000000);
}
