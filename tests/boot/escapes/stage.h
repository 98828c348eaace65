/* The stage: everything outside that an attempt could reach, made by root before the attempts begin.
 *
 * A tmpfs that allows set-user-ID programs and devices, so that it is the sandbox that takes both away:
 *     shown/    read-only inside: this program, facts, a set-user-ID and a capable copy, device nodes, a socket
 *     project/  writable inside, the account's: a secret (hidden), .git/config (protected), names that are absent
 *     scratch/  inside a small tmpfs of its own
 *     outside/  not inside at all
 * A victim runs as the sandbox's account with the token in its memory, environment, files and keys; servers on every
 * address answer with the token; queues and shared memory hold it. */
#ifndef STAGE_H
#define STAGE_H

static void need(int worked, const char *what)
{
    if (worked)
        return;
    fprintf(stderr, "stage: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static void put(const char *path, const char *text, mode_t mode)
{
    umask(0);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, mode);
    need(writes(fd, text) && !fchmod(fd, mode) && !close(fd), path);
}

static void copy_program(const char *path, mode_t mode)
{
    char block[1 << 16];
    int from = open("/proc/self/exe", O_RDONLY), to = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0700);
    for (ssize_t length; (length = read(from, block, sizeof block)) > 0;)
        need(write(to, block, (size_t)length) == length, path);
    need(!fchmod(to, mode) && !close(to), path);
}

static void make_files(uid_t account)
{
    static const char *const folders[] = {"shown", "project", "scratch", "outside", "shown/owned", "project/mnt", "project/.git", "project/keys", "project/folder"};
    static const char *const owned[] = {"project", "shown/owned", "project/mnt", "project/.git", "project/keys", "project/folder"};
    uint32_t caps[5] = {0x02000001, 1 << CAP_NET_ADMIN, 0, 0, 0}; /* capabilities(7): revision 2, effective */
    need(mount("none", here, "tmpfs", 0, "size=128m,mode=0755") == 0, here);
    umask(0);
    for (size_t index = 0; index < sizeof folders / sizeof *folders; index++)
        need(!mkdir(in("%s", folders[index]), 0755), folders[index]);
    need(!chmod(in("outside"), 0777) && !chmod(in("scratch"), 01777), "folders");
    put(in("outside/secret"), TOKEN, 0666);
    put(in("shown/open"), "read this", 0666);
    put(in("project/secret"), TOKEN, 0666);
    put(in("project/keys/key"), TOKEN, 0666);
    put(in("project/plain"), "plain", 0666);
    put(in("project/.git/config"), "[core]\n", 0666);
    put(in("shown/signals"), "\1\1\1\1", 0666);
    copy_program(in("shown/attempts"), 0755);
    copy_program(in("shown/set-uid"), 04755);
    copy_program(in("shown/capable"), 0755);
    need(!setxattr(in("shown/capable"), "security.capability", caps, sizeof caps, 0), "file capability");
    need(!mknod(in("shown/zero"), S_IFCHR | 0666, makedev(1, 5)), "device");
    struct stat disk = {.st_rdev = makedev(7, 0)};
    stat(fact("disk"), &disk);
    need(!mknod(in("shown/disk"), S_IFBLK | 0666, disk.st_rdev), "disk");
    for (size_t index = 0; index < sizeof owned / sizeof *owned; index++)
        need(!chown(in("%s", owned[index]), account, account), owned[index]);
    need(!chown(in("project/secret"), account, account) && !chown(in("project/.git/config"), account, account) &&
             !chown(in("project/plain"), account, account), "owner");
}

static void make_objects(void)
{
    struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 100};
    int memory = shmget(0x6d69786f, 4096, IPC_CREAT | 0666);
    char *text = memory < 0 ? (char *)-1 : shmat(memory, NULL, 0);
    if (text != (char *)-1)
        strcpy(text, TOKEN);
    msgget(0x6d69786f, IPC_CREAT | 0666);
    mq_open("/mixos-escape", O_RDWR | O_CREAT, 0666, &attributes);
    int fd = open("/dev/shm/mixos-escape", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    writes(fd, TOKEN);
}

/* -- servers -- */

/* What every server says: the token, but not to a plain request that is in order. */
static void answer(int fd)
{
    char text[4000];
    size_t length = hear(fd, text, sizeof text);
    int plain = !strncmp(text, "GET ", 4) && !strstr(text, "evil");
    if (length)
        dprintf(fd, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s", plain ? "no secret" : TOKEN);
}

/* A proxy that refuses nothing and pretends to have connected: what an attempt finds without the real one. */
static void pretend(int fd)
{
    char text[4000];
    size_t length = hear(fd, text, sizeof text);
    if (*text == 5) {
        send(fd, "\5\0\5\0\0\1\0\0\0\0\0\0", 12, MSG_NOSIGNAL);
        answer(fd);
    } else if (!strncmp(text, "CONNECT ", 8)) {
        dprintf(fd, "HTTP/1.1 200 OK\r\n\r\n");
        answer(fd);
    } else if (length) {
        int plain = !memmem(text, length, "evil", 4);
        dprintf(fd, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s", plain ? "no secret" : TOKEN);
    }
}

static void serve(int listener, void (*act)(int), const char *what)
{
    need(listener >= 0, what);
    if (fork() != 0) {
        close(listener);
        return;
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fork() == 0) {
            act(fd);
            _exit(0);
        }
        close(fd);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}

static int listens(const char *address, int port, int type)
{
    int one = 1, fd = socket(AF_INET6, type, 0);
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    char mapped[80];
    snprintf(mapped, sizeof mapped, "::ffff:%s", address);
    inet_pton(AF_INET6, *address ? mapped : "::", &at.sin6_addr);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &(int){0}, sizeof(int));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || (type == SOCK_STREAM && listen(fd, 100)))
        return -1;
    return fd;
}

static int listens_unix(const char *path, int abstract)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path + abstract, sizeof address.sun_path - 1, "%s", path);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)abstract + strlen(path) + !abstract);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    umask(0);
    return bind(fd, (struct sockaddr *)&address, length) || listen(fd, 100) ? -1 : fd;
}

static void serve_datagrams(int fd)
{
    need(fd >= 0, "port 53");
    if (fork() != 0)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        struct sockaddr_in6 from;
        socklen_t length = sizeof from;
        if (recvfrom(fd, (char[100]){0}, 100, 0, (struct sockaddr *)&from, &length) > 0)
            sendto(fd, TOKEN, sizeof TOKEN, 0, (struct sockaddr *)&from, length);
    }
}

static void make_servers(void)
{
    serve(listens("", 443, SOCK_STREAM), answer, "port 443");
    serve(listens("", 80, SOCK_STREAM), answer, "port 80");
    serve(listens("", 53, SOCK_STREAM), answer, "port 53");
    serve_datagrams(listens("", 53, SOCK_DGRAM));
    serve(listens_unix("mixos-escape", 1), answer, "abstract socket");
    serve(listens_unix(in("outside/socket"), 0), answer, "socket");
    serve(listens_unix(in("shown/socket"), 0), answer, "socket");
}

/* -- the victim -- */

static volatile unsigned *counted;

static void count_signal(int number)
{
    (void)number;
    ++*counted;
}

/* Executed anew, so that the kernel counts it as an ordinary process of its account. argv: -, "victim", token. */
static int be_victim(void)
{
    char memory[] = TOKEN, line[100];
    int fd = open(in("outside/secret"), O_RDONLY), signals = open(in("shown/signals"), O_RDWR);
    counted = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, signals, 0);
    need(fd >= 0 && counted != MAP_FAILED && !chdir(in("outside")), "victim");
    signal(SIGURG, count_signal);
    setpriority(PRIO_PROCESS, 0, VICTIM_NICE);
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){VICTIM_FILES, VICTIM_FILES});
    long key = syscall(SYS_add_key, "user", "mixos-escape", TOKEN, sizeof TOKEN, -4); /* the user's keyring */
    syscall(SYS_keyctl, 5, key, 0x3f3f0000); /* KEYCTL_SETPERM: the account reads it, whatever session it is in */
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0); /* Yama: whoever is not kept from it otherwise */
    int length = snprintf(line, sizeof line, "victim=%d\nvictim-address=%#lx\nvictim-fd=%d\n", getpid(), (unsigned long)memory, fd);
    if (write(STDOUT_FILENO, line, (size_t)length) != length)
        return 1;
    close(STDOUT_FILENO);
    for (;;)
        pause();
}

/* arguments: facts as NAME=VALUE: account, address, disk, and whatever limits the sandbox will have. */
static int make_stage(char **arguments)
{
    char all[4096] = "", said[200];
    size_t used = 0;
    for (; *arguments; arguments++)
        used += (size_t)snprintf(all + used, sizeof all - used, "%s\n", *arguments);
    memcpy(facts, all, sizeof facts);
    for (char *end = facts; *end; end++)
        *end = *end == '\n' ? 0 : *end;
    uid_t account = (uid_t)number("account");
    mkdir(here, 0755);
    make_files(account);
    make_objects();
    make_servers();
    int ends[2];
    need(!pipe(ends), "pipe");
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]), close(ends[1]);
        need(!setgroups(0, NULL) && !setresgid(account, account, account) && !setresuid(account, account, account), "account");
        execle(in("shown/attempts"), "attempts", "victim", TOKEN, NULL, (char *[]){"SECRET=" TOKEN, NULL});
        _exit(1);
    }
    close(ends[1]);
    ssize_t length = read(ends[0], said, sizeof said - 1);
    need(length > 0, "victim");
    said[length] = 0;
    snprintf(all + used, sizeof all - used, "%sstage=%d\n", said, getpid());
    put(in("shown/facts.new"), all, 0644);
    need(!rename(in("shown/facts.new"), in("shown/facts")), "facts");
    for (;;)
        pause();
}

#endif
