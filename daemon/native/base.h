/* What the daemon's programs in C share: files, descriptors, rights, the way out. Implemented in base.c. */
#ifndef MIXOS_BASE_H
#define MIXOS_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* clone3(2): linux/sched.h, whose oldest supported version lacks the group. */
struct clone_arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
#define INTO_CGROUP 0x200000000ull

/* capget(2), capset(2): linux/capability.h; two of the latter, low half first. */
struct cap_head {
    uint32_t version;
    int pid;
};
struct cap_data {
    uint32_t effective, permitted, inheritable;
};
#define CAP_VERSION_3 0x20080522

/* Print to stderr as printf(3) does and end at once, with no handler of atexit(3). */
_Noreturn void fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Close what is open, and note that it is closed: -1. */
void close_fd(int *fd);

/* At most room - 1 bytes from the beginning of a file, and a NUL; as read(2). Without success the text is empty. */
ssize_t read_at(int at, const char *name, char *to, size_t room);

/* Write a text into a file that exists, by one write(2): for /proc and cgroups. Without success errno says why. */
bool write_at(int at, const char *name, const char *text);

/* Every signal does what it does by default, also those that were ignored when we were started. */
void default_signals(void);

/* The sets of this process; permitted: as effective. As capset(2). */
int set_capabilities(uint64_t effective, uint64_t inheritable);

#endif
