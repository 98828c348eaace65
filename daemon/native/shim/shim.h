/* What the files of the shim share. Its protocol is described in main.c. */
#ifndef MIXOS_SHIM_H
#define MIXOS_SHIM_H

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

#include "../base.h"

enum {
    LINE = 8192,          /* bytes of a line of the log; longer ones are cut into several */
    CHUNK = 16384,        /* bytes that are read or written at once */
    PREFIX = 64,          /* most bytes before the text of a record */
    NOTE = 96,            /* most bytes of a record of our own */
    KEPT = 64,            /* descriptors */
    NAME = 64,            /* bytes of a descriptor's name */
    GROUPS = 32,          /* of the spec */
    LISTS = 1024,         /* arguments; variables */
    LIMITS = 16,          /* kinds of limits */
    MAX_SPEC = 128 << 10, /* bytes */
    MAX_PATH = 256,
    STATUS = 200, /* bytes of a status text */
    TICK_MS = 10, /* for which a flood waits */
    READS_PER_TICK = 4,
    NOTES_PER_TICK = 16,
    STOP_MORE = 600, /* seconds: the most that a service gets by asking while it is stopped */
    COST = 256,      /* bytes of a line that cost as much as another line */
};
#define SECOND 1000000000LL
#define DAY 86400000000LL    /* in microseconds: the most that a service gets at once */
#define ANYBODY 0xffffffffLL /* no user has this number */

/* ---- spec.c: DIR/spec ---- */

struct limit {
    bool set;
    struct rlimit value;
};
struct spec {
    char *map; /* the file, decoded in place, then the pointers of argv and envp */
    size_t size;
    char *unit, *cwd, *cgroup, *shim_cgroup, *log_folder, **argv, **envp;
    int args, envs, groups;
    gid_t group[GROUPS];
    struct limit limit[LIMITS];
    long long uid, gid, notify_uid, umask, nice, oom_score_adj, no_new_privileges, ambient, bounding, notify,
        await_ready, ready_fd, daemonises, stop_signal, grace, fd_store, log_size, log_files, log_rate, log_burst;
};
struct limit_name {
    char name[12];
    int resource;
};
extern struct spec spec;
extern const struct limit_name limit_names[LIMITS]; /* in the order of spec.limit */

/* Read the file again. What is wrong with it, and in which line (0: with all of it); then `spec` stays as it was. */
const char *spec_load(int *line);

/* ---- the shim itself, and the service: what DIR/state tells, and what leads there ---- */

enum phase { IDLE, STARTING, RUNNING, STOPPING, EXITED };
struct shim {
    char folder[MAX_PATH], boot[40];
    pid_t self;
    unsigned long long self_start; /* as in proc_pid_stat(5) */
    int signals, control, client, null, pipes[2][2];
    bool quitting, reap_again;
};
struct service {
    enum phase phase;
    pid_t main_pid; /* 0: none */
    unsigned long long main_start;
    int main_fd; /* pidfd of a main that is not our child, else -1 */
    bool ready, stopped, populated, oom;
    bool started;                        /* execve succeeded */
    bool background;                     /* main was left in the background */
    bool told_main;                      /* we were told which process is main */
    bool fresh;                          /* its group was made for this start */
    long long since, kill_at, notify_at; /* CLOCK_MONOTONIC in ns, 0: never */
    long long until, latest;             /* how long this start or stop may take (0: nobody said); and at most */
    long long starts, oom_before;        /* how often it was started; processes that the kernel had killed before */
    int code, ended_by;                  /* its exit code, or -1 and the signal */
    char failure[16];                    /* the step of a start that failed, "-": none did */
    int failed_with;                     /* its errno */
    char status[3 * STATUS + 1];         /* sd_notify(3), encoded */
    int cgroup, cgroup_events, notify, ready_pipe, exec_pipe;
};
extern struct shim shim;
extern struct service service;

/* ---- state.c: DIR/state, messages to the client ---- */

/* Write DIR/state as it is now. */
void changed(void);
/* Another phase begins. */
void enter(enum phase next);
/* A message with the state after it. with_fds: and copies of what is kept. Nobody connected: nothing happens. */
void send_text(const char *text, bool with_fds);
void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- service.c: its life ---- */

void start(void);
void stop(long long milliseconds);
/* It asks for so many microseconds from now, for its start or stop. */
void extend(long long microseconds);
void signal_main(int number);
void kill_all(void);
/* Clean up, answer the last command if there is one, end. */
_Noreturn void finish(const char *answer);
void main_ended(int status_code, int number);
/* Another process of the service is main from now on; whether it may be. */
bool new_main(pid_t pid);
void reap(void);
void look_populated(void);
void look_ready(bool now);
/* The pipe ends when execve succeeds, else it says which step failed. */
void look_exec(void);
void look_ready_pipe(void);

/* ---- child.c: from clone to execve ---- */

/* The new process's number or -1. ready_end: the end of the readiness pipe that it gets, or -1. report_end: the end of a
 * pipe into which it writes a struct report when a step fails, and which execve closes. */
struct report {
    int error;
    char step[12];
};
pid_t spawn(int ready_end, int report_end);

/* ---- log.c: from the pipes of the service to files ---- */

struct logs {
    int fd;
    long long tokens;                /* SECOND each: what may be written at once */
    long long throttled, dropped_at; /* when to read on; when to note what was dropped (0: nothing was) */
    long long dropped, lost;         /* records: over the rate; for which there was no room */
};
extern struct logs logs;

/* The newest file, or a new one; old ones vanish first, so that the sum is bounded. */
void log_open(bool next);
void log_flush(void);
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
void note_dropped(void);
/* Read what is there, `reads` times at most. */
void pump(int stream, int reads);
/* All that was written by processes that have ended. */
void drain(void);

/* ---- notify.c: sd_notify(3) messages ---- */

/* Whoever may write to it: the sender of each message is looked at. What went wrong, or NULL. */
const char *open_notify(void);
void look_notify(void);

/* ---- descriptors.c: those that are kept, and those that come with a message ---- */

struct kept {
    char name[NAME + 1];
    int fd;
    bool own;     /* the service has brought it itself */
    bool watched; /* it goes when its other end hangs up */
};
extern struct kept kept[KEPT];
extern int kept_count;

/* Whether there is room, the name is one, and the service has not brought it before. */
bool keep(const char *name, int fd, bool own, bool watched);
/* Add what is watched to a list for poll(2); its new length. */
int watch_kept(struct pollfd *polled, int count);
/* Let go of what is watched and has hung up. */
void look_kept(void);
/* own: the service removes only what it has brought itself. */
void unkeep(const char *name, bool own);
/* Close what came from the service. The last close(2) of a socket that is set to linger would wait for its other end. */
void let_go(int fd);
/* Room for all descriptors that one message can bring (SCM_MAX_FD of Linux): the kernel closes what has none, and waits. */
#define BROUGHT 253
/* Number of descriptors received, at most `room`; what is more is closed. sender: NULL, or where its credentials go. */
int received(struct msghdr *message, int *fds, int room, struct ucred *sender);

/* ---- process.c ---- */

long long clock_ns(clockid_t id);
/* Fields 4 and 22 of proc_pid_stat(5); whether there is such a process. */
bool process(pid_t pid, pid_t *parent, unsigned long long *start_time);
/* From us. */
bool descends(pid_t pid);
/* Signal all that descend from us, if number; the first child of ours. */
pid_t descendants(int number);

/* ---- control.c: commands of the client ---- */

void look_client(void);
void look_control(void);

/* ---- words.c ---- */

bool to_number(const char *text, long long low, long long high, long long *result);
/* %XX, in place; no byte 0. */
bool decode(char *text);
/* `to` has room for 3 * size + 1. */
void encode(char *to, const char *from, size_t size);
/* Number of words, -1: more than `most`. */
int split(char *line, char **words, int most);

#ifdef TEST_HOOKS /* tests stop us at a step and kill us or the client there */
void hook(const char *step);
#else
#define hook(step) ((void)0)
#endif

#endif
