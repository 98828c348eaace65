/* shim DIR: the parent of one service. It outlives the daemon, so that no exit status, log line or socket depends on it.
 *
 * Started by the daemon, it takes the lock of DIR, reads DIR/spec (keys: `numbers`, `texts` and `list_key` in spec.c;
 * written by daemon/parts/service/spec.py), listens on DIR/control, detaches itself and ends the first process with 0.
 * Else it says "REASON TEXT" on stderr and ends with 2 (usage), 3 (spec), 12 (DIR has a shim) or 1 (system).
 *
 * DIR/control is an AF_UNIX SOCK_SEQPACKET socket for one client of our uid; a new client replaces the old one. A message
 * to the shim is one command; each is answered, in order, by `ok`, `error REASON TEXT` or `fds NAME...` (with SCM_RIGHTS):
 *   start          read the spec again, run the service    stop MS        stop signal, SIGKILL after MS milliseconds
 *   signal N       to main                                 signal-all N   to everyone
 *   ready          the daemon found out that it is ready   main PID       and which process is main, of a service that daemonises
 *   store NAME     keep the descriptor that comes with it  unstore NAME   close it
 *   fds            copies of all that is kept              rotate         a new log file
 *   state          the state, brought up to date, then ok
 *   quit           end, when nothing of the service is left
 * Events come in between: started PID START, failed STEP ERRNO, ready, status, watchdog 0|1, mainpid PID START, stopping,
 * reloading, extend, stored NAME, unstored NAME, exited CODE SIGNAL OOM, empty; and `state` at the beginning.
 * The first line of a message is the word, all further lines are the state after it, as in DIR/state, which is replaced
 * atomically at each change and stays when we are killed. So no client needs the messages that it has missed.
 *
 * Logs: see daemon/parts/service/logs.py. The pipes are made once and we hold their write ends too: they never end, and no
 * line is lost between two starts. Lines over the rate are dropped and counted, and a flood is read at some MB/s only: then
 * the service waits, not the machine. A full disk costs lines, which are counted; nothing else.
 *
 * Killing: cgroup.kill of the service's group; we sit in another one. Its processes are in `main` below it, made anew for
 * each start. Without cgroups: its process group, then everything that descends from us: we are the subreaper (prctl(2)),
 * so orphans become our children. A fork bomb may outrun that.
 */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

struct shim shim = {.signals = -1, .control = -1, .client = -1, .null = -1};

#ifdef TEST_HOOKS
void hook(const char *step)
{
    const char *at = getenv("MIXOS_SHIM_STOP_AT");
    if (at && strcmp(at, step) == 0)
        kill(getpid(), SIGSTOP);
}
#endif

static void look_signals(void)
{
    struct signalfd_siginfo got;
    while (read(shim.signals, &got, sizeof got) == sizeof got)
        if (got.ssi_signo == SIGTERM) { /* the system goes down */
            shim.quitting = true;
            if (!service.populated && !service.main_pid)
                finish(NULL);
            stop(spec.grace);
        }
    reap();
}

static int wait_ms(long long now) /* until the next thing that is due, -1: nothing is */
{
    long long first = 0, due[] = {
                             service.kill_at,
                             logs.dropped_at,
                             logs.throttled > now ? logs.throttled : 0,
                             service.notify_at > now ? service.notify_at : 0,
                         };
    for (size_t i = 0; i < sizeof due / sizeof *due; i++)
        if (due[i] && (!first || due[i] < first))
            first = due[i];
    if (shim.reap_again)
        return 0;
    return !first ? -1 : first <= now ? 0 : (int)((first - now + 999999) / 1000000);
}

static _Noreturn void loop(void)
{
    for (;;) {
        long long now = clock_ns(CLOCK_MONOTONIC);
        bool slow = logs.throttled > now, deaf = service.notify_at > now;
        struct pollfd polled[10 + KEPT] = {
            {shim.signals, POLLIN, 0},
            {shim.control, POLLIN, 0},
            {shim.client, POLLIN, 0},
            {deaf ? -1 : service.notify, POLLIN, 0},
            {service.exec_pipe, POLLIN, 0},
            {service.ready_pipe, POLLIN, 0},
            {service.main_fd, POLLIN, 0},
            {service.main_pid ? -1 : service.cgroup_events, POLLPRI, 0},
            {slow ? -1 : shim.pipes[0][0], POLLIN, 0},
            {slow ? -1 : shim.pipes[1][0], POLLIN, 0},
        };
        if (poll(polled, (nfds_t)watch_kept(polled, 10), wait_ms(now)) < 0)
            continue; /* EINTR: we were stopped and go on */

        if (polled[4].revents) /* first: a program that is executed says nothing before */
            look_exec();
        for (int stream = 0; stream < 2; stream++)
            if (polled[8 + stream].revents)
                pump(stream, READS_PER_TICK);
        if (polled[3].revents)
            look_notify();
        if (polled[5].revents)
            look_ready_pipe();
        if (polled[0].revents || shim.reap_again) {
            shim.reap_again = false;
            look_signals();
        }
        if (polled[6].revents && service.main_fd >= 0) {
            reap(); /* main is not our child: its parent, if alive, has its status */
            if (service.main_fd >= 0)
                main_ended(-1, 0);
        }
        if (polled[2].revents && shim.client >= 0)
            look_client();
        if (polled[1].revents)
            look_control();
        look_kept();
        look_populated();
        now = clock_ns(CLOCK_MONOTONIC);
        if (service.kill_at && now >= service.kill_at)
            kill_all();
        if (logs.dropped_at && now >= logs.dropped_at)
            note_dropped();
        log_flush();
    }
}

static _Noreturn void refuse(int with, const char *reason, const char *text)
{
    fail(with, "%s %s: %s\n", reason, text, strerror(errno));
}

static void take_folder(const char *path)
{
    int line;
    if (path[0] != '/' || strlen(path) >= sizeof shim.folder)
        refuse(2, "usage", "DIR is no absolute path");
    strcpy(shim.folder, path);
    int dir = open(shim.folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0 || fchdir(dir) < 0)
        refuse(1, "system", shim.folder);
    if (flock(dir, LOCK_EX | LOCK_NB) < 0) /* held as long as `dir` is open: for ever */
        refuse(12, "running", shim.folder);
    const char *wrong = spec_load(&line);
    if (wrong)
        fail(3, "spec line %d: %s\n", line, wrong);
    int group = *spec.shim_cgroup ? open(spec.shim_cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (*spec.shim_cgroup && (group < 0 || !write_at(group, "cgroup.procs", "0")))
        refuse(1, "system", spec.shim_cgroup);
    close_fd(&group);
}

static void open_all(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "control"};
    sigset_t all, wanted;
    if (read_at(AT_FDCWD, "/proc/sys/kernel/random/boot_id", shim.boot, sizeof shim.boot) != 37)
        refuse(1, "system", "boot_id");
    shim.boot[36] = 0;
    umask(077);
    unlink("control");
    shim.control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    shim.null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (shim.null < 0 || shim.control < 0 || bind(shim.control, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(shim.control, 4) < 0)
        refuse(1, "system", "control");
    for (int i = 0; i < 2; i++)
        if (pipe2(shim.pipes[i], O_CLOEXEC) < 0 || fcntl(shim.pipes[i][0], F_SETFL, O_NONBLOCK) < 0)
            refuse(1, "system", "pipe");
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    sigaddset(&wanted, SIGTERM);
    shim.signals = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
    if (shim.signals < 0)
        refuse(1, "system", "signalfd");
}

int main(int argc, char **argv)
{
    pid_t parent;
    if (argc != 2)
        refuse(2, "usage", "shim DIR");
    if (syscall(SYS_close_range, 3, ~0U, 0) < 0) /* what the daemon has open without O_CLOEXEC is not the service's */
        refuse(1, "system", "close_range");
    take_folder(argv[1]);
    open_all();
    write_at(AT_FDCWD, "/proc/self/oom_score_adj", "-900"); /* refused to users other than root */
    hook("listening");
    pid_t pid = fork();
    if (pid < 0)
        refuse(1, "system", "fork");
    if (pid > 0)
        _exit(0);
    shim.self = getpid();
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
        _exit(1); /* no kernel since 3.4 */
    process(shim.self, &parent, &shim.self_start);
    setsid();
    umask(022);
    for (int i = 0; i < 3; i++)
        dup2(shim.null, i);
    enter(IDLE);
    changed();
    loop();
}
