/* Waits for its flag and then takes the machine down by a signal to its first process. */
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    const struct timespec moment = {.tv_nsec = 20 * 1000 * 1000};
    mlockall(MCL_CURRENT | MCL_FUTURE);
    while (access("/usr/local/sbin/shutdown-is-due", F_OK) != 0) nanosleep(&moment, NULL);
    return kill(1, SIGTERM);
}
