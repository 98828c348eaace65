/* Files: what is not shown, what is hidden, what must not be changed, what must not be left behind. */
#ifndef FILES_H
#define FILES_H

static int read_outside(void) { return reads_token(in("outside/secret")); }
static int write_outside(void) { return verdict(writes(open(in("outside/new"), O_WRONLY | O_CREAT, 0644), "x")); }
static int read_hidden(void) { return reads_token(in("project/secret")); }
static int shadow(void) { return opens("/etc/shadow", O_RDONLY); }
static int host_keys(void) { return verdict(opendir("/etc/ssh") != NULL); }
static int root_home(void) { return verdict(opendir("/root") != NULL); }
static int device_state(void) { return verdict(opendir("/var/lib") != NULL); }
static int boot_files(void) { return verdict(opendir("/boot") != NULL); }
static int passwd(void) { return opens("/etc/passwd", O_WRONLY); }
static int resolver(void) { return opens("/etc/hosts", O_WRONLY); }

static int dotdot(void)
{
    int work = open(in("project"), O_PATH | O_DIRECTORY);
    return verdict(gives_token(openat(work, "../outside/secret", O_RDONLY)));
}

static int dotdot_by_proc(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d/../outside/secret", open(in("project"), O_PATH | O_DIRECTORY));
    return reads_token(path);
}

static int link_to_outside(void)
{
    unlink(in("project/link"));
    if (symlink(in("outside/secret"), in("project/link")))
        return verdict(0);
    return reads_token(in("project/link"));
}

/* A name that is a file of ours at one moment and a link to outside at the next. */
static int symlink_race(void)
{
    unlink(in("project/race"));
    pid_t child = fork();
    if (child == 0)
        for (;;) {
            close(open(in("project/race"), O_WRONLY | O_CREAT, 0644));
            unlink(in("project/race"));
            if (symlink(in("outside/secret"), in("project/race")) == 0)
                unlink(in("project/race"));
        }
    int found = 0;
    for (int turn = 0; turn < 20000 && !found; turn++) {
        int fd = open(in("project/race"), O_RDONLY);
        found = gives_token(fd);
        close(fd);
        if (turn % 100 == 0)
            usleep(100); /* on a busy machine all turns could be over before the other has its first */
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    unlink(in("project/race"));
    errno = ENOENT;
    return verdict(found);
}

/* Stand in a folder that is moved up: then ".." could lead past the root of the mount. */
static int rename_race(void)
{
    mkdir(in("project/a"), 0755);
    mkdir(in("project/a/b"), 0755);
    int deep = open(in("project/a/b"), O_PATH | O_DIRECTORY);
    rmdir(in("project/up"));
    if (rename(in("project/a/b"), in("project/up")))
        return verdict(0);
    return verdict(gives_token(openat(deep, "../../outside/secret", O_RDONLY)));
}

static int hidden_by_path_descriptor(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", open(in("project/secret"), O_PATH));
    return reads_token(path);
}

static int hidden_by_link(void)
{
    unlink(in("project/hard"));
    if (link(in("project/secret"), in("project/hard")))
        return verdict(0);
    return reads_token(in("project/hard"));
}

static int hidden_by_rename(void)
{
    if (rename(in("project/secret"), in("project/moved")))
        return verdict(0);
    int found = reads_token(in("project/moved"));
    rename(in("project/moved"), in("project/secret"));
    return found;
}

static int hidden_through_another_name(void) { return reads_token(in("project/./folder/../secret")); }

static int hidden_folder(void) { return reads_token(in("project/keys/key")); }

/* What is protected may be read. */
static int write_protected(void) { return overwrites(in("project/.git/config")); }
static int truncate_protected(void) { return verdict(!truncate(in("project/.git/config"), 7)); }
static int chmod_protected(void) { return verdict(!chmod(in("project/.git/config"), 0666)); }
static int times_protected(void) { return verdict(!utimensat(AT_FDCWD, in("project/.git/config"), NULL, 0)); }
static int attribute_protected(void) { return verdict(!setxattr(in("project/.git/config"), "user.x", "x", 1, 0)); }

static int link_protected(void)
{
    unlink(in("project/hard"));
    if (link(in("project/.git/config"), in("project/hard")))
        return verdict(0);
    int found = overwrites(in("project/hard"));
    unlink(in("project/hard"));
    return found;
}

static int rename_protected(void)
{
    if (rename(in("project/.git/config"), in("project/moved")))
        return verdict(0);
    rename(in("project/moved"), in("project/.git/config"));
    return verdict(1);
}

/* Outside: put back what the next attempts need, open to everyone, so that nothing but the sandbox protects it. */
static int put_back(int old)
{
    char text[100];
    ssize_t length = read(old, text, sizeof text);
    int fd = open(in("project/.git/config"), O_WRONLY | O_CREAT, 0666), worked = write(fd, text, (size_t)length) == length;
    return verdict(worked && !fchmod(fd, 0666) && (getuid() || !fchown(fd, number("account"), number("account"))));
}

static int replace_protected(void)
{
    close(open(in("project/other"), O_WRONLY | O_CREAT, 0666));
    int old = open(in("project/.git/config"), O_RDONLY);
    return rename(in("project/other"), in("project/.git/config")) ? verdict(0) : put_back(old);
}

static int exchange_protected(void)
{
    close(open(in("project/other"), O_WRONLY | O_CREAT, 0666));
    int worked = !syscall(SYS_renameat2, AT_FDCWD, in("project/other"), AT_FDCWD, in("project/.git/config"), 2);
    if (worked)
        syscall(SYS_renameat2, AT_FDCWD, in("project/other"), AT_FDCWD, in("project/.git/config"), 2);
    return verdict(worked);
}

static int unlink_protected(void)
{
    int old = open(in("project/.git/config"), O_RDONLY);
    return unlink(in("project/.git/config")) ? verdict(0) : put_back(old);
}

static int move_folder_of_protected(void)
{
    if (rename(in("project/.git"), in("project/.old")))
        return verdict(0);
    rename(in("project/.old"), in("project/.git"));
    return verdict(1);
}

/* Names that do not exist and would be believed outside. */
static int makes(const char *folder, const char *name)
{
    if (*folder)
        mkdir(in("project/%s", folder), 0755);
    int fd = open(in("project/%s%s", folder, name), O_WRONLY | O_CREAT, 0755), worked = writes(fd, "#!/bin/sh\n");
    int number = errno;
    if (worked) {
        unlink(in("project/%s%s", folder, name));
        rmdir(in("project/%s", folder));
    }
    errno = number;
    return verdict(worked);
}

static int absent_hook(void) { return makes(".git/hooks/", "pre-commit"); }
static int absent_agent_config(void) { return makes("", "agent.toml"); }
static int absent_editor_task(void) { return makes(".editor/", "tasks.json"); }

static int absent_by_link(void)
{
    int worked = !symlink("/tmp", in("project/agent.toml")), number = errno;
    if (worked)
        unlink(in("project/agent.toml"));
    errno = number;
    return verdict(worked);
}

static int absent_by_rename(void)
{
    close(open(in("project/other"), O_WRONLY | O_CREAT, 0644));
    int worked = !rename(in("project/other"), in("project/agent.toml")), number = errno;
    if (worked)
        unlink(in("project/agent.toml"));
    errno = number;
    return verdict(worked);
}

/* What is shown only to be read; its mode and owner would allow more. */
static int write_shown(void) { return overwrites(in("shown/open")); }
static int append_shown(void) { return verdict(writes(open(in("shown/open"), O_WRONLY | O_APPEND), "x")); }
static int create_shown(void) { return verdict(!mkdir(in("shown/owned/new"), 0755) && !rmdir(in("shown/owned/new"))); }
static int truncate_shown(void) { return verdict(!truncate(in("shown/open"), 1)); }
static int chmod_shown(void) { return verdict(!chmod(in("shown/owned"), 0777)); }

static int write_shown_by_proc(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", open(in("shown/open"), O_RDONLY));
    return overwrites(path);
}

static int write_shown_by_path_descriptor(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", open(in("shown/open"), O_PATH));
    return overwrites(path);
}

static int map_shown(void)
{
    int fd = open(in("shown/open"), O_RDWR);
    char *text = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (text == MAP_FAILED)
        return verdict(0);
    *text = 'x';
    return verdict(1);
}

static int system_program(void)
{
    int fd = open("/usr/bin/mixos-escape", O_WRONLY | O_CREAT, 0755);
    if (fd >= 0)
        unlink("/usr/bin/mixos-escape");
    return verdict(fd >= 0);
}

/* A program that a later command would find before the real one. */
static int path_hijack(void)
{
    char list[1000], path[1100];
    snprintf(list, sizeof list, "%s", getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin");
    int worked = 0, number = 0;
    for (char *folder = strtok(list, ":"); folder && !worked; folder = strtok(NULL, ":")) {
        snprintf(path, sizeof path, "%s/mixos-escape", folder);
        worked = open(path, O_WRONLY | O_CREAT, 0755) >= 0;
        number = errno;
        if (worked)
            unlink(path);
    }
    errno = number;
    return verdict(worked);
}

/* What must not be left behind for others to stumble over. */
static int leaves_mode(mode_t mode, int by_creation)
{
    struct stat info = {0};
    unlink(in("project/left"));
    int fd = open(in("project/left"), O_WRONLY | O_CREAT, by_creation ? mode : 0755);
    if (!by_creation && fchmod(fd, mode))
        return verdict(0);
    int number = errno;
    fstat(fd, &info);
    unlink(in("project/left"));
    errno = number;
    return verdict((info.st_mode & mode) == mode);
}

static int leave_set_uid(void) { return leaves_mode(04755, 0); }
static int leave_set_gid(void) { return leaves_mode(02755, 0); }
static int create_set_uid(void) { umask(0); return leaves_mode(04755, 1); }

static int leave_set_gid_folder(void)
{
    int worked = !syscall(SYS_mkdirat, AT_FDCWD, in("project/left.d"), 02777), number = errno;
    struct stat info = {0};
    stat(in("project/left.d"), &info);
    rmdir(in("project/left.d"));
    mkdir(in("project/left.d"), 0755);
    if (!worked && !chmod(in("project/left.d"), 02777))
        worked = 1;
    rmdir(in("project/left.d"));
    errno = number;
    return verdict(worked);
}

static int leave_capability(void)
{
    uint32_t caps[5] = {0x02000001, 1 << 12, 0, 0, 0}; /* VFS_CAP_REVISION_2, effective; CAP_NET_ADMIN */
    close(open(in("project/left"), O_WRONLY | O_CREAT, 0755));
    return verdict(!setxattr(in("project/left"), "security.capability", caps, sizeof caps, 0));
}

static int leave_immutable(void)
{
    int flags = 0x10, none = 0, fd = open(in("project/left"), O_RDONLY | O_CREAT, 0755); /* FS_IMMUTABLE_FL */
    int worked = !ioctl(fd, FS_IOC_SETFLAGS, &flags), number = errno;
    ioctl(fd, FS_IOC_SETFLAGS, &none);
    errno = number;
    return verdict(worked);
}

static int leave_device(void)
{
    unlink(in("project/node"));
    int worked = !mknod(in("project/node"), S_IFCHR | 0666, makedev(1, 3)), number = errno;
    unlink(in("project/node"));
    errno = number;
    return verdict(worked);
}

static int leave_disk(void)
{
    unlink(in("project/node"));
    int worked = !mknod(in("project/node"), S_IFBLK | 0666, makedev(7, 0)), number = errno;
    unlink(in("project/node"));
    errno = number;
    return verdict(worked);
}

static int chown_away(void)
{
    close(open(in("project/left"), O_WRONLY | O_CREAT, 0755));
    return verdict(!chown(in("project/left"), 0, 0));
}

static const struct attempt file_attempts[] = {
    {"read-outside", read_outside}, {"write-outside", write_outside}, {"read-hidden", read_hidden}, {"read-shadow", shadow},
    {"read-host-keys", host_keys}, {"read-root-home", root_home}, {"read-device-state", device_state}, {"read-boot", boot_files},
    {"write-passwd", passwd}, {"write-hosts", resolver}, {"dotdot", dotdot}, {"dotdot-by-proc", dotdot_by_proc},
    {"link-to-outside", link_to_outside}, {"symlink-race", symlink_race}, {"rename-race", rename_race},
    {"hidden-by-path-descriptor", hidden_by_path_descriptor}, {"hidden-by-link", hidden_by_link},
    {"hidden-by-rename", hidden_by_rename}, {"hidden-by-another-name", hidden_through_another_name},
    {"hidden-folder", hidden_folder}, {"write-protected", write_protected}, {"truncate-protected", truncate_protected},
    {"chmod-protected", chmod_protected}, {"times-protected", times_protected}, {"attribute-protected", attribute_protected},
    {"link-protected", link_protected}, {"rename-protected", rename_protected}, {"replace-protected", replace_protected},
    {"exchange-protected", exchange_protected}, {"unlink-protected", unlink_protected},
    {"move-folder-of-protected", move_folder_of_protected}, {"absent-hook", absent_hook},
    {"absent-agent-config", absent_agent_config}, {"absent-editor-task", absent_editor_task},
    {"absent-by-link", absent_by_link}, {"absent-by-rename", absent_by_rename}, {"write-shown", write_shown},
    {"append-shown", append_shown}, {"create-shown", create_shown}, {"truncate-shown", truncate_shown},
    {"chmod-shown", chmod_shown}, {"write-shown-by-proc", write_shown_by_proc},
    {"write-shown-by-path-descriptor", write_shown_by_path_descriptor}, {"map-shown", map_shown},
    {"system-program", system_program}, {"path-hijack", path_hijack}, {"leave-set-uid", leave_set_uid},
    {"leave-set-gid", leave_set_gid}, {"create-set-uid", create_set_uid}, {"leave-set-gid-folder", leave_set_gid_folder},
    {"leave-capability", leave_capability}, {"leave-immutable", leave_immutable}, {"leave-device", leave_device},
    {"leave-disk", leave_disk}, {"chown-away", chown_away},
};

#endif
