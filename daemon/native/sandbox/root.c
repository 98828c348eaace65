/* Inside: the new root, a tmpfs with exactly what the policy shows. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int root;
static dev_t own[64]; /* our own tmpfs: only in these are mount points made, never in what the host shows us */
static unsigned owned;

static int is_own(int fd)
{
    struct stat info;
    must(fstat(fd, &info), "stat", "");
    for (unsigned index = 0; index < owned; index++)
        if (own[index] == info.st_dev)
            return 1;
    return 0;
}

/* A new file system, detached. options: key, value (NULL: a flag), ..., NULL. */
static int new_filesystem(const char *type, uint64_t attributes, const char *const *options)
{
    int context = (int)must(syscall(SYS_fsopen, type, FS_CLOEXEC), "file system", type);
    for (; *options; options += 2)
        must(syscall(SYS_fsconfig, context, options[1] ? FS_SET_STRING : FS_SET_FLAG, options[0], options[1], 0),
             "option of a file system:", options[0]);
    must(syscall(SYS_fsconfig, context, FS_CREATE, NULL, NULL, 0), "file system", type);
    int fd = (int)must(syscall(SYS_fsmount, context, FS_CLOEXEC, attributes), "file system", type);
    close(context);
    return fd;
}

static int new_tmpfs(uint64_t size, const char *mode, uint64_t attributes)
{
    char bytes[24], inodes[24];
    struct stat info;
    snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)size);
    snprintf(inodes, sizeof inodes, "%llu", (unsigned long long)(size / 4096 + 256));
    int fd = new_filesystem("tmpfs", attributes,
                            (const char *const[]){"size", bytes, "nr_inodes", inodes, "mode", mode, NULL});
    must(fstat(fd, &info), "tmpfs", "");
    if (owned == sizeof own / sizeof *own)
        deny("too many file systems", "");
    own[owned++] = info.st_dev;
    return fd;
}

/* Open a path of the new root, making what is missing of it in our own file systems. No symbolic link is followed. */
static int place(const char *path, mode_t type, const char *link)
{
    int at = (int)must(dup(root), "place", path);
    for (const char *part = path + 1;;) {
        char name[256];
        size_t length = strcspn(part, "/");
        int last = !part[length], made = 0;
        snprintf(name, sizeof name, "%.*s", (int)length, part);
        if (is_own(at)) {
            if (last && link)
                made = symlinkat(link, at, name);
            else if (!last || S_ISDIR(type))
                made = mkdirat(at, name, 0755);
            else
                made = mknodat(at, name, S_IFREG | 0444, 0);
        }
        if (made < 0 && errno != EEXIST)
            refuse("place for", path);
        if (last && link) {
            close(at);
            return -1;
        }
        int next = (int)must(openat(at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), "place for", path);
        close(at);
        if (last)
            return next;
        at = next;
        part += length + 1;
    }
}

static void attach(int tree, int target, const char *path)
{
    must(syscall(SYS_move_mount, tree, "", target, "", MOVE_EMPTY_PATHS), "mount at", path);
    close(target);
}

static void mount_new(int tree, const char *path)
{
    attach(tree, place(path, S_IFDIR, NULL), path);
    close(tree);
}

static void show_path(struct record *item, const char *path)
{
    if (!item->type)
        return;
    int target = place(path, item->type, *item->link ? item->link : NULL);
    if (target >= 0)
        attach(item->fd, target, path);
    close(item->fd);
}

static void make_devices(void)
{
    static const char *const links[][2] = {{"/dev/fd", "/proc/self/fd"},
                                           {"/dev/stdin", "fd/0"},
                                           {"/dev/stdout", "fd/1"},
                                           {"/dev/stderr", "fd/2"},
                                           {"/dev/ptmx", "pts/ptmx"}};
    EACH (item, DEVICE)
        show_path(item, item->data);
    for (size_t index = 0; index < sizeof links / sizeof *links; index++)
        place(links[index][0], S_IFLNK, links[index][1]);
    const char *const pts[] = {"newinstance", NULL, "ptmxmode", "0666", "mode", "0620", "max", "64", NULL};
    mount_new(new_filesystem("devpts", ATTR_NOSUID | ATTR_NOEXEC, pts), "/dev/pts");
    if (scalar[SHM])
        mount_new(new_tmpfs(scalar[SHM], "1777", ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC), "/dev/shm");
}

static void make_proc(void)
{
    static const char *const pids[] = {"hidepid", "invisible", "subset", "pid", NULL};
    static const char *const full[] = {"hidepid", "invisible", NULL};
    if (scalar[PROC] == PROC_NONE)
        return;
    uint64_t attributes = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    mount_new(new_filesystem("proc", attributes, scalar[PROC] == PROC_PIDS ? pids : full), "/proc");
}

/* A mount point cannot be renamed or removed, but the folders above it can. So each of them, up to the writable path,
 * becomes a mount point of itself. */
static void pin_above(const struct record *item)
{
    static const char *pinned[RECORDS_MAX];
    static size_t lengths[RECORDS_MAX], pins;
    size_t whole = strlen(item->path);
    for (size_t end = strlen(item->under->data) + 1; (end += strcspn(item->path + end, "/")) < whole; end++) {
        size_t known = 0;
        while (known < pins && (lengths[known] != end || strncmp(pinned[known], item->path, end)))
            known++;
        if (known < pins)
            continue;
        if (pins == RECORDS_MAX)
            deny("too many folders above protected paths", "");
        char folder[PATH_LENGTH];
        snprintf(folder, sizeof folder, "%.*s", (int)end, item->path);
        int target =
            (int)must(look_up(root, folder + 1, BENEATH | NO_SYMLINKS), "folder above a protected path:", folder);
        int tree = clone_tree(target, folder);
        attach(tree, target, folder);
        close(tree);
        pinned[pins] = item->path;
        lengths[pins++] = end;
    }
}

static void protect_path(struct record *item)
{
    const char *path = item->under ? item->path : item->data;
    struct stat wanted, found;
    if (item->under)
        pin_above(item);
    int target = look_up(root, path + 1, BENEATH | NO_SYMLINKS);
    if (target < 0 && errno == ENOENT && !item->under)
        return;
    must(target, "protected path", path);
    must(fstat(target, &wanted), "protected path", path);
    if (S_ISLNK(wanted.st_mode))
        deny("a protected path is a symbolic link:", path);
    item->type = wanted.st_mode;
    int source = target;
    if (item->placeholder || item->head.flags & MASK) {
        source = place(S_ISDIR(wanted.st_mode) ? "/.empty.d" : "/.empty", wanted.st_mode, NULL);
        must(fstat(source, &wanted), "empty stand-in for", path);
    }
    int tree = clone_tree(source, path);
    set_attributes(tree, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, TREE_RECURSIVE, path);
    if (source != target)
        close(source);
    attach(tree, target, path);
    close(tree);
    /* Not what we asked for, but what is there now (runc believed, and masked with whatever /dev/null was). */
    struct statvfs mounted;
    int now = (int)must(look_up(root, path + 1, BENEATH | NO_SYMLINKS), "protected path", path);
    must(fstat(now, &found), "protected path", path);
    must(fstatvfs(now, &mounted), "protected path", path);
    if (found.st_ino != wanted.st_ino || found.st_dev != wanted.st_dev || !(mounted.f_flag & ST_RDONLY))
        deny("something else is mounted over a protected path:", path);
    close(now);
}

const char *const account_files[2] = {"/etc/passwd", "/etc/group"};
bool account_named[2];

/* Whether the policy wants something else than it shows there. */
static bool is_guarded(const char *path)
{
    EACH (item, PROTECT) {
        size_t length = strlen(item->data);
        if (!strncmp(path, item->data, length) && (!path[length] || path[length] == '/'))
            return true;
    }
    return false;
}

/* A line of its own for an account that is in no database, before what the host's file says. Whether it is there: what is
 * guarded or no plain file, or has no room in our root, stays as it is. */
static bool name_account(const char *path, const char *line)
{
    static char text[128 << 10];
    struct how how = {O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0, BENEATH | NO_SYMLINKS | NO_MAGICLINKS};
    struct stat info;
    size_t size = (size_t)snprintf(text, sizeof text, "%s", line);
    int shown = (int)syscall(SYS_openat2, root, path + 1, &how, sizeof how);
    int absent = shown < 0 && errno == ENOENT, above = look_up(root, "etc", BENEATH | NO_SYMLINKS);
    int possible = absent ? above < 0 || is_own(above) : shown >= 0 && !fstat(shown, &info) && S_ISREG(info.st_mode);
    close_fd(&above);
    for (ssize_t got = 1; possible && !absent && got > 0 && size < sizeof text; size += (size_t)got)
        got = must(read(shown, text + size, sizeof text - size), "account", path);
    close_fd(&shown);
    if (!possible || size == sizeof text || is_guarded(path))
        return false;
    const char *ours = absent ? path : "/.account";
    int source = place(ours, S_IFREG, NULL);
    int file = (int)must(openat(root, ours + 1, O_WRONLY | O_NOFOLLOW | O_CLOEXEC), "account", path);
    must(write(file, text, size) == (ssize_t)size ? 0 : -1, "account", path);
    close(file);
    if (!absent) {
        int tree = clone_tree(source, path);
        set_attributes(tree, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC, 0, path);
        attach(tree, (int)must(look_up(root, path + 1, BENEATH | NO_SYMLINKS), "account", path), path);
        close(tree);
        unlinkat(root, ".account", 0);
    }
    close(source);
    return true;
}

static void name_accounts(void)
{
    char line[PATH_LENGTH + 64];
    snprintf(line, sizeof line, ACCOUNT_NAME ":x:%u:%u::%s:/bin/sh\n", account, group, once[ACCOUNT]->data);
    account_named[0] = name_account(account_files[0], line);
    snprintf(line, sizeof line, ACCOUNT_NAME ":x:%u:\n", group);
    account_named[1] = name_account(account_files[1], line);
}

void make_root(void)
{
    uint64_t writable = ATTR_NOSUID | ATTR_NODEV | (scalar[WRITABLE_EXEC] ? 0 : ATTR_NOEXEC);
    must(syscall(SYS_mount, NULL, "/", NULL, MS_REC_PRIVATE, NULL), "private mounts", "");
    root = new_tmpfs(1 << 20, "0755", ATTR_NOSUID | ATTR_NODEV);
    attach(root, (int)must(open("/", O_PATH | O_CLOEXEC), "root", "/"), "/");
    make_proc();
    make_devices();
    /* in the policy's order: outer before inner */
    for (struct record *item = records; item < records + record_count; item++) {
        if (item->head.tag == READ_ONLY || item->head.tag == READ_WRITE)
            show_path(item, item->data);
        else if (item->head.tag == TMPFS)
            mount_new(new_tmpfs(item->head.value, "1777", writable), item->data);
    }
    if (once[PROXY_SOCKET])
        show_path(once[PROXY_SOCKET], "/run/proxy");
    if (once[ACCOUNT])
        name_accounts();
    EACH (item, PROTECT)
        protect_path(item);
    unlinkat(root, ".empty", 0);
    unlinkat(root, ".empty.d", AT_REMOVEDIR);
    must(fchdir(root), "new root", "");
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root", ""); /* the old root now lies over the new: pivot_root(2) */
    must(syscall(SYS_umount2, ".", MNT_DETACH_), "detach the old root", "");
    must(chdir("/"), "new root", "");
    set_attributes(root, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0, "/");
    close(root);
}

/* A standard stream that is the host's /dev/null becomes ours: the host's path is one that nobody inside may open. */
void own_null(void)
{
    struct stat outside, inside;
    for (int fd = 0; fd < 3 && stat("/dev/null", &inside) == 0; fd++)
        if (fstat(fd, &outside) == 0 && S_ISCHR(outside.st_mode) && outside.st_rdev == inside.st_rdev) {
            int mode = (int)must(fcntl(fd, F_GETFL), "standard stream", "") & O_ACCMODE;
            int ours = (int)must(open("/dev/null", mode | O_CLOEXEC), "standard stream", "");
            must(dup2(ours, fd), "standard stream", "");
            close(ours);
        }
}
