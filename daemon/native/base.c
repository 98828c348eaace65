#define _GNU_SOURCE
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

_Noreturn void fail(int code, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vdprintf(STDERR_FILENO, format, list);
    va_end(list);
    _exit(code);
}

void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

ssize_t read_at(int at, const char *name, char *to, size_t room)
{
    int fd = openat(at, name, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, to, room - 1);
    close_fd(&fd);
    to[got > 0 ? got : 0] = 0;
    return got;
}

bool write_at(int at, const char *name, const char *text)
{
    int fd = openat(at, name, O_WRONLY | O_CLOEXEC);
    bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    int error = errno;
    close_fd(&fd);
    errno = error;
    return good;
}

void default_signals(void)
{
    static const uint64_t by_default[4]; /* struct kernel_sigaction; a libc keeps its own signals, 32 to 34, from us */
    for (int number = 1; number < NSIG; number++)
        syscall(SYS_rt_sigaction, number, by_default, NULL, sizeof(uint64_t));
}

int set_capabilities(uint64_t effective, uint64_t inheritable)
{
    struct cap_head head = {CAP_VERSION_3, 0};
    struct cap_data data[2] = {
        {(uint32_t)effective, (uint32_t)effective, (uint32_t)inheritable},
        {(uint32_t)(effective >> 32), (uint32_t)(effective >> 32), (uint32_t)(inheritable >> 32)},
    };
    return (int)syscall(SYS_capset, &head, data);
}
