/* shim DIR: the parent of one service. It outlives the daemon, so that no exit status, log line or socket depends on it.
 *
 * Started by the daemon, it takes the lock of DIR, reads DIR/spec (keys: `numbers` and `texts` in shim_base.h, `list_key` in
 * shim_spec.h; written by daemon/parts/service/spec.py), listens on DIR/control, detaches itself and ends the first process
 * with 0. Else it says "REASON TEXT" on stderr and ends with 2 (usage), 3 (spec), 12 (DIR has a shim) or 1 (system).
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
 * reloading, extend MICROSECONDS, stored NAME, unstored NAME, exited CODE SIGNAL OOM, empty; and `state` at the beginning.
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
#include "shim_base.h"
#include "shim_child.h"
#include "shim_log.h"
#include "shim_spec.h"
#include "shim_state.h"
/* last: it uses all others */
#include "shim_notify.h"

/* ---- ends ---- */

static void kill_all(void)
{
	if (cgroup < 0 || !write_at(cgroup, "cgroup.kill", "1")) {
		if (main_pid)
			kill(-main_pid, SIGKILL);
		descendants(SIGSTOP); /* what stands still cannot fork while we look */
		descendants(SIGKILL);
	}
	kill_at = clock_ns(CLOCK_MONOTONIC) + SECOND / 5; /* again, until nothing is left */
}

static void signal_main(int number)
{
	if (main_fd >= 0)
		syscall(SYS_pidfd_send_signal, main_fd, number, NULL, 0); /* not our child: its number may be another's by now */
	else
		kill(main_pid, number);
}

static void stop(long long milliseconds)
{
	if (!populated)
		return tell("empty");
	long long at = clock_ns(CLOCK_MONOTONIC) + milliseconds * 1000000;
	bool first = phase != STOPPING && !(phase == EXITED && kill_at);
	kill_at = first || at < kill_at ? at : kill_at;
	stopped = true;
	if (first && main_pid) {
		enter(STOPPING);
		signal_main((int)spec.stop_signal);
	} else if (first)
		descendants((int)spec.stop_signal);
	changed();
	hook("stopping");
	if (milliseconds == 0)
		kill_all();
}

static long long oom_kills(void)
{
	char text[512];
	if (cgroup < 0 || read_at(cgroup, "memory.events", text, sizeof text) <= 0)
		return 0;
	char *at = strstr(text, "oom_kill ");
	return at ? atoll(at + 9) : 0;
}

static void finish(const char *answer) __attribute__((noreturn));
static void finish(const char *answer)
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
	if (cgroup_events < 0) /* as the subreaper we have a child as long as anyone is left, else ECHILD */
		return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
	ssize_t got = pread(cgroup_events, text, sizeof text - 1, 0); /* from the beginning: that also rearms poll(2) */
	text[got > 0 ? got : 0] = 0;
	return strstr(text, "populated 1") != NULL;
}

static void look_populated(void)
{
	if (main_pid || !populated)
		return;
	populated = anyone();
	if (populated)
		return;
	if (cgroup >= 0)
		unlinkat(cgroup, "main", AT_REMOVEDIR);
	kill_at = 0;
	drain();
	log_flush();
	close_fd(&cgroup_events);
	changed();
	tell("empty");
	if (quitting)
		finish(NULL);
}

static void look_ready(bool now)
{
	if (!now || ready || phase != STARTING)
		return;
	ready = true;
	enter(RUNNING);
	changed();
	tell("ready");
}

static void look_exec(void) /* the pipe ends when execve succeeds, else it says which step failed */
{
	struct { int error; char step[12]; } report;
	if (exec_pipe < 0)
		return;
	ssize_t got = read(exec_pipe, &report, sizeof report);
	if (got < 0)
		return;
	close_fd(&exec_pipe);
	started = got == 0;
	if (!started) {
		snprintf(failure, sizeof failure, "%.11s", report.step);
		failed_with = report.error;
		note("failed %s %d", failure, failed_with);
		changed();
		return tell("failed %s %d", failure, failed_with);
	}
	note("started %d", main_pid);
	if (phase == STARTING && !spec.await_ready && !spec.daemonises && !spec.ready_fd)
		enter(RUNNING);
	changed();
	hook("started");
	tell("started %d %llu", main_pid, main_start);
}

static void look_ready_pipe(void)
{
	char text[64];
	ssize_t got = ready_pipe < 0 ? -1 : read(ready_pipe, text, sizeof text);
	if (got > 0)
		look_ready(memchr(text, '\n', (size_t)got));
	if (got == 0 || ready)
		close_fd(&ready_pipe);
}

static bool new_main(pid_t pid) /* another process of the service is main from now on */
{
	pid_t parent;
	unsigned long long start;
	if (pid == main_pid || !descends(pid) || !process(pid, &parent, &start))
		return false;
	int fd = parent == self ? -1 : (int)syscall(SYS_pidfd_open, pid, 0); /* not our child: its parent gets its status */
	if (parent != self && fd < 0)
		return false;
	close_fd(&main_fd);
	main_fd = fd;
	main_pid = pid;
	main_start = start;
	note("main %d", pid);
	changed();
	tell("mainpid %d %llu", main_pid, main_start);
	return true;
}

static void main_ended(int status_code, int number)
{
	look_exec();
	look_ready_pipe();
	close_fd(&main_fd);
	drain();
	hook("exit-drained");
	if (spec.daemonises && started && status_code == 0 && phase != STOPPING && !told_main && new_main(descendants(0))) {
		background = true;
		return look_ready(!spec.await_ready);
	}
	close_fd(&exec_pipe);
	close_fd(&ready_pipe);
	main_pid = 0;
	main_start = 0;
	code = status_code;
	ended_by = number;
	oom = oom_kills() > oom_before;
	if (phase == STOPPING && anyone())
		descendants((int)spec.stop_signal); /* those that main leaves behind: kill_at holds for them too */
	enter(EXITED);
	note("exited %d %d%s", code, ended_by, oom ? " oom" : "");
	log_flush();
	hook("exit-logged");
	changed();
	hook("exit-state");
	tell("exited %d %d %d", code, ended_by, oom);
	if (log_fd >= 0 && !stopped)
		fdatasync(log_fd); /* why a service ended by itself outlives a power cut */
}

static void reap(void)
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
		if (info.si_pid == main_pid)
			main_ended(exited ? info.si_status : -1, exited ? 0 : info.si_status);
	}
	reap_again = true; /* a flood of processes must not keep us from everything else */
}

/* ---- start ---- */

static const char *open_notify(void) /* whoever may write to it: the sender of each message is looked at */
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "notify"};
	int one = 1;
	if (strlen(folder) + 8 > sizeof address.sun_path)
		return "path of the notification socket is too long";
	notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (notify < 0 || setsockopt(notify, SOL_SOCKET, SO_PASSCRED, &one, sizeof one) < 0
	    || bind(notify, (struct sockaddr *)&address, sizeof address) < 0 
	    || chown("notify", (uid_t)spec.notify_uid, (gid_t)-1) < 0 || (spec.notify_uid == ANYBODY && chmod("notify", 0666) < 0))
		return "notification socket";
	return NULL;
}

static const char *prepare(int ready_ends[2], int exec_ends[2])
{
	close_fd(&cgroup);
	close_fd(&cgroup_events);
	if (*spec.cgroup) {
		cgroup = open(spec.cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		cgroup_events = cgroup < 0 ? -1 : openat(cgroup, "cgroup.events", O_RDONLY | O_CLOEXEC);
		/* Linux with the fix of the race between fork and cgroup.kill (6.14, stable kernels since 2025) kills each process
		 * that is cloned into a group which was ever killed before. So every start gets a new one. */
		unlinkat(cgroup, "main", AT_REMOVEDIR);
		fresh = cgroup_events >= 0 && mkdirat(cgroup, "main", 0755) == 0;
		if (cgroup_events < 0 || (!fresh && errno != EEXIST))
			return "cgroup";
	}
	close_fd(&notify);
	unlink("notify");
	const char *wrong = spec.notify ? open_notify() : NULL;
	if (wrong)
		return wrong;
	if (spec.ready_fd && kept_count + 3 > spec.ready_fd)
		return "ready-fd is needed for a kept descriptor";
	for (int stream = 0; stream < 2; stream++) /* so that the service may open /dev/stdout again */
		if (fchown(pipes[stream][1], (uid_t)spec.uid, (gid_t)-1) < 0 && geteuid() == 0)
			return "pipe";
	if (pipe2(exec_ends, O_CLOEXEC) < 0 || (spec.ready_fd && pipe2(ready_ends, O_CLOEXEC) < 0))
		return "pipe";
	fcntl(exec_ends[0], F_SETFL, O_NONBLOCK);
	if (spec.ready_fd)
		fcntl(ready_ends[0], F_SETFL, O_NONBLOCK);
	log_open(false);
	return NULL;
}

static void start(void)
{
	int line, ready_ends[2] = {-1, -1}, exec_ends[2] = {-1, -1};
	pid_t parent;
	if (populated || main_pid)
		return tell("error busy processes are left");
	const char *wrong = spec_load(&line);
	if (wrong)
		return tell("error spec line %d: %s", line, wrong);
	wrong = prepare(ready_ends, exec_ends);
	hook("prepared");
	oom_before = oom_kills();
	report_fd = exec_ends[1];
	pid_t pid = wrong ? -1 : spawn(ready_ends[1]);
	int error = errno;
	close_fd(&exec_ends[1]);
	close_fd(&ready_ends[1]);
	if (pid < 0) {
		close_fd(&exec_ends[0]);
		close_fd(&ready_ends[0]);
		close_fd(&cgroup_events);
		return tell("error system %s: %s", wrong ? wrong : "clone", strerror(error));
	}
	hook("spawned");
	close_fd(&ready_pipe);
	exec_pipe = exec_ends[0];
	ready_pipe = ready_ends[0];
	if (!starts)
		tokens = spec.log_burst * SECOND; /* once: a service that is restarted again and again gets no more */
	main_pid = pid;
	process(pid, &parent, &main_start);
	ready = stopped = oom = told_main = background = started = false;
	populated = true;
	code = -1;
	ended_by = failed_with = 0;
	strcpy(failure, "-");
	*status = 0;
	starts++;
	enter(STARTING);
	changed();
	tell("ok");
}

/* ---- commands ---- */

static void command(char *text, int fd) /* fd: what came with it, or -1 */
{
	char *word[2] = {"", ""}, names[KEPT * (NAME + 1) + 8] = "fds";
	int count = split(text, word, 2);
	long long value = 0;
	bool number = count == 2 && to_number(word[1], 0, 86400000, &value);
#define IS(name, words) (count == (words) && strcmp(word[0], name) == 0)
	if (IS("store", 2) && fd >= 0) {
		if (keep(word[1], fd, false))
			fd = -1, tell("ok");
		else
			tell("error full no room, or not a name");
	} else if (IS("start", 1))
		start();
	else if (IS("stop", 2) && number)
		stop(value), tell("ok");
	else if ((IS("signal", 2) || IS("signal-all", 2)) && number && value <= 64) {
		if (!(word[0][6] ? populated : main_pid != 0))
			tell("error idle no process");
		else if (word[0][6])
			descendants((int)value), tell("ok");
		else
			signal_main((int)value), tell("ok");
	} else if (IS("main", 2) && number) {
		if (!main_pid || !background || (value != main_pid && !new_main((pid_t)value)))
			tell("error stranger not a process that the service has left in the background");
		else
			told_main = true, tell("ok");
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
		if (populated || main_pid)
			tell("error busy processes are left");
		else
			finish("ok");
	} else
		tell("error protocol unknown command");
	close_fd(&fd);
}

static void look_client(void)
{
	char text[256], ancillary[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	struct iovec part = {text, sizeof text - 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof ancillary};
	int fd = -1;
	ssize_t got = recvmsg(client, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (got <= 0)
		return close_fd(&client);
	rights(&message, &fd, 1, NULL);
	text[message.msg_flags & MSG_TRUNC ? 0 : got] = 0;
	command(text, fd);
}

static void look_control(void)
{
	struct ucred peer;
	socklen_t size = sizeof peer;
	int fd = accept4(control, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != geteuid())
		return close_fd(&fd);
	close_fd(&client);
	client = fd;
	changed();
	tell("state");
}

static void look_signals(void)
{
	struct signalfd_siginfo got;
	while (read(signals, &got, sizeof got) == sizeof got)
		if (got.ssi_signo == SIGTERM) { /* the system goes down */
			quitting = true;
			if (!populated && !main_pid)
				finish(NULL);
			stop(spec.grace);
		}
	reap();
}

static int wait_ms(long long now) /* until the next thing that is due, -1: nothing is */
{
	long long due[] = {kill_at, dropped_at, throttled > now ? throttled : 0, notify_at > now ? notify_at : 0}, first = 0;
	for (size_t i = 0; i < sizeof due / sizeof *due; i++)
		if (due[i] && (!first || due[i] < first))
			first = due[i];
	if (reap_again)
		return 0;
	return !first ? -1 : first <= now ? 0 : (int)((first - now + 999999) / 1000000);
}

static void loop(void) __attribute__((noreturn));
static void loop(void)
{
	for (;;) {
		long long now = clock_ns(CLOCK_MONOTONIC);
		bool slow = throttled > now, deaf = notify_at > now;
		struct pollfd polled[] = {
			{signals, POLLIN, 0}, {control, POLLIN, 0}, {client, POLLIN, 0}, {deaf ? -1 : notify, POLLIN, 0}, {exec_pipe, POLLIN, 0},
			{ready_pipe, POLLIN, 0}, {main_fd, POLLIN, 0}, {main_pid ? -1 : cgroup_events, POLLPRI, 0},
			{slow ? -1 : pipes[0][0], POLLIN, 0}, {slow ? -1 : pipes[1][0], POLLIN, 0},
		};
		if (poll(polled, sizeof polled / sizeof *polled, wait_ms(now)) < 0)
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
		if (polled[0].revents || reap_again) {
			reap_again = false;
			look_signals();
		}
		if (polled[6].revents && main_fd >= 0) { /* main is not our child: its parent, if alive, has its status */
			reap();
			if (main_fd >= 0)
				main_ended(-1, 0);
		}
		if (polled[2].revents && client >= 0)
			look_client();
		if (polled[1].revents)
			look_control();
		look_populated();
		now = clock_ns(CLOCK_MONOTONIC);
		if (kill_at && now >= kill_at)
			kill_all();
		if (dropped_at && now >= dropped_at)
			note_dropped();
		log_flush();
	}
}

static void refuse(int with, const char *reason, const char *text) __attribute__((noreturn));
static void refuse(int with, const char *reason, const char *text)
{
	fprintf(stderr, "%s %s: %s\n", reason, text, strerror(errno));
	_exit(with);
}

static void take_folder(const char *path)
{
	int line;
	if (path[0] != '/' || strlen(path) >= sizeof folder)
		refuse(2, "usage", "DIR is no absolute path");
	strcpy(folder, path);
	int dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0 || fchdir(dir) < 0)
		refuse(1, "system", folder);
	if (flock(dir, LOCK_EX | LOCK_NB) < 0) /* held as long as `dir` is open: for ever */
		refuse(12, "running", folder);
	const char *wrong = spec_load(&line);
	if (wrong) {
		fprintf(stderr, "spec line %d: %s\n", line, wrong);
		_exit(3);
	}
	int group = *spec.shim_cgroup ? open(spec.shim_cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (*spec.shim_cgroup && (group < 0 || !write_at(group, "cgroup.procs", "0")))
		refuse(1, "system", spec.shim_cgroup);
	close_fd(&group);
}

static void open_all(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "control"};
	sigset_t all, wanted;
	if (read_at(AT_FDCWD, "/proc/sys/kernel/random/boot_id", boot, sizeof boot) != 37)
		refuse(1, "system", "boot_id");
	boot[36] = 0;
	umask(077);
	unlink("control");
	control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0 || control < 0 || bind(control, (struct sockaddr *)&address, sizeof address) < 0 || listen(control, 4) < 0)
		refuse(1, "system", "control");
	for (int i = 0; i < 2; i++)
		if (pipe2(pipes[i], O_CLOEXEC) < 0 || fcntl(pipes[i][0], F_SETFL, O_NONBLOCK) < 0)
			refuse(1, "system", "pipe");
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGCHLD);
	sigaddset(&wanted, SIGTERM);
	signals = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0)
		refuse(1, "system", "signalfd");
}

int main(int argc, char **argv)
{
	pid_t parent;
	if (argc != 2)
		refuse(2, "usage", "shim DIR");
	take_folder(argv[1]);
	open_all();
	write_at(AT_FDCWD, "/proc/self/oom_score_adj", "-900"); /* refused to users other than root */
	hook("listening");
	pid_t pid = fork();
	if (pid < 0)
		refuse(1, "system", "fork");
	if (pid > 0)
		_exit(0);
	self = getpid();
	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		_exit(1); /* no kernel since 3.4 */
	process(self, &parent, &self_start);
	setsid();
	umask(022);
	for (int i = 0; i < 3; i++)
		dup2(null, i);
	enter(IDLE);
	changed();
	loop();
}
