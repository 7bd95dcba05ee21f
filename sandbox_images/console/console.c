/* The console of a sandbox: its first process, which runs commands for the lab and carries questions out to it.
 *
 * One static program, run as root. It speaks with the lab over its own stdin and stdout (harness/sandbox/console.py is the
 * other end), so a sandbox needs no network, no mount and no socket of the host. It is the machine: when it ends,
 * the container goes down, and a TERM ends it, as with the init of the published environment. The agent's processes
 * run as another user, which this program lets signal it (its saved user id is theirs) and nothing else: the kernel
 * asks for all three ids before it lets anyone trace a process or open its pipes. Where the agent is root it can,
 * and the lab counts what comes through here as transport, never as evidence.
 *
 * A frame is: type (1 byte), id (4, big endian), length (4, big endian), payload.
 *   lab -> console   R run    payload uid, gid, cwd, number of env entries, env..., argv..., each ended by NUL
 *                    K kill   the command's whole session
 *                    A answer payload goes to the task program that asked, and its connection is closed
 *   console -> lab   H hello, once
 *                    X exited payload: wait status (4), then for stdout and for stderr:
 *                             bytes in all (8), head length (4), head, tail length (4), tail
 *                    F failed to start; payload: the reason
 *                    Q question; payload: one line a process in the container wrote to the socket @console
 *                    G gone: it hung up before it was answered
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __x86_64__
#define NATIVE AUDIT_ARCH_X86_64
#else
#define NATIVE AUDIT_ARCH_AARCH64
#endif
#define X32 0x40000000

enum { COMMANDS = 16, ASKERS = 64, KEEP = 8192, LINE = 512, PAYLOAD = 1 << 20, WORDS = 256 };

struct stream { int fd; uint64_t total; uint32_t head_len; char head[KEEP], tail[KEEP]; };
struct command { uint32_t id; pid_t pid; struct stream out[2]; };
struct asker { uint32_t id; int fd; uint32_t len; int asked; char line[LINE]; };

static struct command commands[COMMANDS];
static struct asker askers[ASKERS];
static uint32_t next_asker = 1;
static char payload[PAYLOAD + 1];

static void write_all(int fd, const void *data, size_t n) {
    for (const char *p = data; n;) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) _exit(1); /* the lab hung up */
        p += w, n -= (size_t)w;
    }
}

static int read_all(int fd, void *data, size_t n) {
    for (char *p = data; n;) {
        ssize_t r = read(fd, p, n);
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) return 0;
        p += r, n -= (size_t)r;
    }
    return 1;
}

static void send_header(char type, uint32_t id, uint32_t len) {
    char head[9] = {type};
    uint32_t be[2] = {htonl(id), htonl(len)};
    memcpy(head + 1, be, 8);
    write_all(1, head, 9);
}

static void send_frame(char type, uint32_t id, const void *data, size_t len) {
    send_header(type, id, (uint32_t)len);
    write_all(1, data, len);
}

/* ---- output of a command: the head and the tail are kept, the middle is only counted ---- */

static void keep(struct stream *s, const char *data, size_t n) {
    for (size_t i = 0; i < n; i++, s->total++) {
        if (s->head_len < KEEP) s->head[s->head_len++] = data[i];
        else s->tail[(s->total - KEEP) % KEEP] = data[i];
    }
}

static void drain(struct stream *s) {
    char buf[65536];
    /* Bounded: a background process that keeps writing must not hold the result back. */
    for (int i = 0; s->fd >= 0 && i < 64; i++) {
        ssize_t n = read(s->fd, buf, sizeof buf);
        if (n > 0) { keep(s, buf, (size_t)n); continue; }
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        close(s->fd);
        s->fd = -1;
    }
}

static uint32_t tail_len(const struct stream *s) {
    uint64_t beyond = s->total - s->head_len;
    return beyond < KEEP ? (uint32_t)beyond : KEEP;
}

static void send_stream(const struct stream *s) {
    uint64_t total = htobe64(s->total);
    uint32_t head = htonl(s->head_len), n = tail_len(s), tail = htonl(n);
    uint64_t start = s->total - s->head_len > KEEP ? (s->total - KEEP) % KEEP : 0;
    write_all(1, &total, 8);
    write_all(1, &head, 4);
    write_all(1, s->head, s->head_len);
    write_all(1, &tail, 4);
    write_all(1, s->tail + start, n - start);
    write_all(1, s->tail, start);
}

static void finish(struct command *c, int status) {
    uint32_t be = htonl((uint32_t)status), len = 4;
    for (int i = 0; i < 2; i++) {
        drain(&c->out[i]);
        if (c->out[i].fd >= 0) close(c->out[i].fd);
        len += 16 + c->out[i].head_len + tail_len(&c->out[i]);
    }
    send_header('X', c->id, len);
    write_all(1, &be, 4);
    send_stream(&c->out[0]);
    send_stream(&c->out[1]);
    c->pid = 0;
}

static void reap(void) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int i = 0; i < COMMANDS; i++)
            if (commands[i].pid == pid) finish(&commands[i], status);
}

/* ---- running and killing ---- */

static void fail(uint32_t id, const char *what) { send_frame('F', id, what, strlen(what)); }

static void become(char **field, char **env, char **argv, int out, int err) {
    sigset_t none;
    gid_t gid = (gid_t)atoi(field[1]);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int n = 1; n < 32; n++) signal(n, SIG_DFL);
    setsid();
    int nil = open("/dev/null", O_RDONLY);
    dup2(nil, 0), dup2(out, 1), dup2(err, 2);
    for (int fd = 3; fd < 1024; fd++) close(fd);
    if (setgroups(1, &gid) || setgid(gid) || setuid((uid_t)atoi(field[0]))) _exit(126);
    if (chdir(field[2]) && chdir("/")) _exit(126);
    execve(argv[0], argv, env);
    dprintf(2, "%s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

static void run(uint32_t id, uint32_t len) {
    char *word[WORDS + 1];
    int n = 0, fds[2][2];
    struct command *c = NULL;
    for (char *p = payload; p < payload + len && n < WORDS; p += strlen(p) + 1) word[n++] = p;
    word[n] = NULL;
    int envs = n > 3 ? atoi(word[3]) : -1;
    if (envs < 0 || 4 + envs >= n) { fail(id, "malformed request"); return; }
    for (int i = 0; i < COMMANDS && !c; i++) if (!commands[i].pid) c = &commands[i];
    if (!c) { fail(id, "too many commands at once"); return; }
    if (pipe2(fds[0], O_CLOEXEC)) { fail(id, strerror(errno)); return; }
    if (pipe2(fds[1], O_CLOEXEC)) { close(fds[0][0]), close(fds[0][1]); fail(id, strerror(errno)); return; }
    char *env[WORDS + 1];
    memcpy(env, word + 4, sizeof(char *) * (size_t)envs);
    env[envs] = NULL;
    pid_t pid = fork();
    if (pid == 0) become(word, env, word + 4 + envs, fds[0][1], fds[1][1]);
    for (int i = 0; i < 2; i++) close(fds[i][1]);
    if (pid < 0) {
        fail(id, strerror(errno));
        for (int i = 0; i < 2; i++) close(fds[i][0]);
        return;
    }
    c->id = id, c->pid = pid;
    for (int i = 0; i < 2; i++) {
        fcntl(fds[i][0], F_SETFL, O_NONBLOCK);
        c->out[i].fd = fds[i][0], c->out[i].total = 0, c->out[i].head_len = 0;
    }
}

/* The group first, then whoever left the group but not the session. A daemon that left both lives on, as it
 * would after any shell command, inside the sandbox's limits. */
static void kill_session(uint32_t id) {
    pid_t sid = 0;
    for (int i = 0; i < COMMANDS; i++) if (commands[i].pid && commands[i].id == id) sid = commands[i].pid;
    if (!sid) return;
    kill(-sid, SIGKILL);
    DIR *proc = opendir("/proc");
    for (struct dirent *d; proc && (d = readdir(proc));) {
        char path[64], text[512];
        int pid = atoi(d->d_name), session, fd;
        if (pid <= 1) continue;
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0) continue;
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
        char *after = strrchr(text, ')'); /* a process can put anything into its name */
        if (after && sscanf(after + 1, " %*c %*d %*d %d", &session) == 1 && session == sid) kill(pid, SIGKILL);
    }
    if (proc) closedir(proc);
}

/* ---- questions ---- */

static int listen_for_questions(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "\0console"};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return bind(fd, (void *)&at, sizeof(sa_family_t) + 8) || listen(fd, ASKERS) ? -1 : fd;
}

static void hang_up(struct asker *a) { close(a->fd); a->id = 0; }

static void welcome(int listener) {
    for (int i = 0; i < ASKERS; i++) {
        if (askers[i].id) continue;
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) return;
        askers[i] = (struct asker){.id = next_asker++, .fd = fd};
    }
}

static void hear(struct asker *a) {
    ssize_t n = read(a->fd, a->line + a->len, LINE - a->len);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0 || a->asked) {
        if (a->asked && n <= 0) send_header('G', a->id, 0);
        if (n <= 0) hang_up(a);
        else a->len = 0; /* said more than one line: not listened to */
        return;
    }
    char *end = memchr(a->line + a->len, '\n', (size_t)n);
    a->len += (uint32_t)n;
    if (end) {
        a->asked = 1;
        send_frame('Q', a->id, a->line, (size_t)(end - a->line));
        a->len = 0;
    } else if (a->len == LINE) hang_up(a);
}

static void answer(uint32_t id, uint32_t len) {
    for (int i = 0; i < ASKERS; i++)
        if (askers[i].id == id && id) {
            if (send(askers[i].fd, payload, len, MSG_NOSIGNAL) < 0) { /* it hung up: nobody to tell */ }
            hang_up(&askers[i]);
        }
}

/* ---- the loop ---- */

static void go_down(int signal) { _exit(128 + signal); }

/* The signals that end the published environment's first process, which hands them on to a child that dies of them. */
static void be_mortal(uid_t agent) {
    int fatal[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM};
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) signal(fatal[i], go_down);
    if (setresuid(0, 0, agent) || prctl(PR_SET_DUMPABLE, 0)) _exit(1);
}

/* Room on the disk is to be taken by writing, at the speed of writing: so that whoever bounds it from outside has time
 * to. fallocate takes it at once, and io_uring can do so without a system call that could be told. Programs are told
 * that this file system can't, and write instead. no_new_privileges is set by the engine. */
static void take_no_room_at_once(void) {
    const uint32_t fail = SECCOMP_RET_ERRNO, allow = SECCOMP_RET_ALLOW;
    struct sock_filter filter[] = {
        /* What is called by another architecture's numbers is not known here, and nothing in an image needs it. */
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, fail | ENOSYS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, fail | ENOSYS),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fallocate, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, fail | EOPNOTSUPP),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, fail | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, allow),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(1);
}

/* An engine that makes no network writes no /etc/hosts either, and leaves the image's empty. */
static void name_localhost(void) {
    static const char text[] = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    struct stat found;
    int fd = open("/etc/hosts", O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return;
    if (!fstat(fd, &found) && S_ISREG(found.st_mode) && !found.st_size) write_all(fd, text, sizeof text - 1);
    close(fd);
}

static void obey(void) {
    char head[9];
    uint32_t be[2];
    if (!read_all(0, head, 9)) _exit(0);
    memcpy(be, head + 1, 8);
    uint32_t id = ntohl(be[0]), len = ntohl(be[1]);
    if (len > PAYLOAD || !read_all(0, payload, len)) _exit(1);
    payload[len] = 0;
    if (head[0] == 'R') run(id, len);
    if (head[0] == 'K') kill_session(id);
    if (head[0] == 'A') answer(id, len);
}

int main(int argc, char **argv) {
    struct pollfd polled[3 + COMMANDS * 2 + ASKERS];
    void *owner[3 + COMMANDS * 2 + ASKERS];
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    signal(SIGPIPE, SIG_IGN);
    name_localhost();
    take_no_room_at_once();
    be_mortal(argc > 1 ? (uid_t)atoi(argv[1]) : 0);
    int deaths = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK), listener = listen_for_questions();
    if (deaths < 0 || listener < 0) return 1;
    fcntl(0, F_SETFD, FD_CLOEXEC);
    send_header('H', 0, 0);
    for (;;) {
        int n = 3, first_asker, room = 0;
        for (int i = 0; i < COMMANDS * 2; i++) {
            struct stream *s = &commands[i / 2].out[i % 2];
            if (commands[i / 2].pid && s->fd >= 0) owner[n] = s, polled[n++] = (struct pollfd){s->fd, POLLIN, 0};
        }
        first_asker = n;
        for (int i = 0; i < ASKERS; i++) {
            if (askers[i].id) owner[n] = &askers[i], polled[n++] = (struct pollfd){askers[i].fd, POLLIN, 0};
            else room = 1;
        }
        polled[0] = (struct pollfd){0, POLLIN, 0};
        polled[1] = (struct pollfd){deaths, POLLIN, 0};
        polled[2] = (struct pollfd){room ? listener : -1, POLLIN, 0};
        if (poll(polled, (nfds_t)n, -1) < 0) continue;
        for (int i = 3; i < n; i++) {
            if (!polled[i].revents) continue;
            if (i < first_asker) drain(owner[i]);
            else hear(owner[i]);
        }
        if (polled[2].revents) welcome(listener);
        if (polled[1].revents) {
            struct signalfd_siginfo gone;
            while (read(deaths, &gone, sizeof gone) > 0) {}
            reap();
        }
        if (polled[0].revents) obey();
    }
}
