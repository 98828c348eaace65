/* sd_notify(3) messages of the service. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

const char *open_notify(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "notify"};
    int one = 1;
    if (strlen(shim.folder) + 8 > sizeof address.sun_path)
        return "path of the notification socket is too long";
    service.notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (service.notify < 0 || setsockopt(service.notify, SOL_SOCKET, SO_PASSCRED, &one, sizeof one) < 0 ||
        bind(service.notify, (struct sockaddr *)&address, sizeof address) < 0 ||
        chown("notify", (uid_t)spec.notify_uid, (gid_t)-1) < 0 ||
        (spec.notify_uid == ANYBODY && chmod("notify", 0666) < 0))
        return "notification socket";
    return NULL;
}

/* A process of the service; one that has gone is known by its user only. */
static bool trusted(const struct ucred *sender)
{
    pid_t parent;
    unsigned long long start;
    if (process(sender->pid, &parent, &start))
        return descends(sender->pid);
    return sender->uid == (uid_t)spec.notify_uid; /* ANYBODY is nobody's number */
}

static void notified(char *text, int *fds, int count) /* sd_notify(3) */
{
    const char *name = "stored";
    bool store = false, forget = false, watched = true, become_ready = false, reload = false;
    long long value;
    char *rest;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (strcmp(line, "READY=1") == 0)
            become_ready = true;
        else if (strcmp(line, "RELOADING=1") == 0)
            reload = true;
        else if (strcmp(line, "STOPPING=1") == 0)
            tell("stopping");
        else if (strcmp(line, "WATCHDOG=1") == 0)
            tell("watchdog 0");
        else if (strcmp(line, "WATCHDOG=trigger") == 0)
            tell("watchdog 1");
        else if (strncmp(line, "STATUS=", 7) == 0) {
            encode(service.status, line + 7, strnlen(line + 7, STATUS));
            changed();
            tell("status");
        } else if (strncmp(line, "MAINPID=", 8) == 0 && service.main_pid && to_number(line + 8, 2, 1 << 22, &value))
            service.told_main |= new_main((pid_t)value);
        else if (strncmp(line, "EXTEND_TIMEOUT_USEC=", 20) == 0 && to_number(line + 20, 0, INT64_MAX, &value))
            extend(value < DAY ? value : DAY);
        else if (strncmp(line, "FDNAME=", 7) == 0)
            name = line + 7;
        store |= strcmp(line, "FDSTORE=1") == 0;
        watched &= strcmp(line, "FDPOLL=0") != 0;
        forget |= strcmp(line, "FDSTOREREMOVE=1") == 0;
    }
    if (reload)
        tell("reloading");
    if (become_ready && (service.ready || service.phase == RUNNING))
        tell("ready"); /* after a reload */
    look_ready(become_ready);
    if (forget)
        unkeep(name, true), tell("unstored %.64s", name);
    if (store)
        look_kept(); /* what has hung up takes no room */
    for (int i = 0; i < count; i++)
        if (store && keep(name, fds[i], true, watched))
            tell("stored %s", name);
        else
            let_go(fds[i]);
}

void look_notify(void)
{
    static char text[4096];
    char ancillary[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(BROUGHT * sizeof(int))] __attribute__((aligned(8)));
    for (int count = 0; service.notify >= 0; count++) {
        if (count == NOTES_PER_TICK) { /* a flood of them waits in the queue of the socket, and so does its sender */
            service.notify_at = clock_ns(CLOCK_MONOTONIC) + TICK_MS * SECOND / 1000;
            return;
        }
        struct iovec part = {text, sizeof text - 1};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof ancillary};
        struct ucred sender = {.pid = 0, .uid = (uid_t)-1};
        int fds[16];
        ssize_t got = recvmsg(service.notify, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (got < 0 && errno != EINTR)
            return;
        int number = got < 0 ? 0 : received(&message, fds, 16, &sender);
        text[got > 0 ? got : 0] = 0;
        if (got >= 0 && !(message.msg_flags & MSG_TRUNC) && trusted(&sender))
            notified(text, fds, number);
        else
            while (number--)
                let_go(fds[number]);
    }
}
