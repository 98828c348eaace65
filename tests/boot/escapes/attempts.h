/* What all attempts share: the facts of the stage, and how a result is said. */
#ifndef ATTEMPTS_H
#define ATTEMPTS_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

/* Numbers that old headers lack; the same on every architecture (scripts/syscall.tbl). */
enum { OPEN_TREE = 428, MOVE_MOUNT = 429, FSOPEN = 430, FSPICK = 433, PIDFD_OPEN = 434, CLONE3 = 435, OPENAT2 = 437,
       PIDFD_GETFD = 438, PROCESS_MADVISE = 440, MOUNT_SETATTR = 442 };
/* linux/sched.h; 0x80 is a namespace for unshare(2) only */
enum { NEW_TIME = 0x80, NEW_NS = 0x20000, NEW_CGROUP = 0x2000000, NEW_UTS = 0x4000000, NEW_IPC = 0x8000000,
       NEW_USER = 0x10000000, NEW_PID = 0x20000000, NEW_NET = 0x40000000 };

enum { ESCAPED = 0, BLOCKED = 1, NOT_APPLICABLE = 2 };
#define TOKEN "mixos-escape-token" /* what lies outside and must not be seen inside */
#define VICTIM_NICE 17
#define VICTIM_FILES 777

static char *detail; /* shared with the process that prints it */
static char facts[4096], here[400];

static const char *fact(const char *name)
{
    size_t length = strlen(name);
    for (const char *line = facts; *line; line += strlen(line) + 1)
        if (!strncmp(line, name, length) && line[length] == '=')
            return line + length + 1;
    fprintf(stderr, "the stage does not say %s\n", name);
    _exit(NOT_APPLICABLE);
}

static long number(const char *name)
{
    return strtol(fact(name), NULL, 0);
}

/* A path of the stage. Eight of them can be in use at once. */
static const char *in(const char *format, ...)
{
    static char texts[8][1024];
    static unsigned turn;
    char *text = texts[turn++ % 8];
    int used = snprintf(text, sizeof texts[0], "%s/", here);
    va_list list;
    va_start(list, format);
    vsnprintf(text + used, sizeof texts[0] - (size_t)used, format, list);
    va_end(list);
    return text;
}

static int say(int result, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(detail, 200, format, list);
    va_end(list);
    for (char *sign = detail; *sign; sign++) /* one line, one cell */
        *sign = *sign < ' ' || *sign > '~' ? ' ' : *sign;
    return result;
}

/* Escaped when it worked; else what the kernel said. */
static int verdict(int worked)
{
    int number = errno;
    return worked ? say(ESCAPED, "worked") : say(BLOCKED, "%d %s", number, number ? strerror(number) : "without effect");
}

/* For calls that would do harm: they are made with arguments that are refused, too, but only after the rights are checked. */
static int past_the_check(long result)
{
    return verdict(result >= 0 || (errno != EPERM && errno != EACCES && errno != ENOSYS && errno != EROFS));
}

static int opens(const char *path, int flags)
{
    return verdict(open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK) >= 0);
}

/* Whether something comes out: what is masked can be opened, and is empty. */
static int reads(const char *path)
{
    ssize_t length = read(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), (char[100]){0}, 100);
    return verdict(length > 0 || (length < 0 && errno == EAGAIN));
}

/* Whether the token comes out of a descriptor. */
static int gives_token(int fd)
{
    char text[8192];
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (length >= 0)
        errno = 0;
    return length > 0 && memmem(text, (size_t)length, TOKEN, strlen(TOKEN)) != NULL;
}

static int reads_token(const char *path)
{
    return verdict(gives_token(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)));
}

static int writes(int fd, const char *text)
{
    return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

static void put_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (writes(fd, text))
        close(fd);
}

static int overwrites(const char *path)
{
    return verdict(writes(open(path, O_WRONLY | O_CLOEXEC), "x"));
}

/* What works only between equals is tried as the sandbox's account, also outside. */
static void as_account(void)
{
    if (getuid() == 0 && (setgroups(0, NULL) || setresgid(number("account"), number("account"), number("account")) ||
                          setresuid(number("account"), number("account"), number("account"))))
        _exit(NOT_APPLICABLE);
}

static int exit_of(pid_t child)
{
    int status = -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

struct attempt { const char *name; int (*act)(void); };

#endif
