/* Mounts and namespaces. */
#ifndef MOUNTS_H
#define MOUNTS_H

/* Outside: what follows is for this process only. Inside it fails, and what follows is tried all the same. */
static void own_mounts(void)
{
    if (!unshare(NEW_NS))
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

static int mounts(const char *type, const char *options)
{
    own_mounts();
    return verdict(!mount("none", in("project/mnt"), type, 0, options));
}

static int mount_tmpfs(void) { return mounts("tmpfs", ""); }
static int mount_proc(void) { return mounts("proc", ""); }
static int mount_sysfs(void) { return mounts("sysfs", ""); }
static int mount_devpts(void) { return mounts("devpts", ""); }
static int mount_cgroup(void) { return mounts("cgroup2", ""); }

static int mount_overlay(void)
{
    char options[900];
    snprintf(options, sizeof options, "lowerdir=%s:%s", in("shown"), in("project"));
    return mounts("overlay", options);
}

static int mount_bind(void)
{
    own_mounts();
    return verdict(!mount("/", in("project/mnt"), NULL, MS_BIND, NULL));
}

static int remount_rw(void)
{
    own_mounts();
    mount(in("shown"), in("shown"), NULL, MS_BIND, NULL); /* outside it is none yet */
    mount(NULL, in("shown"), NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL);
    return verdict(!mount(NULL, in("shown"), NULL, MS_REMOUNT | MS_BIND, NULL));
}

static int remount_root(void)
{
    own_mounts();
    return verdict(!mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_NOATIME, NULL));
}

static int mount_attributes(void)
{
    struct { uint64_t set, clear, propagation, userns; } attributes = {.clear = 1}; /* MOUNT_ATTR_RDONLY */
    own_mounts();
    mount(in("shown"), in("shown"), NULL, MS_BIND, NULL);
    return verdict(!syscall(MOUNT_SETATTR, AT_FDCWD, in("shown"), 0, &attributes, sizeof attributes));
}

static int mount_propagation(void)
{
    own_mounts();
    return verdict(!mount(NULL, "/", NULL, MS_REC | MS_SHARED, NULL));
}

static int umount_mask(void)
{
    own_mounts();
    mount(in("shown/facts"), in("project/secret"), NULL, MS_BIND, NULL); /* outside: hide it first */
    if (umount2(in("project/secret"), MNT_DETACH))
        return verdict(0);
    return reads_token(in("project/secret"));
}

static int pivot(void)
{
    own_mounts();
    mount(in("project/mnt"), in("project/mnt"), NULL, MS_BIND, NULL);
    return verdict(!syscall(SYS_pivot_root, in("project/mnt"), in("project/mnt")));
}

/* A folder held open above a chroot made below it: then ".." has no end (chroot(2)). */
static int chroot_by_folder(void)
{
    int above = open(in("project"), O_RDONLY | O_DIRECTORY);
    if (chroot(in("project/mnt")) || fchdir(above))
        return verdict(0);
    for (int level = 0; level < 32; level++)
        if (chdir(".."))
            return verdict(0);
    return verdict(!chroot(".") && gives_token(open(in("outside/secret"), O_RDONLY)));
}

static int detached_tree(void) { return verdict(syscall(OPEN_TREE, AT_FDCWD, "/", 1 | AT_RECURSIVE) >= 0); } /* CLONE */

static int moved_mount(void)
{
    int tree = (int)syscall(OPEN_TREE, AT_FDCWD, in("project/mnt"), 1);
    own_mounts();
    return verdict(!syscall(MOVE_MOUNT, tree, "", AT_FDCWD, in("project/mnt"), 4)); /* MOVE_MOUNT_F_EMPTY_PATH */
}

static int new_filesystem(void) { return verdict(syscall(FSOPEN, "tmpfs", 0) >= 0); }

static int pick_filesystem(void)
{
    own_mounts();
    mount(in("shown"), in("shown"), NULL, MS_BIND, NULL);
    return verdict(syscall(FSPICK, AT_FDCWD, in("shown"), 0) >= 0);
}

/* A file by its number instead of its path: mounts, masks and permissions of folders are no matter (open_by_handle_at(2)). */
static int file_handle(void)
{
    _Alignas(8) char space[sizeof(struct file_handle) + MAX_HANDLE_SZ] = "";
    struct file_handle *handle = (struct file_handle *)space;
    int mount_id, folder = open(in("project"), O_RDONLY | O_DIRECTORY);
    handle->handle_bytes = MAX_HANDLE_SZ;
    if (name_to_handle_at(AT_FDCWD, in("project/plain"), handle, &mount_id, 0))
        handle->handle_bytes = 8; /* any: the question is whether we may ask */
    return past_the_check(open_by_handle_at(folder, handle, O_RDONLY));
}

#define NAMESPACES(X) X(mnt, NEW_NS) X(pid, NEW_PID) X(net, NEW_NET) X(ipc, NEW_IPC) X(uts, NEW_UTS) X(cgroup, NEW_CGROUP) X(user, NEW_USER)

static int clones(unsigned long flag)
{
    long child = syscall(SYS_clone, flag | SIGCHLD, 0, 0, 0, 0);
    if (child == 0)
        _exit(0);
    return verdict(child > 0);
}

static int clones3(uint64_t flag)
{
    uint64_t arguments[11] = {[0] = flag, [4] = SIGCHLD};
    long child = syscall(CLONE3, arguments, 64);
    if (child == 0)
        _exit(0);
    return verdict(child > 0);
}

static int joins(const char *process, const char *kind)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/ns/%s", process, kind);
    return verdict(!setns(open(path, O_RDONLY), 0));
}

#define FUNCTIONS(kind, flag)                                                \
    static int unshare_##kind(void) { return verdict(!unshare(flag)); }      \
    static int clone_##kind(void) { return clones((unsigned)flag); }         \
    static int clone3_##kind(void) { return clones3((unsigned)flag); }       \
    static int setns_##kind(void) { return joins(fact("victim"), #kind); }
NAMESPACES(FUNCTIONS)

static int unshare_time(void) { return verdict(!unshare(NEW_TIME)); }
static int clone3_time(void) { return clones3(NEW_TIME); }
static int setns_own(void) { return joins("self", "uts"); }
static int setns_pidfd(void) { return verdict(!setns((int)syscall(PIDFD_OPEN, (pid_t)number("victim"), 0), NEW_NET)); }

#define ROWS(kind, flag)                                                                                          \
    {"unshare-" #kind, unshare_##kind}, {"clone-" #kind, clone_##kind}, {"clone3-" #kind, clone3_##kind},         \
        {"setns-" #kind, setns_##kind},
static const struct attempt mount_attempts[] = {
    {"mount-tmpfs", mount_tmpfs}, {"mount-proc", mount_proc}, {"mount-sysfs", mount_sysfs}, {"mount-devpts", mount_devpts},
    {"mount-cgroup", mount_cgroup}, {"mount-overlay", mount_overlay}, {"mount-bind", mount_bind}, {"remount-rw", remount_rw},
    {"remount-root", remount_root}, {"mount-attributes", mount_attributes}, {"mount-propagation", mount_propagation},
    {"umount-mask", umount_mask}, {"pivot-root", pivot}, {"chroot-by-folder", chroot_by_folder}, {"open-tree", detached_tree},
    {"move-mount", moved_mount}, {"fsopen", new_filesystem}, {"fspick", pick_filesystem}, {"file-handle", file_handle},
    NAMESPACES(ROWS)
    {"unshare-time", unshare_time}, {"clone3-time", clone3_time}, {"setns-own", setns_own}, {"setns-pidfd", setns_pidfd},
};

#endif
