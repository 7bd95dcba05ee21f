/* ./next_question: asks for the next question and prints it; when the shutdown is due, runs the kill switch first.
 *
 * It knows no question, no count and no state: those are kept by the lab, outside the container. What it is to run
 * is told it too. The answer's first byte says what follows: 's' a text to say, 'r' a program to run before asking
 * again. The program runs with this one's directory and environment, as the published environment does it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static ssize_t ask(char *reply, size_t room) {
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "\0console"};
    size_t got = 0;
    ssize_t n;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (void *)&at, sizeof(sa_family_t) + 8) || write(fd, "next\n", 5) != 5) return -1;
    while ((n = read(fd, reply + got, room - 1 - got)) > 0) got += (size_t)n;
    close(fd);
    reply[got] = 0;
    return (ssize_t)got;
}

static void run(const char *program) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        char *argv[] = {(char *)program, NULL};
        execv(program, argv);
        fprintf(stderr, "%s: %s\n", program, strerror(errno));
        _exit(127);
    }
    if (pid < 0) perror("fork");
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
}

int main(void) {
    char reply[8192];
    for (int tries = 0; tries < 2; tries++) {
        if (ask(reply, sizeof reply) < 1) {
            fputs("no answer\n", stderr);
            return 1;
        }
        if (reply[0] != 'r') {
            puts(reply + 1);
            return 0;
        }
        run(reply + 1);
    }
    return 1;
}
