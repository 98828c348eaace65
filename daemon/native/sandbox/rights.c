/* The account, capabilities, seccomp. What is taken away is read back. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

bool user_mode;
uid_t account;
gid_t group;

/* A number of the range that no other sandbox has: whoever holds the lock of its file, which ends with the keeper. */
void choose_account(void)
{
    account = (uid_t)scalar[UID_FIRST];
    if (scalar[UID_FIRST] != scalar[UID_LAST] && !user_mode) {
        const char *folder = once[UID_LOCKS]->data;
        if (mkdir(folder, 0700) < 0 && errno != EEXIST)
            refuse("folder of account locks", folder);
        int at =
            (int)must(open(folder, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "folder of account locks", folder);
        for (;; account++) {
            char name[16];
            if (account > scalar[UID_LAST])
                deny("every account of the range is in use", "");
            snprintf(name, sizeof name, "%u", account);
            int fd = (int)must(openat(at, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600), "account lock", name);
            if (!flock(fd, LOCK_EX | LOCK_NB))
                break;
            close(fd);
        }
        close(at);
    }
    group = scalar[GID] == SAME_GID ? account : (gid_t)scalar[GID];
}

/* Pipes as standard streams belong to whoever uses them: opening /dev/stdout again asks for the rights of a file (pipe(7)).
 * A FIFO with a name is somebody else's file and stays as it is. */
void give_streams(void)
{
    struct statfs about;
    for (int fd = 0; fd < 3 && !user_mode; fd++)
        if (must(fstatfs(fd, &about), "descriptor", "") == 0 && about.f_type == PIPEFS_MAGIC)
            must(fchown(fd, account, (gid_t)-1), "standard stream", "");
}

static void write_map(const char *file, const char *format, unsigned inside, unsigned outside)
{
    char text[64];
    snprintf(text, sizeof text, format, inside, outside);
    must(write_at(AT_FDCWD, file, text) ? 0 : -1, "user namespace", file);
}

/* Without root: become the account in a user namespace of our own. It maps nobody else, so nobody else can be become. */
void take_rights(void)
{
    gid_t groups[64];
    size_t known = 0;
    if (!user_mode) {
        EACH (item, GROUP)
            if (known < 64)
                groups[known++] = (gid_t)item->head.value;
        must(setgroups(known, groups), "groups", "");
        return;
    }
    unsigned uid = geteuid(), gid = getegid();
    must(unshare(CLONE_NEWUSER | CLONE_NEWNS), "user namespace (not root, and this kernel or host forbids them)", "");
    write_map("/proc/self/setgroups", "deny", 0, 0);
    write_map("/proc/self/uid_map", "%u %u 1", account, uid);
    write_map("/proc/self/gid_map", "%u %u 1", group, gid);
}

/* Look up with the account's rights: what a user names must be something that the user can reach. */
void act_as(uid_t uid, gid_t gid)
{
    if (user_mode)
        return;
    if (uid == 0)
        must(syscall(SYS_setresuid, -1, uid, -1), "rights", "");
    must(syscall(SYS_setresgid, -1, gid, -1), "rights", "");
    if (uid != 0)
        must(syscall(SYS_setresuid, -1, uid, -1), "rights", "");
}

static uint64_t three_sets(int index)
{
    struct cap_head head = {CAP_VERSION_3, 0};
    struct cap_data data[2] = {0};
    must(syscall(SYS_capget, &head, data), "capget", "");
    uint32_t *low = &data[0].effective + index, *high = &data[1].effective + index;
    return *low | (uint64_t)*high << 32;
}

/* Become the account, keep the policy's capabilities (most often none), lock the door, and look whether it is locked. */
void drop_rights(void)
{
    uint64_t wanted = scalar[CAPABILITIES];
    must(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities", "");
    if (!user_mode) {
        must(setresgid(group, group, group), "group", "");
        must(setresuid(account, account, account), "account", "");
    }
    must(set_capabilities(wanted | CAP_SETPCAP_BIT, wanted), "capabilities", "");
    must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities", "");
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++) {
        if (wanted >> cap & 1)
            must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0), "ambient capability", "");
        else
            must(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), "bounding set", "");
    }
    must(prctl(PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0), "securebits", "");
    must(set_capabilities(wanted, wanted), "capabilities", "");
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs", "");
    must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable", "");

    uid_t uids[3];
    gid_t gids[3];
    must(getresuid(&uids[0], &uids[1], &uids[2]), "account", "");
    must(getresgid(&gids[0], &gids[1], &gids[2]), "group", "");
    int sound = prctl(PR_GET_SECUREBITS) == SECUREBITS && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
    for (int index = 0; index < 3; index++)
        sound = sound && uids[index] == account && gids[index] == group && three_sets(index) == wanted;
    int present;
    for (int cap = 0; (present = prctl(PR_CAPBSET_READ, cap, 0, 0, 0)) >= 0; cap++)
        sound = sound && present == (int)(wanted >> cap & 1) &&
                prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == present;
    if (!sound)
        deny("rights are not what was set", "");
    note(",\"account\":%u,\"group\":%u,\"capabilities\":\"%016llx\"", account, group,
         (unsigned long long)three_sets(0));
}

void install_filter(const struct record *item)
{
    struct sock_fprog program = {(unsigned short)(item->head.length / sizeof(struct sock_filter)), (void *)item->data};
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "seccomp", "");
}
