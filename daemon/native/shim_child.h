/* Part of shim.c: making the process of the service, from clone to execve. Runs between our code and a stranger's. */
static int report_fd = -1;

static void fail(const char *step) __attribute__((noreturn));
static void fail(const char *step)
{
	struct { int error; char step[12]; } report = {errno, ""};
	strncpy(report.step, step, sizeof report.step - 1);
	if (write(report_fd, &report, sizeof report) < 0)
		_exit(126);
	_exit(127);
}

#define TRY(step, call) do { if ((call) < 0) fail(step); } while (0)

static void child_descriptors(int ready_end) /* 0, 1, 2, the kept ones from 3 on, the readiness descriptor; all else closes */
{
	int high = kept_count + 3 > spec.ready_fd ? kept_count + 3 : (int)spec.ready_fd + 1, from[KEPT + 5], to[KEPT + 5], count = 0;
#define PLACE(source, target) (from[count] = (source), to[count++] = (target))
	PLACE(null, 0);
	PLACE(pipes[0][1], 1);
	PLACE(pipes[1][1], 2);
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
	struct { uint32_t version; int pid; } head = {0x20080522, 0}; /* capset(2), version 3 */
	struct { uint32_t effective, permitted, inheritable; } data[2];
	bool keep = spec.ambient && spec.uid;
	if (spec.bounding >= 0)
		for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
			if (cap > 40 || !(spec.bounding >> cap & 1))
				TRY("bounding", prctl(PR_CAPBSET_DROP, cap, 0, 0, 0));
	if (geteuid() == 0)
		TRY("groups", syscall(SYS_setgroups, spec.groups, spec.group));
	if (keep)
		TRY("ambient", prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
	TRY("group", syscall(SYS_setresgid, (gid_t)spec.gid, (gid_t)spec.gid, (gid_t)spec.gid));
	TRY("user", syscall(SYS_setresuid, (uid_t)spec.uid, (uid_t)spec.uid, (uid_t)spec.uid));
	for (int i = 0; i < 2; i++)
		data[i].effective = data[i].permitted = data[i].inheritable = (uint32_t)(spec.ambient >> 32 * i);
	if (keep)
		TRY("ambient", syscall(SYS_capset, &head, data));
	for (int cap = 0; keep && cap < 41; cap++)
		if (spec.ambient >> cap & 1)
			TRY("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0));
}

static void child(int ready_end, bool placed) __attribute__((noreturn));
static void child(int ready_end, bool placed)
{
	static char number[32], names[KEPT * (NAME + 1) + 16], listen_pid[32], socket_path[MAX_PATH + 24];
	sigset_t none;
	setsid();
	if (!placed && !write_at(cgroup, "main/cgroup.procs", "0"))
		fail("cgroup");
	sprintf(number, "%lld", spec.oom_score_adj); /* ours is inherited, so it is always written */
	if (!write_at(AT_FDCWD, "/proc/self/oom_score_adj", number))
		fail("oom");
	child_descriptors(ready_end);
	for (int i = 0; i < LIMITS; i++)
		if (spec.limit[i].set)
			TRY(limits[i].name, setrlimit(limits[i].resource, &spec.limit[i].value));
	TRY("nice", setpriority(PRIO_PROCESS, 0, (int)spec.nice));
	umask((mode_t)spec.umask);
	child_user();
	TRY("cwd", chdir(spec.cwd));
	if (spec.no_new_privileges)
		TRY("privileges", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (spec.notify) {
		sprintf(socket_path, "NOTIFY_SOCKET=%s/notify", folder);
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
	static const uint64_t by_default[4]; /* struct kernel_sigaction; a libc keeps its own signals, 32 to 34, from us */
	for (int i = 1; i < NSIG; i++)
		syscall(SYS_rt_sigaction, i, by_default, NULL, sizeof(uint64_t));
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(spec.argv[0], spec.argv, spec.envp);
	fail("exec");
}

static pid_t spawn(int ready_end)
{
	int group = fresh ? openat(cgroup, "main", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	uint64_t args[11] = {CLONE_INTO_CGROUP_FLAG, [4] = SIGCHLD, [10] = (uint64_t)group}; /* struct clone_args */
	pid_t pid = group < 0 ? -1 : (pid_t)syscall(SYS_clone3, args, sizeof args);
	bool placed = cgroup < 0 || pid >= 0;
	if (pid < 0)
		pid = fork(); /* no cgroup, an old one, a filter without clone3: the child moves itself, which is slower */
	close_fd(&group);
	if (pid == 0)
		child(ready_end, placed);
	return pid;
}
