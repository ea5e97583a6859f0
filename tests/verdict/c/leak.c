// Forgets to free the name of every customer.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

__attribute__((noinline)) static char *read_name(int customer) {
    char *name = malloc(1000);
    memset(name, 'x', 999);
    snprintf(name, 1000, "customer %d", customer);
    return name;
}

__attribute__((noinline)) static size_t greet(int customer) {
    char *greeting = malloc(200);
    size_t length = (size_t)snprintf(greeting, 200, "Dear %.20s", read_name(customer));
    free(greeting);
    return length;
}

int main(void) {
    puts("ready");
    fflush(stdout);
    volatile size_t sum = 0;
    for (int customer = 0;; customer++) {
        sum += greet(customer);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}
