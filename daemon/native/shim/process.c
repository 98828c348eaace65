/* Time, and processes as /proc has them. */
#define _GNU_SOURCE
#include "shim.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

long long clock_ns(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

bool process(pid_t pid, pid_t *parent, unsigned long long *start)
{
    char name[32], text[512];
    snprintf(name, sizeof name, "/proc/%d/stat", pid);
    if (read_at(AT_FDCWD, name, text, sizeof text) <= 0)
        return false;
    char *end = strrchr(text, ')'); /* a name may contain anything */
    return end && sscanf(end + 1, " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                         parent, start) == 2;
}

bool descends(pid_t pid)
{
    unsigned long long start;
    for (int depth = 0; depth < 4096 && pid > 1; depth++) {
        pid_t parent;
        if (!process(pid, &parent, &start))
            return false;
        if (parent == shim.self)
            return true;
        pid = parent;
    }
    return false;
}

/* Send a signal to a descendant, never to another process that has its number by now. */
static void signal_descendant(pid_t pid, int number)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return;        /* it has ended */
    if (descends(pid)) /* asked again: now it is known of whom this is true, if it is */
        syscall(SYS_pidfd_send_signal, fd, number, NULL, 0);
    close(fd);
}

pid_t descendants(int number)
{
    pid_t first = 0, parent;
    unsigned long long start;
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (pid <= 1 || !descends(pid))
            continue;
        if (number)
            signal_descendant(pid, number);
        if (!first && process(pid, &parent, &start) && parent == shim.self)
            first = pid;
    }
    if (proc)
        closedir(proc);
    return first;
}
