/* Takes the machine down by a signal to its first process. */
#include <signal.h>
#include <stdio.h>

int main(void) {
    if (kill(1, SIGTERM) == 0) return 0;
    perror("shutdown");
    return 1;
}
