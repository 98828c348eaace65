/* Part of shim.c: the state file, messages to the client, finding processes. */
static void changed(void)
{
	int size = snprintf(state, sizeof state,
		"mixos-state 1\nunit %s\nboot %s\nshim %d %llu\nphase %s\nmain %d %llu\nready %d\nstopped %d\npopulated %d\n"
		"since %lld\nstarts %lld\nexit %d %d\noom %d\nfailure %s %d\ncgroup %s\nkills %s\nstatus %s\ndropped %lld\nlost %lld\n",
		spec.unit, boot, self, self_start, phases[phase], main_pid, main_start, ready, stopped, populated, since, starts,
		code, ended_by, oom, failure, failed_with, cgroup >= 0 ? spec.cgroup : "", cgroup >= 0 ? "cgroup" : "descendants",
		status, dropped, lost);
	int fd = open(".state.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	bool good = fd >= 0 && write(fd, state, (size_t)size) == size;
	close_fd(&fd);
	hook("state-written");
	if (good)
		rename(".state.new", "state");
}

static void enter(enum phase next)
{
	phase = next;
	since = clock_ns(CLOCK_MONOTONIC);
}

static void send_text(const char *text, bool with_fds)
{
	static char body[KEPT * (NAME + 1) + 64 + sizeof state];
	char rights[CMSG_SPACE(KEPT * sizeof(int))] __attribute__((aligned(8)));
	if (client < 0)
		return;
	int size = snprintf(body, sizeof body, "%s\n%s", text, state);
	struct iovec part = {body, (size_t)size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	if (with_fds && kept_count) {
		memset(rights, 0, sizeof rights);
		message.msg_control = rights;
		message.msg_controllen = CMSG_SPACE((size_t)kept_count * sizeof(int));
		struct cmsghdr *head = CMSG_FIRSTHDR(&message);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN((size_t)kept_count * sizeof(int));
		for (int i = 0; i < kept_count; i++)
			memcpy(CMSG_DATA(head) + (size_t)i * sizeof(int), &kept[i].fd, sizeof(int));
	}
	hook("before-send");
	if (sendmsg(client, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		close_fd(&client); /* gone, or it does not listen: it connects again and gets the state */
}

static void tell(const char *format, ...)
{
	char text[256];
	va_list list;
	va_start(list, format);
	vsnprintf(text, sizeof text, format, list);
	va_end(list);
	send_text(text, false);
}

/* ---- processes ---- */

static bool process(pid_t pid, pid_t *parent, unsigned long long *start) /* fields 4 and 22 of proc_pid_stat(5) */
{
	char name[32], text[512];
	snprintf(name, sizeof name, "/proc/%d/stat", pid);
	if (read_at(AT_FDCWD, name, text, sizeof text) <= 0)
		return false;
	char *end = strrchr(text, ')'); /* a name may contain anything */
	return end && sscanf(end + 1, " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", parent, start) == 2;
}

static bool descends(pid_t pid) /* from us */
{
	unsigned long long start;
	for (int depth = 0; depth < 4096 && pid > 1; depth++) {
		pid_t parent;
		if (!process(pid, &parent, &start))
			return false;
		if (parent == self)
			return true;
		pid = parent;
	}
	return false;
}

static pid_t descendants(int number) /* signal all, if number; the first child of ours */
{
	pid_t first = 0, parent;
	unsigned long long start;
	DIR *proc = opendir("/proc");
	for (struct dirent *entry; proc && (entry = readdir(proc));) {
		pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
		if (pid <= 1 || !descends(pid))
			continue;
		if (number)
			kill(pid, number);
		if (!first && process(pid, &parent, &start) && parent == self)
			first = pid;
	}
	if (proc)
		closedir(proc);
	return first;
}
