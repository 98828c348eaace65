/* Making the process of the service, from clone to execve. Runs between our code and a stranger's. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int report_fd = -1;

static _Noreturn void give_up(const char *step)
{
    struct report report = {errno, ""};
    strncpy(report.step, step, sizeof report.step - 1);
    if (write(report_fd, &report, sizeof report) < 0)
        _exit(126);
    _exit(127);
}

#define TRY(step, call)    \
    do {                   \
        if ((call) < 0)    \
            give_up(step); \
    } while (0)

/* 0, 1, 2, the kept ones from 3 on, the readiness descriptor; all else closes. */
static void child_descriptors(int ready_end)
{
    int high = kept_count + 3 > spec.ready_fd ? kept_count + 3 : (int)spec.ready_fd + 1;
    int from[KEPT + 5], to[KEPT + 5], count = 0;
#define PLACE(source, target) (from[count] = (source), to[count++] = (target))
    PLACE(shim.null, 0);
    PLACE(shim.pipes[0][1], 1);
    PLACE(shim.pipes[1][1], 2);
    for (int i = 0; i < kept_count; i++)
        PLACE(kept[i].fd, 3 + i);
    if (ready_end >= 0)
        PLACE(ready_end, (int)spec.ready_fd);
    TRY("descriptor", report_fd = fcntl(report_fd, F_DUPFD_CLOEXEC, high));
    for (int i = 0; i < count; i++)
        TRY("descriptor", from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, high)); /* out of the way of all targets */
    for (int i = 0; i < count; i++)
        TRY("descriptor", dup2(from[i], to[i]));
}

static void child_user(void)
{
    bool keeping = spec.ambient && spec.uid;
    if (spec.bounding >= 0)
        for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
            if (cap > 40 || !(spec.bounding >> cap & 1))
                TRY("bounding", prctl(PR_CAPBSET_DROP, cap, 0, 0, 0));
    if (geteuid() == 0)
        TRY("groups", syscall(SYS_setgroups, spec.groups, spec.group));
    if (keeping)
        TRY("ambient", prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    TRY("group", syscall(SYS_setresgid, (gid_t)spec.gid, (gid_t)spec.gid, (gid_t)spec.gid));
    TRY("user", syscall(SYS_setresuid, (uid_t)spec.uid, (uid_t)spec.uid, (uid_t)spec.uid));
    if (keeping)
        TRY("ambient", set_capabilities((uint64_t)spec.ambient, (uint64_t)spec.ambient));
    for (int cap = 0; keeping && cap < 41; cap++)
        if (spec.ambient >> cap & 1)
            TRY("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0));
}

static _Noreturn void child(int ready_end, bool placed)
{
    static char number[32], names[KEPT * (NAME + 1) + 16], listen_pid[32], socket_path[MAX_PATH + 24];
    sigset_t none;
    setsid();
    if (!placed && !write_at(service.cgroup, "main/cgroup.procs", "0"))
        give_up("cgroup");
    sprintf(number, "%lld", spec.oom_score_adj); /* ours is inherited, so it is always written */
    if (!write_at(AT_FDCWD, "/proc/self/oom_score_adj", number))
        give_up("oom");
    child_descriptors(ready_end);
    for (int i = 0; i < LIMITS; i++)
        if (spec.limit[i].set)
            TRY(limit_names[i].name, setrlimit(limit_names[i].resource, &spec.limit[i].value));
    TRY("nice", setpriority(PRIO_PROCESS, 0, (int)spec.nice));
    umask((mode_t)spec.umask);
    child_user();
    TRY("cwd", chdir(spec.cwd));
    if (spec.no_new_privileges)
        TRY("privileges", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (spec.notify) {
        sprintf(socket_path, "NOTIFY_SOCKET=%s/notify", shim.folder);
        spec.envp[spec.envs++] = socket_path;
    }
    if (kept_count) {
        strcpy(names, "LISTEN_FDNAMES=");
        for (int i = 0; i < kept_count; i++)
            strcat(strcat(names, i ? ":" : ""), kept[i].name);
        sprintf(number, "LISTEN_FDS=%d", kept_count);
        sprintf(listen_pid, "LISTEN_PID=%d", getpid());
        spec.envp[spec.envs++] = number;
        spec.envp[spec.envs++] = names;
        spec.envp[spec.envs++] = listen_pid;
    }
    spec.envp[spec.envs] = NULL;
    default_signals();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(spec.argv[0], spec.argv, spec.envp);
    give_up("exec");
}

pid_t spawn(int ready_end, int report_end)
{
    report_fd = report_end;
    int group = service.fresh ? openat(service.cgroup, "main", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    struct clone_arguments arguments = {.flags = INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)group};
    pid_t pid = group < 0 ? -1 : (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    bool placed = service.cgroup < 0 || pid >= 0;
    if (pid < 0)
        pid = fork(); /* no cgroup, an old one, a filter without clone3: the child moves itself, which is slower */
    close_fd(&group);
    if (pid == 0)
        child(ready_end, placed);
    return pid;
}
