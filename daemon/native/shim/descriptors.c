/* Descriptors that are kept for the service, and those that come with a message. */
#define _GNU_SOURCE
#include "shim.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct kept kept[KEPT];
int kept_count;
static int kept_own;

/* Whether two descriptors are of one open file (open(2)); where the kernel does not tell (kcmp(2)), whether nothing tells
 * them apart. Many files without a type of their own (eventfd(2), ...) share an inode: these always differ then. */
static bool same(int one, int other)
{
    struct stat first, second;
    long order = syscall(SYS_kcmp, shim.self, shim.self, KCMP_FILE, one, other);
    if (order >= 0)
        return order == 0;
    return fstat(one, &first) == 0 && fstat(other, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino &&
           (S_ISREG(first.st_mode) || S_ISFIFO(first.st_mode) || S_ISSOCK(first.st_mode)) &&
           fcntl(one, F_GETFL) == fcntl(other, F_GETFL) && lseek(one, 0, SEEK_CUR) == lseek(other, 0, SEEK_CUR);
}

bool keep(const char *name, int fd, bool own, bool watched)
{
    for (int i = 0; own && i < kept_count; i++)
        if (kept[i].own && same(kept[i].fd, fd))
            return false;
    if (!*name || strlen(name) > NAME || strpbrk(name, ": ") || kept_count == KEPT ||
        (own && kept_own >= spec.fd_store))
        return false;
    for (const char *c = name; *c; c++)
        if (*c < '!' || *c > '~')
            return false;
    struct kept *entry = &kept[kept_count++];
    strcpy(entry->name, name);
    entry->fd = fd;
    entry->own = own;
    entry->watched = watched;
    kept_own += own;
    return true;
}

void unkeep(const char *name, bool own)
{
    int to = 0;
    for (int i = 0; i < kept_count; i++) {
        if (strcmp(kept[i].name, name) == 0 && (!own || kept[i].own)) {
            kept_own -= kept[i].own;
            let_go(kept[i].fd);
        } else
            kept[to++] = kept[i];
    }
    kept_count = to;
}

int watch_kept(struct pollfd *polled, int count)
{
    for (int i = 0; i < kept_count; i++)
        if (kept[i].watched)
            polled[count++] = (struct pollfd){kept[i].fd, 0, 0}; /* POLLHUP and POLLERR are always told (poll(2)) */
    return count;
}

void look_kept(void)
{
    int to = 0;
    for (int i = 0; i < kept_count; i++) {
        struct pollfd polled = {kept[i].fd, 0, 0};
        if (kept[i].watched && poll(&polled, 1, 0) > 0) {
            kept_own -= kept[i].own;
            let_go(kept[i].fd);
            tell("unstored %s", kept[i].name);
        } else
            kept[to++] = kept[i];
    }
    kept_count = to;
}

void let_go(int fd)
{
    const struct linger none = {0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none); /* ENOTSOCK: fine */
    close(fd);
}

int received(struct msghdr *message, int *fds, int room, struct ucred *sender)
{
    int count = 0, fd;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-compare" /* in musl's CMSG_NXTHDR */
    for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
#pragma GCC diagnostic pop
        if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_CREDENTIALS && sender)
            memcpy(sender, CMSG_DATA(head), sizeof *sender);
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < (head->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            memcpy(&fd, CMSG_DATA(head) + i * sizeof(int), sizeof fd);
            if (count < room)
                fds[count++] = fd;
            else
                let_go(fd);
        }
    }
    return count;
}
