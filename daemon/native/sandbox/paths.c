/* Outside, before the namespaces: host paths become detached mounts, whose attributes are set while nobody can reach
 * them; protected paths that do not exist get a placeholder. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int look_up(int at, const char *path, uint64_t resolve)
{
    struct how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = resolve | NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, at, path, &how, sizeof how);
}

int clone_tree(int fd, const char *name)
{
    return (int)must(syscall(SYS_open_tree, fd, "", TREE_CLONE | TREE_CLOEXEC | TREE_RECURSIVE | EMPTY_PATH),
                     "mount of", name);
}

void set_attributes(int fd, uint64_t set, unsigned recursive, const char *name)
{
    struct mount_attributes attributes = {.set = set, .propagation = MS_PRIVATE_};
    must(syscall(SYS_mount_setattr, fd, "", EMPTY_PATH | recursive, &attributes, sizeof attributes), "attributes of",
         name);
}

/* A path as the host has it now; whatever happens to its name later, this is what will be mounted. */
static void detach_path(struct record *item, uint64_t set)
{
    const char *path = item->data;
    struct stat info;
    if (item->head.flags & AS_USER)
        act_as(account, group);
    int fd = look_up(AT_FDCWD, path, NO_SYMLINKS), number = errno;
    if (item->head.flags & AS_USER)
        act_as(0, 0);
    errno = number;
    if (fd < 0 && errno == ENOENT && item->head.flags & OPTIONAL)
        return;
    must(fd, "path", path);
    must(fstat(fd, &info), "path", path);
    item->type = info.st_mode;
    if (S_ISLNK(info.st_mode)) {
        if (item->head.tag != READ_ONLY)
            deny("a path that may be changed must not be a symbolic link:", path);
        ssize_t length = must(readlinkat(fd, "", item->link, sizeof item->link), "link", path);
        if (length == sizeof item->link)
            deny("a link to a name that is too long:", path);
        close(fd);
        return;
    }
    if (item->head.tag == DEVICE && (!S_ISCHR(info.st_mode) || (item->head.value && info.st_rdev != item->head.value)))
        deny("not the device that its name says:", path);
    item->fd = clone_tree(fd, path);
    set_attributes(item->fd, set, TREE_RECURSIVE, path);
    if (item->head.tag == READ_WRITE)
        item->folder = fd;
    else
        close(fd);
}

/* The writable path that `path` lies below: the innermost one. */
static struct record *writable_above(const char *path)
{
    struct record *best = NULL;
    EACH (item, READ_WRITE)
        if (!strncmp(path, item->data, strlen(item->data)) && path[strlen(item->data)] == '/' && S_ISDIR(item->type))
            if (!best || strlen(item->data) > strlen(best->data))
                best = item;
    return best;
}

/* Sandboxes that share a folder share a lock on it: the last one out removes the placeholders. Who cannot get it soon
 * does not run, since its placeholders could vanish under it. */
static void share_lock(struct record *item)
{
    if (item->lock >= 0)
        return;
    item->lock = (int)must(openat(item->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "lock of", item->data);
    for (int tries = 0; flock(item->lock, LOCK_SH | LOCK_NB) < 0; tries++) {
        if (errno != EWOULDBLOCK || tries == 100)
            refuse("lock of", item->data);
        nanosleep(&(struct timespec){0, 20 * 1000 * 1000}, NULL);
    }
}

/* Split at the last slash and open what is left of it, below the writable path. The name is what is right of it. */
static int parent_of(const struct record *item, const char *path, const char **name)
{
    char folder[PATH_LENGTH];
    size_t skip = strlen(item->under->data) + 1;
    *name = strrchr(path, '/') + 1;
    if ((size_t)(*name - path) <= skip)
        return dup(item->under->folder);
    snprintf(folder, sizeof folder, "%.*s", (int)((size_t)(*name - path) - skip - 1), path + skip);
    return look_up(item->under->folder, folder, BENEATH | NO_SYMLINKS);
}

/* Give a folder that we made to the owner of the one above; it must still be ours, and no other thing in its place. */
static int give_folder(int at, const char *name, const struct stat *above)
{
    struct stat info;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    must(fd, "folder of a placeholder:", name);
    must(fstat(fd, &info), "folder of a placeholder:", name);
    if (info.st_uid != 0)
        deny("somebody else put another folder in place of", name);
    int result = fchown(fd, above->st_uid, above->st_gid);
    close(fd);
    return result;
}

static int make_level(const struct record *item, const char *path, int last)
{
    const char *name;
    struct stat above;
    int at = (int)must(parent_of(item, path, &name), "protected path", path), result;
    must(fstat(at, &above), "protected path", path);
    if (!last) {
        result = mkdirat(at, name, 0755);
        if (result == 0 && geteuid() == 0)
            result = give_folder(at, name, &above);
    } else if (item->head.flags & FOLDER)
        result = mkdirat(at, name, 0);
    else
        result = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0);
    if (result > 0)
        close(result);
    int number = errno;
    close(at);
    errno = number;
    return result;
}

/* Below a writable path, a protected name that is absent gets a placeholder of mode 0: else it could be made inside, and
 * be believed outside. An empty thing of mode 0 at such a name is always taken for one, also after a crash. */
static void prepare_protection(struct record *item)
{
    struct stat info;
    item->under = writable_above(item->data);
    if (!item->under)
        return; /* not below anything writable: nobody inside can make it */
    share_lock(item->under);
    int as_user = item->under->head.flags & AS_USER; /* a user's wish makes nothing where the user could not */
    if (as_user)
        act_as(account, group);
    size_t skip = strlen(item->under->data) + 1;
    for (size_t end = skip; item->data[end];) {
        end += strcspn(item->data + end, "/");
        int last = !item->data[end];
        snprintf(item->path, sizeof item->path, "%.*s", (int)end, item->data);
        int fd = look_up(item->under->folder, item->path + skip, BENEATH | NO_SYMLINKS);
        if (fd < 0 && errno == ENOENT) {
            if (make_level(item, item->path, last) >= 0)
                item->made++;
            else if (errno != EEXIST)
                refuse("placeholder for", item->path);
            fd = look_up(item->under->folder, item->path + skip, BENEATH | NO_SYMLINKS);
        }
        must(fd, "protected path", item->path);
        must(fstat(fd, &info), "protected path", item->path);
        close(fd);
        if (S_ISLNK(info.st_mode))
            deny("a protected path leads through a symbolic link:", item->path);
        if (!last && !S_ISDIR(info.st_mode))
            break; /* a file where a folder was expected: then the file is what must not be replaced */
        end += !last;
    }
    if (as_user)
        act_as(0, 0);
    item->placeholder = !(info.st_mode & 07777) && (S_ISDIR(info.st_mode) || info.st_size == 0);
}

void remove_placeholders(void)
{
    /* backwards: what was made first goes last */
    for (struct record *item = records + record_count; item-- > records;) {
        if (item->head.tag != PROTECT || !item->under || !item->placeholder ||
            flock(item->under->lock, LOCK_EX | LOCK_NB) < 0)
            continue;
        if (item->under->head.flags & AS_USER)
            act_as(account, group);
        for (int level = 0; level == 0 || level < item->made; level++) { /* a level above: only one that we made */
            const char *name;
            struct stat info;
            int at = parent_of(item, item->path, &name);
            int gone = at >= 0 && !fstatat(at, name, &info, AT_SYMLINK_NOFOLLOW) &&
                       (level || !(info.st_mode & 07777)) && (S_ISDIR(info.st_mode) || info.st_size == 0) &&
                       !unlinkat(at, name, S_ISDIR(info.st_mode) ? AT_REMOVEDIR : 0);
            close(at);
            if (!gone)
                break;
            *strrchr(item->path, '/') = 0;
        }
        if (item->under->head.flags & AS_USER)
            act_as(0, 0);
    }
}

void detach_paths(void)
{
    uint64_t read_only = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;
    uint64_t read_write = ATTR_NOSUID | ATTR_NODEV | (scalar[WRITABLE_EXEC] ? 0 : ATTR_NOEXEC);
    for (struct record *item = records; item < records + record_count; item++)
        item->fd = item->folder = item->lock = -1;
    EACH (item, READ_WRITE)
        detach_path(item, read_write);
    EACH (item, PROTECT)
        prepare_protection(item);
    EACH (item, READ_ONLY)
        detach_path(item, read_only);
    EACH (item, DEVICE)
        detach_path(item, ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC);
    if (once[PROXY_SOCKET])
        detach_path(once[PROXY_SOCKET], read_only | ATTR_NOEXEC);
}
