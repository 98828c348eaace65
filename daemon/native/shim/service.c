/* The life of the service: start, stop, and what is seen of its end. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct service service = {
    .main_fd = -1,
    .code = -1,
    .failure = "-",
    .cgroup = -1,
    .cgroup_events = -1,
    .notify = -1,
    .ready_pipe = -1,
    .exec_pipe = -1,
};

void kill_all(void)
{
    if (service.cgroup < 0 || !write_at(service.cgroup, "cgroup.kill", "1")) {
        if (service.main_pid)
            kill(-service.main_pid, SIGKILL);
        descendants(SIGSTOP); /* what stands still cannot fork while we look */
        descendants(SIGKILL);
    }
    service.kill_at = clock_ns(CLOCK_MONOTONIC) + SECOND / 5; /* again, until nothing is left */
}

void signal_main(int number)
{
    if (service.main_fd >= 0) /* not our child: its number may be another's by now */
        syscall(SYS_pidfd_send_signal, service.main_fd, number, NULL, 0);
    else
        kill(service.main_pid, number);
}

void stop(long long milliseconds)
{
    if (!service.populated)
        return tell("empty");
    long long at = clock_ns(CLOCK_MONOTONIC) + milliseconds * 1000000;
    bool first = service.phase != STOPPING && !(service.phase == EXITED && service.kill_at);
    if (first || at < service.until)
        service.kill_at = service.until = at;
    if (first)
        service.latest = at + STOP_MORE * SECOND;
    service.stopped = true;
    if (first && service.main_pid) {
        enter(STOPPING);
        signal_main((int)spec.stop_signal);
    } else if (first)
        descendants((int)spec.stop_signal);
    changed();
    hook("stopping");
    if (milliseconds == 0)
        kill_all();
}

void extend(long long microseconds)
{
    long long now = clock_ns(CLOCK_MONOTONIC), at = now + 1000 * microseconds;
    bool stopping = service.kill_at != 0;
    if ((!stopping && service.phase != STARTING) || service.kill_at > service.until)
        return; /* nothing that has its time, or it is being killed */
    at = stopping && at > service.latest ? service.latest : at;
    if (at <= service.until)
        return; /* asking never takes time away */
    service.until = at;
    service.kill_at = stopping ? at : 0;
    changed();
    tell("extend");
}

static long long oom_kills(void)
{
    char text[512];
    if (service.cgroup < 0 || read_at(service.cgroup, "memory.events", text, sizeof text) <= 0)
        return 0;
    char *at = strstr(text, "oom_kill ");
    return at ? atoll(at + 9) : 0;
}

_Noreturn void finish(const char *answer)
{
    log_flush();
    unlink("notify");
    unlink("state");
    unlink("control");
    if (answer)
        tell("%s", answer);
    _exit(0); /* which frees the lock before it closes the connection: the lower descriptor goes first */
}

static bool anyone(void) /* is left besides main */
{
    char text[128];
    siginfo_t info;
    if (service.cgroup_events < 0) /* as the subreaper we have a child as long as anyone is left, else ECHILD */
        return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
    /* from the beginning: that also rearms poll(2) */
    ssize_t got = pread(service.cgroup_events, text, sizeof text - 1, 0);
    text[got > 0 ? got : 0] = 0;
    return strstr(text, "populated 1") != NULL;
}

void look_populated(void)
{
    if (service.main_pid || !service.populated)
        return;
    service.populated = anyone();
    if (service.populated)
        return;
    if (service.cgroup >= 0)
        unlinkat(service.cgroup, "main", AT_REMOVEDIR);
    service.kill_at = 0;
    drain();
    log_flush();
    close_fd(&service.cgroup_events);
    changed();
    tell("empty");
    if (shim.quitting)
        finish(NULL);
}

void look_ready(bool now)
{
    if (!now || service.ready || service.phase != STARTING)
        return;
    service.ready = true;
    enter(RUNNING);
    changed();
    tell("ready");
}

void look_exec(void)
{
    struct report report;
    if (service.exec_pipe < 0)
        return;
    ssize_t got = read(service.exec_pipe, &report, sizeof report);
    if (got < 0)
        return;
    close_fd(&service.exec_pipe);
    service.started = got == 0;
    if (!service.started) {
        snprintf(service.failure, sizeof service.failure, "%.11s", report.step);
        service.failed_with = report.error;
        note("failed %s %d", service.failure, service.failed_with);
        changed();
        return tell("failed %s %d", service.failure, service.failed_with);
    }
    note("started %d", service.main_pid);
    if (service.phase == STARTING && !spec.await_ready && !spec.daemonises && !spec.ready_fd)
        enter(RUNNING);
    changed();
    hook("started");
    tell("started %d %llu", service.main_pid, service.main_start);
}

void look_ready_pipe(void)
{
    char text[64];
    ssize_t got = service.ready_pipe < 0 ? -1 : read(service.ready_pipe, text, sizeof text);
    if (got > 0)
        look_ready(memchr(text, '\n', (size_t)got));
    if (got == 0 || service.ready)
        close_fd(&service.ready_pipe);
}

bool new_main(pid_t pid)
{
    pid_t parent;
    unsigned long long start;
    if (pid == service.main_pid || !descends(pid) || !process(pid, &parent, &start))
        return false;
    /* not our child: its parent gets its status */
    int fd = parent == shim.self ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
    if (parent != shim.self && fd < 0)
        return false;
    close_fd(&service.main_fd);
    service.main_fd = fd;
    service.main_pid = pid;
    service.main_start = start;
    note("main %d", pid);
    changed();
    tell("mainpid %d %llu", service.main_pid, service.main_start);
    return true;
}

void main_ended(int status_code, int number)
{
    look_exec();
    look_ready_pipe();
    close_fd(&service.main_fd);
    drain();
    hook("exit-drained");
    if (spec.daemonises && service.started && status_code == 0 && service.phase != STOPPING && !service.told_main &&
        new_main(descendants(0))) {
        service.background = true;
        return look_ready(!spec.await_ready);
    }
    close_fd(&service.exec_pipe);
    close_fd(&service.ready_pipe);
    service.main_pid = 0;
    service.main_start = 0;
    service.code = status_code;
    service.ended_by = number;
    service.oom = oom_kills() > service.oom_before;
    if (service.phase == STOPPING && anyone())
        descendants((int)spec.stop_signal); /* those that main leaves behind: kill_at holds for them too */
    enter(EXITED);
    note("exited %d %d%s", service.code, service.ended_by, service.oom ? " oom" : "");
    log_flush();
    hook("exit-logged");
    changed();
    hook("exit-state");
    tell("exited %d %d %d", service.code, service.ended_by, service.oom);
    if (logs.fd >= 0 && !service.stopped)
        fdatasync(logs.fd); /* why a service ended by itself outlives a power cut */
}

void reap(void)
{
    siginfo_t info;
    for (int count = 0; count < 256; count++) {
        info.si_pid = 0;
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || !info.si_pid)
            return look_populated();
        look_notify(); /* what it said before it ended: as a zombie it can still be told from a stranger */
        hook("exit-seen");
        waitid(P_PID, (id_t)info.si_pid, &info, WEXITED | WNOHANG);
        bool exited = info.si_code == CLD_EXITED;
        if (info.si_pid == service.main_pid)
            main_ended(exited ? info.si_status : -1, exited ? 0 : info.si_status);
    }
    shim.reap_again = true; /* a flood of processes must not keep us from everything else */
}

static const char *prepare(int ready_ends[2], int exec_ends[2])
{
    close_fd(&service.cgroup);
    close_fd(&service.cgroup_events);
    if (*spec.cgroup) {
        service.cgroup = open(spec.cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        service.cgroup_events = service.cgroup < 0 ? -1 : openat(service.cgroup, "cgroup.events", O_RDONLY | O_CLOEXEC);
        /* Linux with the fix of the race between fork and cgroup.kill (6.14, stable kernels since 2025) kills each process
         * that is cloned into a group which was ever killed before. So every start gets a new one. */
        unlinkat(service.cgroup, "main", AT_REMOVEDIR);
        service.fresh = service.cgroup_events >= 0 && mkdirat(service.cgroup, "main", 0755) == 0;
        if (service.cgroup_events < 0 || (!service.fresh && errno != EEXIST))
            return "cgroup";
    }
    close_fd(&service.notify);
    unlink("notify");
    const char *wrong = spec.notify ? open_notify() : NULL;
    if (wrong)
        return wrong;
    if (spec.ready_fd && kept_count + 3 > spec.ready_fd)
        return "ready-fd is needed for a kept descriptor";
    for (int stream = 0; stream < 2; stream++) /* so that the service may open /dev/stdout again */
        if (fchown(shim.pipes[stream][1], (uid_t)spec.uid, (gid_t)-1) < 0 && geteuid() == 0)
            return "pipe";
    if (pipe2(exec_ends, O_CLOEXEC) < 0 || (spec.ready_fd && pipe2(ready_ends, O_CLOEXEC) < 0))
        return "pipe";
    fcntl(exec_ends[0], F_SETFL, O_NONBLOCK);
    if (spec.ready_fd)
        fcntl(ready_ends[0], F_SETFL, O_NONBLOCK);
    log_open(false);
    return NULL;
}

void start(void)
{
    int line, ready_ends[2] = {-1, -1}, exec_ends[2] = {-1, -1};
    pid_t parent;
    if (service.populated || service.main_pid)
        return tell("error busy processes are left");
    look_kept();
    const char *wrong = spec_load(&line);
    if (wrong)
        return tell("error spec line %d: %s", line, wrong);
    wrong = prepare(ready_ends, exec_ends);
    hook("prepared");
    service.oom_before = oom_kills();
    pid_t pid = wrong ? -1 : spawn(ready_ends[1], exec_ends[1]);
    int error = errno;
    close_fd(&exec_ends[1]);
    close_fd(&ready_ends[1]);
    if (pid < 0) {
        close_fd(&exec_ends[0]);
        close_fd(&ready_ends[0]);
        close_fd(&service.cgroup_events);
        return tell("error system %s: %s", wrong ? wrong : "clone", strerror(error));
    }
    hook("spawned");
    close_fd(&service.ready_pipe);
    service.exec_pipe = exec_ends[0];
    service.ready_pipe = ready_ends[0];
    if (!service.starts)
        logs.tokens = spec.log_burst * SECOND; /* once: a service that is restarted again and again gets no more */
    service.main_pid = pid;
    process(pid, &parent, &service.main_start);
    service.ready = service.stopped = service.oom = service.told_main = service.background = service.started = false;
    service.populated = true;
    service.code = -1;
    service.ended_by = service.failed_with = 0;
    service.until = service.latest = 0;
    strcpy(service.failure, "-");
    *service.status = 0;
    service.starts++;
    enter(STARTING);
    changed();
    tell("ok");
}
