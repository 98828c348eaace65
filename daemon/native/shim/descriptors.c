/* Descriptors that are kept for the service, and those that come with a message. */
#define _GNU_SOURCE
#include "shim.h"

#include <string.h>
#include <unistd.h>

struct kept kept[KEPT];
int kept_count;
static int kept_own;

bool keep(const char *name, int fd, bool own)
{
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
