// Stopped by a signal: it does nothing at all until somebody continues it. Says so before by forking a witness.
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(void) {
    puts("ready");
    fflush(stdout);
    raise(SIGSTOP);
    for (;;) pause();
}
