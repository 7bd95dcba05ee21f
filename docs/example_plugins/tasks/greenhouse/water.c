/* ./water: asks the lab to water a plant, over the console's abstract socket, and prints the answer.
 * The first byte of the answer is 's': the rest is what to print. */
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "\0console"};
    char answer[4096];
    size_t got = 0;
    ssize_t n;
    int line = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(line, (void *)&at, sizeof(sa_family_t) + 8) || write(line, "water\n", 6) != 6) return 1;
    while ((n = read(line, answer + got, sizeof answer - 1 - got)) > 0) got += (size_t)n;
    if (got < 1 || answer[0] != 's') return 1;
    answer[got] = 0;
    puts(answer + 1);
    return 0;
}
