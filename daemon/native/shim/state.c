/* The state file, and messages to the client. */
#define _GNU_SOURCE
#include "shim.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char phases[][9] = {"idle", "starting", "running", "stopping", "exited"};
static char state[4096];

void changed(void)
{
    int size = snprintf(
        state, sizeof state,
        "mixos-state 1\nunit %s\nboot %s\nshim %d %llu\nphase %s\nmain %d %llu\nready %d\nstopped %d\npopulated %d\n"
        "since %lld\nuntil %lld\nstarts %lld\nexit %d %d\noom %d\nfailure %s %d\ncgroup %s\nkills %s\nstatus "
        "%s\ndropped "
        "%lld\nlost %lld\n",
        spec.unit, shim.boot, shim.self, shim.self_start, phases[service.phase], service.main_pid, service.main_start,
        service.ready, service.stopped, service.populated, service.since, service.until, service.starts, service.code,
        service.ended_by, service.oom, service.failure, service.failed_with, service.cgroup >= 0 ? spec.cgroup : "",
        service.cgroup >= 0 ? "cgroup" : "descendants", service.status, logs.dropped, logs.lost);
    int fd = open(".state.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    bool good = fd >= 0 && write(fd, state, (size_t)size) == size;
    close_fd(&fd);
    hook("state-written");
    if (good)
        rename(".state.new", "state");
}

void enter(enum phase next)
{
    service.phase = next;
    service.since = clock_ns(CLOCK_MONOTONIC);
}

void send_text(const char *text, bool with_fds)
{
    static char body[KEPT * (NAME + 1) + 64 + sizeof state];
    char rights[CMSG_SPACE(KEPT * sizeof(int))] __attribute__((aligned(8)));
    if (shim.client < 0)
        return;
    int size = snprintf(body, sizeof body, "%s\n%s", text, state);
    struct iovec part = {body, (size_t)size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (with_fds && kept_count) {
        memset(rights, 0, sizeof rights);
        message.msg_control = rights;
        message.msg_controllen = CMSG_SPACE((size_t)kept_count * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN((size_t)kept_count * sizeof(int));
        for (int i = 0; i < kept_count; i++)
            memcpy(CMSG_DATA(head) + (size_t)i * sizeof(int), &kept[i].fd, sizeof(int));
    }
    hook("before-send");
    if (sendmsg(shim.client, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        close_fd(&shim.client); /* gone, or it does not listen: it connects again and gets the state */
}

void tell(const char *format, ...)
{
    char text[256];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    send_text(text, false);
}
