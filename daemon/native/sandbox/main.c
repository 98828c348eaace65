/* sandbox: run one command confined by a compiled policy, or do not run it at all.
 *
 *     sandbox [--report FD] [--cgroup DIR] [--keep N] [--attached] [--dry] POLICY -- COMMAND [ARGUMENT...]
 *     sandbox --check POLICY      only read the policy
 *     sandbox --probe             print what this kernel offers, as JSON
 *
 * --cgroup DIR: the command starts in this cgroup; without it it stays in the caller's. --keep N: descriptors 3 to N+2
 * pass to the command. --attached: when our parent ends, however it does, so does everything here. --dry: set everything
 * up, report, end. Exit codes: the command's, 128+n when signal n ended it, 124 when its time was over, 126 or 127 when it
 * cannot be executed, 125 when the sandbox cannot be set up: then the reason is one line on stderr, and nothing was run.
 *
 * Two processes: the *keeper* stays outside, forwards signals, and holds what must outlive the sandbox (the account's
 * lock, placeholders to remove). *Init* is PID 1 inside; it makes the walls, then locks itself in with the command and
 * reaps. When the keeper dies, a pipe tells init, and the kernel kills a PID namespace whose init ends.
 *
 * Order, and why:
 *   1. policy read and checked before anything else; foreign descriptors closed
 *   2. without root: a user namespace, which gives the rights for the rest, to this sandbox only
 *   3. every host path becomes a descriptor (openat2 without magic links) and a detached mount (open_tree), attributes set
 *      while nobody can reach it; paths given by a user are looked up with that user's rights
 *   4. clone3 into the cgroup and the new namespaces
 *   5. the root: a tmpfs and the detached mounts, masks (checked by inode), own /proc, /dev, /dev/pts; pivot_root, detach
 *   6. loopback, limits, account, capabilities dropped and read back, no_new_privs
 *   7. Landlock after the mounts, since a landlocked process cannot mount; seccomp last, since it forbids most of the above
 */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TIMED_OUT = 124, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

static int keep, dry, cgroup_fd = -1;
static pid_t attached; /* to this parent; 0: to none */
static sigset_t every_signal;

static _Noreturn void run_command(char **command)
{
    must(setsid(), "session", "");
    must((long)syscall(SYS_close_range, 3 + keep, ~0u, 0), "close_range", "");
    sigprocmask(SIG_UNBLOCK, &every_signal, NULL);
    make_environment();
    execvp(command[0], command);
    fail(errno == ENOENT || errno == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE, "sandbox: %s: %s\n", command[0],
         strerror(errno));
}

static int exit_code(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* To the command alone, as if it had been sent there: a service reloads by SIGHUP, and its workers must not. But what a
 * terminal sends to everyone goes to everyone; it cannot reach them itself. Nobody inside could wake who is stopped. */
static void forward(pid_t command, int number)
{
    int from_terminal = number == SIGINT || number == SIGQUIT || number == SIGHUP || number == SIGWINCH;
    if (number != SIGTSTP && number != SIGTTIN && number != SIGTTOU)
        kill(scalar[TERMINAL] && from_terminal ? -command : command, number);
}

/* PID 1: forward, reap, watch the clock and the keeper. Its return ends everything in the sandbox. */
static int watch_over(pid_t command, int signals, int clock, int alive)
{
    struct pollfd events[] = {{signals, POLLIN, 0}, {clock, POLLIN, 0}, {alive, POLLIN, 0}};
    for (;;) {
        if (poll(events, 3, -1) < 0)
            continue;
        struct signalfd_siginfo info;
        if (events[2].revents)
            return 128 + SIGKILL;
        if (events[1].revents) {
            note("{\"step\":\"end\",\"code\":%d,\"timeout\":true}\n", TIMED_OUT);
            return TIMED_OUT;
        }
        if (!events[0].revents || read(signals, &info, sizeof info) != sizeof info)
            continue;
        if (info.ssi_signo != SIGCHLD) {
            forward(command, (int)info.ssi_signo);
            continue;
        }
        int status;
        for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
            if (pid == command && (WIFEXITED(status) || WIFSIGNALED(status))) {
                note("{\"step\":\"end\",\"code\":%d,\"timeout\":false}\n", exit_code(status));
                return exit_code(status);
            }
    }
}

static void note_state(void)
{
    static const char *const networks[] = {"none", "host", "proxy"}, *const procs[] = {"none", "pids", "full"};
    unsigned guarded = 0, placeholders = 0;
    note(",\"user-namespace\":%s,\"landlock\":{\"abi\":%d,\"used\":%d},\"seccomp\":%d,\"no-new-privs\":%d",
         user_mode ? "true" : "false", landlock_abi, landlock_used, prctl(PR_GET_SECCOMP, 0, 0, 0, 0),
         prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    EACH (item, PROTECT) {
        guarded += item->type != 0;
        placeholders += item->placeholder != 0;
    }
    note(",\"network\":\"%s\",\"proc\":\"%s\",\"protected\":%u,\"placeholders\":%u,\"absent\":[",
         networks[scalar[NETWORK]], procs[scalar[PROC]], guarded, placeholders);
    const char *comma = "";
    for (struct record *item = records; item < records + record_count; item++)
        if ((item->head.tag == READ_ONLY || item->head.tag == PROTECT) && !item->type && report_has_room()) {
            note("%s", comma);
            note_text(item->data);
            comma = ",";
        }
    note("]}\n");
}

static _Noreturn void be_init(char **command, int alive)
{
    in_init = true;
    note("{\"step\":\"ready\"");
    must(setsid(), "session", "");
    must(unshare(CLONE_NEWCGROUP), "cgroup namespace", "");
    long keyring = syscall(SYS_keyctl, 1, NULL); /* KEYCTL_JOIN_SESSION_KEYRING: a new one */
    if (keyring < 0 && errno != ENOSYS)
        refuse("session keyring", "");
    note(",\"keyring\":\"%s\"", keyring < 0 ? "none" : "new");
    if (*once[HOSTNAME]->data)
        must(sethostname(once[HOSTNAME]->data, once[HOSTNAME]->head.length - 1), "host name", "");
    bound("memory", "memory.max", scalar[MEMORY], RLIMIT_DATA, REQUIRE_MEMORY);
    bound("pids", "pids.max", scalar[PIDS], RLIMIT_NPROC, REQUIRE_PIDS);
    make_root();
    own_null();
    if (scalar[NETWORK] != NETWORK_HOST)
        loopback_up();
    int listener = scalar[NETWORK] == NETWORK_PROXY ? bridge_listen((uint16_t)scalar[PROXY_PORT]) : -1;
    EACH (item, RLIMIT)
        lower_limit(item->head.flags, item->head.value);
    umask((mode_t)scalar[UMASK]);
    drop_rights();
    must(chdir(once[DIRECTORY]->data), "working folder", once[DIRECTORY]->data);
    if (listener >= 0) {
        pid_t bridge = (pid_t)must(fork(), "bridge", "");
        if (bridge == 0) {
            must(dup2(listener, 3), "bridge", "");
            must((long)syscall(SYS_close_range, 4, ~0u, 0), "bridge", "");
            install_filter(once[BRIDGE_FILTER]);
            bridge_serve(3);
        }
        close(listener);
    }
    int signals = (int)must(signalfd(-1, &every_signal, SFD_CLOEXEC), "signals", "");
    int clock = (int)must(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), "clock", "");
    struct itimerspec limit = {
        .it_value = {(time_t)(scalar[WALL_MS] / 1000), (long)(scalar[WALL_MS] % 1000) * 1000000}};
    must(timerfd_settime(clock, 0, &limit, NULL), "clock", ""); /* zero: no limit */
    landlock();
    install_filter(once[FILTER]);
    note_state();
    send_report();
    if (dry)
        _exit(0);
    pid_t child = (pid_t)must(fork(), "process", "");
    if (child == 0)
        run_command(command);
    int code = watch_over(child, signals, clock, alive);
    send_report();
    _exit(code);
}

/* Outside: hand on signals, wait, clean up. */
static int keeper(char **command)
{
    int alive[2];
    must(pipe2(alive, O_CLOEXEC), "pipe", "");
    uint64_t flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC;
    flags |= *once[HOSTNAME]->data ? CLONE_NEWUTS : 0; /* else the host's name, as it is and will be */
    flags |= scalar[NETWORK] == NETWORK_HOST ? 0 : CLONE_NEWNET;
    flags |= cgroup_fd >= 0 ? INTO_CGROUP : 0;
    struct clone_arguments arguments = {
        .flags = flags, .exit_signal = SIGCHLD, .cgroup = cgroup_fd < 0 ? 0 : (uint64_t)cgroup_fd};
    pid_t init = (pid_t)must(syscall(SYS_clone3, &arguments, sizeof arguments), "namespaces", "");
    if (init == 0) {
        close(alive[1]);
        be_init(command, alive[0]);
    }
    close(alive[0]);
    if (attached) { /* only now: each change of our rights takes it back (prctl(2)) */
        must(prctl(PR_SET_PDEATHSIG, SIGABRT, 0, 0, 0), "parent's death", "");
        if (getppid() != attached)
            raise(SIGABRT);
    }
    for (;;) {
        int status, number = sigwaitinfo(&every_signal, NULL);
        if (number != SIGCHLD && number > 0)
            kill(init, number == SIGABRT ? SIGKILL : number); /* SIGABRT: end it, then tidy up as always */
        else if (waitpid(init, &status, WNOHANG) == init) {
            remove_placeholders();
            return exit_code(status);
        }
    }
}

/* Only what passes to the command, the report and the cgroup stay open; the latter two not beyond an exec. */
static void close_others(void)
{
    int ours[] = {report_fd < cgroup_fd ? report_fd : cgroup_fd, report_fd < cgroup_fd ? cgroup_fd : report_fd};
    int first = 3 + keep;
    for (int index = 0; index < 2; index++) {
        if (ours[index] < first)
            continue;
        must(fcntl(ours[index], F_SETFD, FD_CLOEXEC), "descriptor", "");
        if (ours[index] > first)
            must((long)syscall(SYS_close_range, first, ours[index] - 1, 0), "close_range", "");
        first = ours[index] + 1;
    }
    must((long)syscall(SYS_close_range, first, ~0u, 0), "close_range", "");
}

/* Standard streams and passed descriptors must not be a way out: a folder's descriptor would be one. */
static void check_descriptors(void)
{
    for (int fd = 0; fd < 3 + keep; fd++) {
        struct stat info;
        char name[16];
        snprintf(name, sizeof name, "%d", fd);
        must(fstat(fd, &info), "descriptor", name);
        int flags = (int)must(fcntl(fd, F_GETFL), "descriptor", name);
        if (S_ISDIR(info.st_mode) || S_ISBLK(info.st_mode) || flags & O_PATH)
            deny("a folder, disk or path must not be passed in as descriptor", name);
        if (!scalar[TERMINAL] && isatty(fd))
            deny("the policy allows no terminal as descriptor", name);
    }
}

static int probe(void)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
    uint32_t action = SECCOMP_RET_KILL_PROCESS;
    long filters = syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action);
    pid_t child = fork();
    if (child == 0)
        _exit(unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0);
    int status = 1;
    waitpid(child, &status, 0);
    printf("{\"landlock\":%ld,\"seccomp\":%s,\"user-namespaces\":%s,\"keyrings\":%s,\"root\":%s}\n", abi < 0 ? 0 : abi,
           filters ? "false" : "true", status ? "false" : "true",
           syscall(SYS_keyctl, 0, -3, 0) < 0 && errno == ENOSYS ? "false" : "true", geteuid() ? "false" : "true");
    return 0;
}

int main(int argc, char **argv)
{
    const char *policy = NULL;
    int check = 0;
    for (int index = 1; index < argc && !policy; index++) {
        const char *word = argv[index], *value = index + 1 < argc ? argv[index + 1] : "";
        if (!strcmp(word, "--probe"))
            return probe();
        else if (!strcmp(word, "--check"))
            check = 1;
        else if (!strcmp(word, "--dry"))
            dry = 1;
        else if (!strcmp(word, "--attached"))
            attached = getppid();
        else if (!strcmp(word, "--report"))
            report_fd = atoi(value), index++;
        else if (!strcmp(word, "--keep"))
            keep = atoi(value), index++;
        else if (!strcmp(word, "--cgroup"))
            cgroup_fd = (int)must(open(value, O_RDONLY | O_DIRECTORY | O_CLOEXEC), "cgroup", value),
            snprintf(cgroup_path, sizeof cgroup_path, "%s", *value == '/' ? value : "/"), index++;
        else if (word[0] != '-')
            policy = word, argv += index + 1, argc -= index + 1;
        else
            break;
    }
    int given = argc >= 2 && policy && !strcmp(argv[0], "--");
    if (!policy || keep < 0 || keep > 64 || (!check && !dry && !given))
        deny("usage: sandbox [--report FD] [--cgroup DIR] [--keep N] [--attached] [--dry | --check] POLICY -- COMMAND "
             "[ARGUMENT...]",
             "");
    read_policy(policy);
    if (check)
        return 0;
    close_others();
    find_cgroup(); /* before the namespace in which ours has no name */
    default_signals();
    sigfillset(&every_signal);
    sigprocmask(SIG_SETMASK, &every_signal, NULL);
    umask(022);
    check_descriptors();
    user_mode = geteuid() != 0;
    choose_account();
    if (user_mode && scalar[REQUIRE] & REQUIRE_ACCOUNT)
        deny("the policy demands an account of its own, which only root can give", "");
    give_streams();
    take_rights();
    detach_paths();
    return keeper(argv + 1);
}
