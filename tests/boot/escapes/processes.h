/* Other processes, rights, limits. */
#ifndef PROCESSES_H
#define PROCESSES_H

static pid_t victim(void) { return (pid_t)number("victim"); }

static const char *of_victim(const char *name)
{
    static char path[600];
    snprintf(path, sizeof path, "/proc/%d/%s", victim(), name);
    return path;
}

static int ptrace_attach(void)
{
    if (ptrace(PTRACE_ATTACH, victim(), NULL, NULL))
        return verdict(0);
    waitpid(victim(), NULL, __WALL);
    errno = 0;
    long word = ptrace(PTRACE_PEEKDATA, victim(), (void *)number("victim-address"), NULL);
    ptrace(PTRACE_DETACH, victim(), NULL, NULL);
    return verdict(!memcmp(&word, TOKEN, sizeof word));
}

static int ptrace_seize(void)
{
    int worked = !ptrace(PTRACE_SEIZE, victim(), NULL, NULL);
    return verdict(worked);
}

static int ptrace_own_child(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(ptrace(PTRACE_TRACEME, 0, NULL, NULL) ? errno : 0);
    errno = exit_of(child);
    return verdict(errno == 0);
}

static int vm_readv(void)
{
    char text[sizeof TOKEN] = "";
    struct iovec local = {text, sizeof text}, remote = {(void *)number("victim-address"), sizeof text};
    ssize_t got = process_vm_readv(victim(), &local, 1, &remote, 1, 0);
    return verdict(got > 0 && !strcmp(text, TOKEN));
}

static int vm_writev(void)
{
    char text[] = TOKEN;
    struct iovec local = {text, sizeof text}, remote = {(void *)number("victim-address"), sizeof text};
    return verdict(process_vm_writev(victim(), &local, 1, &remote, 1, 0) > 0);
}

static int proc_mem(void)
{
    int fd = open(of_victim("mem"), O_RDONLY);
    if (fd < 0 || lseek(fd, number("victim-address"), SEEK_SET) < 0)
        return verdict(0);
    return verdict(gives_token(fd));
}

static int proc_environ(void) { return reads_token(of_victim("environ")); }
static int proc_cmdline(void) { return reads_token(of_victim("cmdline")); }

static int proc_fd(void)
{
    char name[40];
    snprintf(name, sizeof name, "fd/%ld", number("victim-fd"));
    return reads_token(of_victim(name));
}

static int proc_root(void)
{
    char name[500];
    snprintf(name, sizeof name, "root%s", in("outside/secret"));
    return reads_token(of_victim(name));
}

static int proc_cwd(void) { return reads_token(of_victim("cwd/secret")); }

/* PID 1: outside init or the first process of a container, inside the launcher's. */
static int init_mem(void) { return opens("/proc/1/mem", O_RDWR); }
static int init_environ(void) { return verdict(read(open("/proc/1/environ", O_RDONLY), (char[1]){0}, 1) >= 0); }

static int init_root(void)
{
    char path[600];
    snprintf(path, sizeof path, "/proc/1/root%s", in("outside/secret"));
    return reads_token(path);
}

static int init_fd(void) { return verdict(opendir("/proc/1/fd") != NULL); }
static int self_mem(void) { return opens("/proc/self/mem", O_RDWR); }
static int oom_score(void) { return verdict(writes(open("/proc/self/oom_score_adj", O_WRONLY), "-1")); }

static int steal_descriptor(void)
{
    int handle = (int)syscall(PIDFD_OPEN, victim(), 0);
    return verdict(gives_token((int)syscall(PIDFD_GETFD, handle, (int)number("victim-fd"), 0)));
}

/* The victim counts SIGURG, which others ignore, in a file that is shown. */
static unsigned signals(void)
{
    unsigned count = 0;
    int fd = open(in("shown/signals"), O_RDONLY);
    if (fd < 0 || pread(fd, &count, sizeof count, 0) != sizeof count)
        _exit(NOT_APPLICABLE);
    close(fd);
    return count;
}

static int arrives(unsigned before)
{
    int number = errno;
    for (int turn = 0; turn < 30 && signals() == before; turn++)
        nanosleep(&(struct timespec){0, 10 * 1000 * 1000}, NULL);
    errno = number;
    return verdict(signals() != before);
}

static int signal_victim(void)
{
    unsigned before = signals();
    kill(victim(), SIGURG);
    return arrives(before);
}

static int signal_everyone(void)
{
    unsigned before = signals();
    kill(-1, SIGURG);
    return arrives(before);
}

static int signal_thread(void)
{
    unsigned before = signals();
    syscall(SYS_tgkill, victim(), victim(), SIGURG);
    return arrives(before);
}

static int signal_queue(void)
{
    unsigned before = signals();
    sigqueue(victim(), SIGURG, (union sigval){0});
    return arrives(before);
}

static int signal_pidfd(void)
{
    unsigned before = signals();
    syscall(SYS_pidfd_send_signal, (int)syscall(PIDFD_OPEN, victim(), 0), SIGURG, NULL, 0);
    return arrives(before);
}

static int signal_by_owner(void)
{
    unsigned before = signals();
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) || fcntl(ends[0], F_SETOWN, victim()) || fcntl(ends[0], F_SETSIG, SIGURG) ||
        fcntl(ends[0], F_SETFL, O_ASYNC) || write(ends[1], "x", 1) != 1)
        return verdict(0);
    return arrives(before);
}

static int advise_victim(void)
{
    struct iovec range = {(void *)(number("victim-address") & ~4095l), 4096};
    int handle = (int)syscall(PIDFD_OPEN, victim(), 0);
    return verdict(syscall(PROCESS_MADVISE, handle, &range, 1, 20, 0) >= 0); /* MADV_COLD */
}

static int limits_of_victim(void)
{
    struct rlimit old = {0, 0};
    as_account();
    return verdict(!syscall(SYS_prlimit64, victim(), RLIMIT_NOFILE, NULL, &old) && old.rlim_cur == VICTIM_FILES);
}

static int slow_victim(void)
{
    errno = 0;
    if (getpriority(PRIO_PROCESS, (id_t)victim()) != VICTIM_NICE)
        return verdict(0);
    return verdict(!setpriority(PRIO_PROCESS, (id_t)victim(), VICTIM_NICE));
}

static int compare_victim(void) { return verdict(syscall(SYS_kcmp, getpid(), victim(), 0, 0, 0) >= 0); }
static int nice_negative(void) { return verdict(!setpriority(PRIO_PROCESS, 0, -1)); }
static int realtime(void) { return verdict(!syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &(int){1})); }
static int realtime_disk(void) { return verdict(!syscall(SYS_ioprio_set, 1, 0, 1 << 13 | 4)); }

/* -- rights -- */

/* Run a program of the stage that says whether it got rights that its caller lacks. */
static int gains_by(const char *program, const char *question)
{
    pid_t child = fork();
    if (child == 0) {
        as_account();
        execl(in("shown/%s", program), program, question, NULL);
        _exit(120);
    }
    int code = exit_of(child);
    errno = code == 120 ? EACCES : EPERM;
    return verdict(code == 0);
}

static int set_uid_program(void) { return gains_by("set-uid", "am-i-root"); }
static int capable_program(void) { return gains_by("capable", "am-i-capable"); }
static int become_root(void) { return verdict(!setresuid(0, 0, 0)); }
static int become_root_group(void) { return verdict(!setresgid(0, 0, 0)); }
static int join_groups(void) { return verdict(!setgroups(1, (gid_t[]){0})); }
static int become_other(void) { return verdict(!setresuid(1001, 1001, 1001)); }

static int has_capability(unsigned capability, int take)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &head, data))
        return 0;
    if (!take)
        return data[0].effective || data[1].effective;
    data[capability / 32].effective |= 1u << capability % 32;
    data[capability / 32].permitted |= 1u << capability % 32;
    data[capability / 32].inheritable |= 1u << capability % 32;
    return !syscall(SYS_capset, &head, data);
}

static int take_capability(void) { return verdict(has_capability(CAP_NET_RAW, 1)); }
static int clear_securebits(void) { return verdict(!prctl(PR_SET_SECUREBITS, 0, 0, 0, 0)); }

static int ambient_capability(void)
{
    has_capability(CAP_NET_RAW, 1);
    return verdict(!prctl(47, 2, CAP_NET_RAW, 0, 0)); /* PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE */
}

/* -- limits -- */

static int fork_bomb(void)
{
    long most = number("pids") * 2, made = 0;
    static pid_t children[10000];
    while (made < most && made < 10000 && (children[made] = fork()) >= 0) {
        if (children[made] == 0)
            for (;;)
                pause();
        made++;
    }
    int number = errno;
    for (long index = 0; index < made; index++)
        kill(children[index], SIGKILL);
    for (long index = 0; index < made; index++)
        waitpid(children[index], NULL, 0);
    errno = number;
    return verdict(made == most);
}

static int memory_over(void)
{
    size_t size = (size_t)number("memory") * 2;
    char *all = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return verdict(0);
    for (size_t at = 0; at < size; at += 4096)
        all[at] = 1;
    return verdict(1);
}

/* In files that are each small enough. */
static int disk_over(void)
{
    static char block[1 << 18];
    long most = number("scratch") / (long)sizeof block * 2, made = 0;
    while (made < most && write(open(in("scratch/%ld", made), O_WRONLY | O_CREAT, 0600), block, sizeof block) == (ssize_t)sizeof block)
        made++;
    int number = errno;
    for (long index = 0; index <= made; index++)
        unlink(in("scratch/%ld", index));
    errno = number;
    return verdict(made == most);
}

static int inodes_over(void)
{
    long most = number("scratch") / 4096 * 2 + 600, made = 0;
    while (made < most && !mknod(in("scratch/%ld", made), S_IFREG | 0600, 0))
        made++;
    int number = errno;
    for (long index = 0; index < made; index++)
        unlink(in("scratch/%ld", index));
    errno = number;
    return verdict(made == most);
}

static int file_size_over(void)
{
    signal(SIGXFSZ, SIG_IGN);
    int fd = open(in("project/left"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int worked = pwrite(fd, "x", 1, number("file-size")) == 1, number = errno;
    unlink(in("project/left"));
    errno = number;
    return verdict(worked);
}

static int files_over(void)
{
    long made = 0, most = number("files") + 16;
    while (made < most && open("/dev/null", O_RDONLY) >= 0)
        made++;
    return verdict(made == most);
}

static int raise_limit(void)
{
    struct rlimit low = {100, 100}, high = {200, 200};
    if (setrlimit(RLIMIT_NOFILE, &low))
        return verdict(0);
    return verdict(!setrlimit(RLIMIT_NOFILE, &high));
}

/* Whether these worked shows only later, by a file: the process that makes it should be gone by then. */
static int appears(const char *name, int seconds)
{
    sigset_t every;
    sigfillset(&every);
    sigprocmask(SIG_SETMASK, &every, NULL);
    sleep((unsigned)seconds);
    put_text(in("project/%s", name), "late");
    _exit(0);
}

static int outlive(void)
{
    if (fork() == 0) {
        setsid();
        if (fork() == 0)
            appears("outlived", 1);
        _exit(0);
    }
    return say(BLOCKED, "see whether project/outlived appears");
}

static int past_the_clock(void) { return appears("too-late", 3); }

/* -- what came along -- */

static int leaked_descriptor(void)
{
    for (int fd = 3; fd < 256; fd++) {
        char path[40];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (fcntl(fd, F_GETFD) >= 0 && (gives_token(fd) || gives_token(openat(fd, "secret", O_RDONLY))))
            return say(ESCAPED, "descriptor %d", fd);
    }
    errno = EBADF;
    return verdict(0);
}

static int leaked_environment(void)
{
    extern char **environ;
    for (char **one = environ; *one; one++)
        if (strstr(*one, TOKEN))
            return say(ESCAPED, "%.20s", *one);
    errno = 0;
    return verdict(0);
}

static const struct attempt process_attempts[] = {
    {"ptrace-attach", ptrace_attach}, {"ptrace-seize", ptrace_seize}, {"ptrace-own-child", ptrace_own_child},
    {"vm-readv", vm_readv}, {"vm-writev", vm_writev}, {"proc-mem", proc_mem}, {"proc-environ", proc_environ},
    {"proc-cmdline", proc_cmdline}, {"proc-fd", proc_fd}, {"proc-root", proc_root}, {"proc-cwd", proc_cwd},
    {"init-mem", init_mem}, {"init-environ", init_environ}, {"init-root", init_root}, {"init-fd", init_fd},
    {"self-mem", self_mem}, {"oom-score", oom_score}, {"steal-descriptor", steal_descriptor},
    {"signal-victim", signal_victim}, {"signal-everyone", signal_everyone}, {"signal-thread", signal_thread},
    {"signal-queue", signal_queue}, {"signal-pidfd", signal_pidfd}, {"signal-by-owner", signal_by_owner},
    {"limits-of-victim", limits_of_victim}, {"slow-victim", slow_victim}, {"advise-victim", advise_victim}, {"compare-victim", compare_victim},
    {"nice-negative", nice_negative}, {"realtime", realtime}, {"realtime-disk", realtime_disk},
    {"set-uid-program", set_uid_program}, {"capable-program", capable_program}, {"become-root", become_root},
    {"become-root-group", become_root_group}, {"join-groups", join_groups}, {"become-other", become_other},
    {"take-capability", take_capability}, {"clear-securebits", clear_securebits}, {"ambient-capability", ambient_capability},
    {"fork-bomb", fork_bomb}, {"disk-over", disk_over}, {"inodes-over", inodes_over}, {"file-size-over", file_size_over},
    {"files-over", files_over}, {"raise-limit", raise_limit}, {"leaked-descriptor", leaked_descriptor},
    {"leaked-environment", leaked_environment},
};

#endif
