/* What the files of the sandbox's launcher share. What it does, in which order, is described in main.c. */
#ifndef MIXOS_SANDBOX_H
#define MIXOS_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "../base.h"
#include "format.h"
#include "kernel.h"

enum { REFUSED = 125 };

/* ---- policy.c ---- */

struct record {
    struct record_head head;
    const char *data;
    int fd;                 /* READ_ONLY, READ_WRITE, DEVICE, PROXY_SOCKET: the detached mount */
    int folder, lock;       /* READ_WRITE: the host's folder; its lock, when something below it is protected */
    mode_t type;            /* of what is mounted (st_mode); 0: absent */
    char link[256];         /* READ_ONLY: the host has a symbolic link here, to this */
    struct record *under;   /* PROTECT: the writable path that holds it */
    char path[PATH_LENGTH]; /* PROTECT: what is really protected: data, or the file that stands in its way */
    int made, placeholder;  /* PROTECT: levels of the path that were made for it; whether an empty stand-in is there */
};
extern uint64_t scalar[SCALARS];
extern struct record records[RECORDS_MAX], *once[TAGS];
extern unsigned record_count;
#define EACH(item, wanted)                                                     \
    for (struct record *item = records; item < records + record_count; item++) \
        if (item->head.tag == (wanted))

void read_policy(const char *path);

/* ---- report.c ---- */

extern bool in_init; /* this process is PID 1 inside: no placeholders to remove */
extern int report_fd;

/* The only way out when something is not as it must be: nothing runs. `refuse` adds what errno says. */
_Noreturn void refuse(const char *what, const char *which);
_Noreturn void deny(const char *what, const char *which);
/* Refuse a negative result; else the result. */
long must(long result, const char *what, const char *which);
/* Add to the report; what has no room is left out. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* As a JSON string. */
void note_text(const char *text);
/* Whether less than half of its room is taken. */
bool report_has_room(void);
void send_report(void);

/* ---- rights.c ---- */

extern bool user_mode; /* started without root's rights */
extern uid_t account;
extern gid_t group;

void choose_account(void);
void give_streams(void);
void take_rights(void);
void act_as(uid_t uid, gid_t gid);
void drop_rights(void);
void install_filter(const struct record *item);

/* ---- landlock.c ---- */

extern int landlock_abi, landlock_used; /* ABI of this kernel, 0: none; ABI in force */

void landlock(void);

/* ---- limits.c ---- */

extern char cgroup_path[PATH_LENGTH]; /* the group that the command is in, as the host names it */

void find_cgroup(void);
void lower_limit(unsigned resource, uint64_t value);
void bound(const char *name, const char *file, uint64_t most, unsigned resource, uint64_t required);

/* ---- paths.c ---- */

int look_up(int at, const char *path, uint64_t resolve);
int clone_tree(int fd, const char *name);
void set_attributes(int fd, uint64_t set, unsigned recursive, const char *name);
void detach_paths(void);
void remove_placeholders(void);

/* ---- root.c ---- */

extern const char *const account_files[2]; /* passwd(5), group(5) */
extern bool account_named[2];              /* ours is there */

void make_root(void);
void own_null(void);

/* ---- bridge.c ---- */

void loopback_up(void);
int bridge_listen(uint16_t port);
_Noreturn void bridge_serve(int listener);

/* ---- environment.c ---- */

void make_environment(void);

#endif
