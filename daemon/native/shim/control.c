/* Commands of the client. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void command(char *text, int fd) /* fd: what came with it, or -1 */
{
    char *word[2] = {"", ""}, names[KEPT * (NAME + 1) + 8] = "fds";
    int count = split(text, word, 2);
    long long value = 0;
    bool number = count == 2 && to_number(word[1], 0, 86400000, &value);
#define IS(name, words) (count == (words) && strcmp(word[0], name) == 0)
    if (IS("store", 2) && fd >= 0) {
        if (keep(word[1], fd, false, false))
            fd = -1, tell("ok");
        else
            tell("error full no room, or not a name");
    } else if (IS("start", 1))
        start();
    else if (IS("stop", 2) && number)
        stop(value), tell("ok");
    else if ((IS("signal", 2) || IS("signal-all", 2)) && number && value <= 64) {
        if (!(word[0][6] ? service.populated : service.main_pid != 0))
            tell("error idle no process");
        else if (word[0][6])
            descendants((int)value), tell("ok");
        else
            signal_main((int)value), tell("ok");
    } else if (IS("main", 2) && number) {
        if (!service.main_pid || !service.background || (value != service.main_pid && !new_main((pid_t)value)))
            tell("error stranger not a process that the service has left in the background");
        else
            service.told_main = true, tell("ok");
    } else if (IS("ready", 1))
        look_ready(true), tell("ok");
    else if (IS("rotate", 1))
        log_flush(), log_open(true), tell("ok");
    else if (IS("state", 1))
        changed(), tell("state"), tell("ok");
    else if (IS("unstore", 2))
        unkeep(word[1], false), tell("ok");
    else if (IS("fds", 1)) {
        for (int i = 0; i < kept_count; i++)
            strcat(strcat(names, " "), kept[i].name);
        send_text(names, true);
    } else if (IS("quit", 1)) {
        if (service.populated || service.main_pid)
            tell("error busy processes are left");
        else
            finish("ok");
    } else
        tell("error protocol unknown command");
    close_fd(&fd);
}

void look_client(void)
{
    char text[256], ancillary[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    struct iovec part = {text, sizeof text - 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof ancillary};
    int fd = -1;
    ssize_t got = recvmsg(shim.client, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (got <= 0)
        return close_fd(&shim.client);
    received(&message, &fd, 1, NULL);
    text[message.msg_flags & MSG_TRUNC ? 0 : got] = 0;
    command(text, fd);
}

void look_control(void)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    int fd = accept4(shim.control, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != geteuid())
        return close_fd(&fd);
    close_fd(&shim.client);
    shim.client = fd;
    changed();
    tell("state");
}
