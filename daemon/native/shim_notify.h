/* Part of shim.c: descriptors that are kept, and sd_notify(3) messages of the service. */
static void look_ready(bool now);
static bool new_main(pid_t pid);

static bool keep(const char *name, int fd, bool own)
{
	if (!*name || strlen(name) > NAME || strpbrk(name, ": ") || kept_count == KEPT || (own && kept_own >= spec.fd_store))
		return false;
	for (const char *c = name; *c; c++)
		if (*c < '!' || *c > '~')
			return false;
	struct kept *entry = &kept[kept_count++];
	strcpy(entry->name, name);
	entry->fd = fd;
	entry->own = own;
	kept_own += own;
	return true;
}

static void unkeep(const char *name, bool own) /* the service removes only what it has brought itself */
{
	int to = 0;
	for (int i = 0; i < kept_count; i++) {
		if (strcmp(kept[i].name, name) == 0 && (!own || kept[i].own)) {
			kept_own -= kept[i].own;
			close(kept[i].fd);
		} else
			kept[to++] = kept[i];
	}
	kept_count = to;
}

static int rights(struct msghdr *message, int *fds, int room, struct ucred *sender) /* number of descriptors received */
{
	int count = 0, fd;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-compare" /* in musl's CMSG_NXTHDR */
	for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
#pragma GCC diagnostic pop
		if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_CREDENTIALS && sender)
			memcpy(sender, CMSG_DATA(head), sizeof *sender);
		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < (head->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
			memcpy(&fd, CMSG_DATA(head) + i * sizeof(int), sizeof fd);
			if (count < room)
				fds[count++] = fd;
			else
				close(fd);
		}
	}
	return count;
}

static bool trusted(const struct ucred *sender) /* a process of the service; one that has gone is known by its user only */
{
	pid_t parent;
	unsigned long long start;
	if (process(sender->pid, &parent, &start))
		return descends(sender->pid);
	return sender->uid == (uid_t)spec.notify_uid; /* ANYBODY is nobody's number */
}

static void notified(char *text, int *fds, int count) /* sd_notify(3) */
{
	const char *name = "stored";
	bool store = false, forget = false, become_ready = false, reload = false;
	long long value;
	char *rest;
	for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (strcmp(line, "READY=1") == 0)
			become_ready = true;
		else if (strcmp(line, "RELOADING=1") == 0)
			reload = true;
		else if (strcmp(line, "STOPPING=1") == 0)
			tell("stopping");
		else if (strcmp(line, "WATCHDOG=1") == 0)
			tell("watchdog 0");
		else if (strcmp(line, "WATCHDOG=trigger") == 0)
			tell("watchdog 1");
		else if (strncmp(line, "STATUS=", 7) == 0) {
			encode(status, line + 7, strnlen(line + 7, STATUS));
			changed();
			tell("status");
		} else if (strncmp(line, "MAINPID=", 8) == 0 && main_pid && to_number(line + 8, 2, 1 << 22, &value))
			told_main |= new_main((pid_t)value);
		else if (strncmp(line, "EXTEND_TIMEOUT_USEC=", 20) == 0 && to_number(line + 20, 0, INT64_MAX, &value))
			tell("extend %lld", value);
		else if (strncmp(line, "FDNAME=", 7) == 0)
			name = line + 7;
		store |= strcmp(line, "FDSTORE=1") == 0;
		forget |= strcmp(line, "FDSTOREREMOVE=1") == 0;
	}
	if (reload)
		tell("reloading");
	if (become_ready && (ready || phase == RUNNING))
		tell("ready"); /* after a reload */
	look_ready(become_ready);
	if (forget)
		unkeep(name, true), tell("unstored %.64s", name);
	for (int i = 0; i < count; i++)
		if (store && keep(name, fds[i], true))
			tell("stored %s", name);
		else
			close(fds[i]);
}

static void look_notify(void)
{
	static char text[4096];
	char ancillary[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(16 * sizeof(int))] __attribute__((aligned(8)));
	for (int count = 0; notify >= 0; count++) {
		if (count == NOTES_PER_TICK) { /* a flood of them waits in the queue of the socket, and so does its sender */
			notify_at = clock_ns(CLOCK_MONOTONIC) + TICK_MS * SECOND / 1000;
			return;
		}
		struct iovec part = {text, sizeof text - 1};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof ancillary};
		struct ucred sender = {.pid = 0, .uid = (uid_t)-1};
		int fds[16];
		ssize_t got = recvmsg(notify, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (got < 0 && errno != EINTR)
			return;
		int number = got < 0 ? 0 : rights(&message, fds, 16, &sender);
		text[got > 0 ? got : 0] = 0;
		if (got >= 0 && !(message.msg_flags & MSG_TRUNC) && trusted(&sender))
			notified(text, fds, number);
		else
			while (number--)
				close(fds[number]);
	}
}
