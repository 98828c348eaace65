/* Part of shim.c: constants, what the spec says, what we know, small helpers. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 8192, CHUNK = 16384, PREFIX = 64, NOTE = 96, KEPT = 64, NAME = 64, GROUPS = 32, LISTS = 1024, LIMITS = 16 };
enum { MAX_SPEC = 128 << 10, MAX_PATH = 256, STATUS = 200, TICK_MS = 10, READS_PER_TICK = 4, NOTES_PER_TICK = 16, COST = 256 };
#define SECOND 1000000000LL
#define ANYBODY 0xffffffffLL /* no user has this number */
#define CLONE_INTO_CGROUP_FLAG 0x200000000ULL /* clone3(2) */

#ifdef TEST_HOOKS /* tests stop us at a step and kill us or the client there */
static void hook(const char *step)
{
	const char *at = getenv("MIXOS_SHIM_STOP_AT");
	if (at && strcmp(at, step) == 0)
		kill(getpid(), SIGSTOP);
}
#else
#define hook(step) ((void)0)
#endif

struct limit { bool set; struct rlimit value; };
struct spec {
	char *map; /* the file, decoded in place, then the pointers of argv and envp */
	size_t size;
	char *unit, *cwd, *cgroup, *shim_cgroup, *log_folder, **argv, **envp;
	int args, envs, groups;
	gid_t group[GROUPS];
	struct limit limit[LIMITS];
	long long uid, gid, notify_uid, umask, nice, oom_score_adj, no_new_privileges, ambient, bounding, notify, await_ready, ready_fd,
		daemonises, stop_signal, grace, fd_store, log_size, log_files, log_rate, log_burst;
};
#define AT(member) offsetof(struct spec, member)
static const struct number_key { const char *name; size_t at; long long low, high; } numbers[] = {
	{"uid", AT(uid), 0, 0xfffffffeLL}, {"gid", AT(gid), 0, 0xfffffffeLL},
	{"notify-uid", AT(notify_uid), 0, ANYBODY}, {"umask", AT(umask), 0, 0777},
	{"nice", AT(nice), -20, 19}, {"oom-score-adj", AT(oom_score_adj), -1000, 1000},
	{"no-new-privileges", AT(no_new_privileges), 0, 1}, {"ambient", AT(ambient), 0, (1LL << 41) - 1},
	{"bounding", AT(bounding), 0, (1LL << 41) - 1}, {"notify", AT(notify), 0, 1}, {"await-ready", AT(await_ready), 0, 1},
	{"ready-fd", AT(ready_fd), 0, 255}, {"daemonises", AT(daemonises), 0, 1}, {"stop-signal", AT(stop_signal), 1, 64},
	{"grace", AT(grace), 0, 86400000}, {"fd-store", AT(fd_store), 0, KEPT}, {"log-size", AT(log_size), 65536, 1LL << 32},
	{"log-files", AT(log_files), 0, 100}, {"log-rate", AT(log_rate), 0, 1000000}, {"log-burst", AT(log_burst), 1, 1000000},
};
static const struct text_key { const char *name; size_t at; } texts[] = {
	{"unit", AT(unit)}, {"cwd", AT(cwd)}, {"cgroup", AT(cgroup)}, {"shim-cgroup", AT(shim_cgroup)}, {"log-folder", AT(log_folder)},
};
static const struct { const char *name; int resource; } limits[LIMITS] = {
	{"as", RLIMIT_AS}, {"core", RLIMIT_CORE}, {"cpu", RLIMIT_CPU}, {"data", RLIMIT_DATA}, {"fsize", RLIMIT_FSIZE},
	{"locks", RLIMIT_LOCKS}, {"memlock", RLIMIT_MEMLOCK}, {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE},
	{"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC}, {"rss", RLIMIT_RSS}, {"rtprio", RLIMIT_RTPRIO},
	{"rttime", RLIMIT_RTTIME}, {"sigpending", RLIMIT_SIGPENDING}, {"stack", RLIMIT_STACK},
};
enum { NUMBERS = sizeof numbers / sizeof *numbers, TEXTS = sizeof texts / sizeof *texts };

enum phase { IDLE, STARTING, RUNNING, STOPPING, EXITED };
static const char *const phases[] = {"idle", "starting", "running", "stopping", "exited"};

static struct spec spec = {.unit = "", .cgroup = ""};
static char folder[MAX_PATH], boot[40], status[3 * STATUS + 1], failure[16] = "-", state[4096];
static enum phase phase;
static pid_t self, main_pid;
static unsigned long long self_start, main_start;
static bool ready, stopped, populated, oom, quitting, told_main, background, reap_again, started, fresh;
static long long since, starts, kill_at, oom_before, throttled, dropped_at, retry_at, notify_at;
static int code = -1, ended_by, failed_with;
static int signals = -1, control = -1, client = -1, notify = -1, ready_pipe = -1, exec_pipe = -1, main_fd = -1;
static int cgroup = -1, cgroup_events = -1, null = -1, log_fd = -1, pipes[2][2];
static struct kept { char name[NAME + 1]; int fd; bool own; } kept[KEPT];
static int kept_count, kept_own;


static long long clock_ns(clockid_t id)
{
	struct timespec t;
	clock_gettime(id, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static ssize_t read_at(int at, const char *name, char *to, size_t room)
{
	int fd = openat(at, name, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, to, room - 1);
	close_fd(&fd);
	to[got > 0 ? got : 0] = 0;
	return got;
}

static bool write_at(int at, const char *name, const char *text)
{
	int fd = openat(at, name, O_WRONLY | O_CLOEXEC);
	bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	int error = errno;
	close_fd(&fd);
	errno = error;
	return good;
}

/* ---- words ---- */

static bool to_number(const char *text, long long low, long long high, long long *result)
{
	bool negative = *text == '-';
	long long value = 0;
	const char *at = text + negative;
	if (!*at || strlen(at) > 18)
		return false;
	for (; *at; at++) {
		if (*at < '0' || *at > '9')
			return false;
		value = value * 10 + (*at - '0');
	}
	*result = negative ? -value : value;
	return low <= *result && *result <= high;
}

static int hex(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool decode(char *text) /* %XX, in place; no byte 0 */
{
	char *to = text;
	for (; *text; text++) {
		if (*text <= ' ' || *text >= 0x7f)
			return false;
		if (*text != '%') {
			*to++ = *text;
			continue;
		}
		int high = hex(text[1]), low = high < 0 ? -1 : hex(text[2]);
		if (low < 0 || (high | low) == 0)
			return false;
		*to++ = (char)(high << 4 | low);
		text += 2;
	}
	*to = 0;
	return true;
}

static void encode(char *to, const char *from, size_t size) /* room for 3 * size + 1 */
{
	for (; size--; from++) {
		unsigned char c = (unsigned char)*from;
		if (c > ' ' && c < 0x7f && c != '%')
			*to++ = (char)c;
		else
			to += sprintf(to, "%%%02X", c);
	}
	*to = 0;
}

static int split(char *line, char **words, int most) /* number of words, -1: too many */
{
	int count = 0;
	for (char *at = line; at; count++) {
		if (count == most)
			return -1;
		words[count] = at;
		at = strchr(at, ' ');
		if (at)
			*at++ = 0;
	}
	return count;
}
