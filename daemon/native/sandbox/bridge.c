/* The bridge of a sandbox whose network is "proxy": it listens on the sandbox's own loopback, and joins each connection
 * with a new one to the filtering proxy's Unix socket. It decides nothing; whoever decides is at the other end.
 *
 * Bounds: PAIRS connections, one buffer of BUFFER bytes for each direction of each. The one above them waits in the
 * kernel's queue. Nothing is allocated. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PAIRS 64
#define BUFFER 16384

struct flow {
    char data[BUFFER];
    size_t begin, end; /* the bytes between them wait */
    int ended;         /* no more will come */
};
static struct pair {
    int fd[2];
    struct flow flow[2]; /* flow[n] goes from fd[n] to fd[!n] */
} pairs[PAIRS];

void loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd = (int)must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "loopback", "");
    must(ioctl(fd, SIOCSIFFLAGS, &request), "loopback", "");
    close(fd);
}

int bridge_listen(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = (int)must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "bridge", "");
    must(bind(fd, (struct sockaddr *)&address, sizeof address), "bridge", "");
    must(listen(fd, PAIRS), "bridge", "");
    return fd;
}

static void bridge_close(struct pair *pair)
{
    close(pair->fd[0]);
    close(pair->fd[1]);
    pair->fd[0] = pair->fd[1] = -1;
}

static void bridge_accept(int listener, struct pair *pair)
{
    static const struct sockaddr_un proxy = {AF_UNIX, "/run/proxy"};
    int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (client < 0)
        return;
    int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    *pair = (struct pair){.fd = {client, server}};
    if (server < 0 || connect(server, (const struct sockaddr *)&proxy, sizeof proxy) < 0)
        bridge_close(pair);
}

/* Move what can be moved in one direction; whether the pair is still of use. */
static int bridge_move(struct pair *pair, int side, short from, short to)
{
    struct flow *flow = &pair->flow[side];
    if (flow->begin == flow->end && !flow->ended && from & (POLLIN | POLLHUP | POLLERR)) {
        ssize_t got = recv(pair->fd[side], flow->data, BUFFER, 0);
        if (got < 0)
            return errno == EAGAIN || errno == EINTR;
        flow->begin = 0;
        flow->end = (size_t)got;
        if (got == 0) {
            flow->ended = 1;
            shutdown(pair->fd[!side], SHUT_WR);
        }
    } else if (flow->begin < flow->end && to & (POLLOUT | POLLHUP | POLLERR)) {
        ssize_t sent = send(pair->fd[!side], flow->data + flow->begin, flow->end - flow->begin, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN || errno == EINTR;
        flow->begin += (size_t)sent;
    }
    return !(pair->flow[0].ended && pair->flow[1].ended);
}

_Noreturn void bridge_serve(int listener)
{
    struct pollfd polled[1 + 2 * PAIRS];
    for (int index = 0; index < PAIRS; index++)
        pairs[index].fd[0] = pairs[index].fd[1] = -1;
    for (;;) {
        struct pair *unused = NULL;
        for (int index = 0; index < PAIRS; index++) {
            struct pair *pair = &pairs[index];
            if (pair->fd[0] < 0)
                unused = pair;
            for (int side = 0; side < 2; side++) {
                struct flow *in = &pair->flow[side], *out = &pair->flow[!side];
                short wanted =
                    (short)((in->begin == in->end && !in->ended ? POLLIN : 0) | (out->begin < out->end ? POLLOUT : 0));
                /* without a wish no entry: a hang-up that nobody waits for would wake us for ever */
                polled[1 + 2 * index + side] = (struct pollfd){wanted ? pair->fd[side] : -1, wanted, 0};
            }
        }
        polled[0] = (struct pollfd){unused ? listener : -1, POLLIN, 0};
        if (poll(polled, 1 + 2 * PAIRS, -1) < 0)
            continue;
        if (polled[0].revents)
            bridge_accept(listener, unused);
        for (int index = 0; index < PAIRS; index++) {
            struct pair *pair = &pairs[index];
            const struct pollfd *now = &polled[1 + 2 * index];
            for (int side = 0; side < 2 && pair->fd[0] >= 0 && pair != unused; side++)
                if (!bridge_move(pair, side, now[side].revents, now[!side].revents))
                    bridge_close(pair);
        }
    }
}
