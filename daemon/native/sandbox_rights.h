/* Inside: limits, account, capabilities, Landlock, seccomp. What is taken away is read back. */
#ifndef MIXOS_SANDBOX_RIGHTS_H
#define MIXOS_SANDBOX_RIGHTS_H

/* A number of the range that no other sandbox has: whoever holds the lock of its file, which ends with the keeper. */
static void choose_account(void)
{
    account = (uid_t)scalar[UID_FIRST];
    if (scalar[UID_FIRST] != scalar[UID_LAST] && !user_mode) {
        const char *folder = once[UID_LOCKS]->data;
        if (mkdir(folder, 0700) < 0 && errno != EEXIST)
            refuse("folder of account locks", folder);
        int at = (int)must(open(folder, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "folder of account locks", folder);
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

static void write_map(const char *file, const char *format, unsigned inside, unsigned outside)
{
    char text[64];
    int length = snprintf(text, sizeof text, format, inside, outside);
    int fd = (int)must(open(file, O_WRONLY | O_CLOEXEC), "user namespace", file);
    must(write(fd, text, (size_t)length), "user namespace", file);
    close(fd);
}

/* Without root: become the account in a user namespace of our own. It maps nobody else, so nobody else can be become. */
static void take_rights(void)
{
    gid_t groups[64];
    size_t known = 0;
    if (!user_mode) {
        EACH(item, GROUP)
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
static void act_as(uid_t uid, gid_t gid)
{
    if (user_mode)
        return;
    if (uid == 0)
        must(syscall(SYS_setresuid, -1, uid, -1), "rights", "");
    must(syscall(SYS_setresgid, -1, gid, -1), "rights", "");
    if (uid != 0)
        must(syscall(SYS_setresuid, -1, uid, -1), "rights", "");
}

static void loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd = (int)must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "loopback", "");
    must(ioctl(fd, SIOCSIFFLAGS, &request), "loopback", "");
    close(fd);
}

static void read_text(const char *file, char *text, size_t size)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, text, size - 1);
    text[length > 0 ? length : 0] = 0;
    close(fd);
}

#define CGROUPS "/sys/fs/cgroup"

/* Started inside our cgroup: the line "0::/path" says which (cgroups(7)); the last one where there is version 1, too. */
static void find_cgroup(void)
{
    char text[PATH_LENGTH];
    if (*cgroup_path)
        return;
    read_text("/proc/self/cgroup", text, sizeof text);
    char *line = strncmp(text, "0::/", 4) ? strstr(text, "\n0::/") : text - 1;
    if (line)
        snprintf(cgroup_path, sizeof cgroup_path, CGROUPS "%.*s", (int)strcspn(line + 4, "\n"), line + 4);
}

/* The lowest limit that such files of our cgroup and of those above it hold, 0 when there is none. */
static uint64_t cgroup_limit(const char *file)
{
    char text[32], folder[PATH_LENGTH], path[PATH_LENGTH + 16];
    uint64_t lowest = 0;
    for (snprintf(folder, sizeof folder, "%s", cgroup_path); *folder; *strrchr(folder, '/') = 0) {
        snprintf(path, sizeof path, "%s/%s", folder, file);
        read_text(path, text, sizeof text);
        uint64_t found = strtoull(text, NULL, 10); /* "max" is 0 */
        lowest = found && (!lowest || found < lowest) ? found : lowest;
    }
    return lowest;
}

static void lower_limit(unsigned resource, uint64_t value)
{
    struct rlimit limit;
    must(getrlimit(resource, &limit), "limit", "");
    limit.rlim_cur = limit.rlim_max = value < limit.rlim_max ? value : limit.rlim_max;
    must(setrlimit(resource, &limit), "limit", "");
}

/* Memory and processes are the cgroup's to limit. Where it does not, a limit of each process is better than none. */
static void bound(const char *name, const char *file, uint64_t most, unsigned resource, uint64_t required)
{
    uint64_t found = most ? cgroup_limit(file) : 0;
    int by_cgroup = found && found <= most;
    if (!by_cgroup && scalar[REQUIRE] & required) {
        char wanted[96];
        snprintf(wanted, sizeof wanted, "%s is %llu (0: none), at most %llu is allowed", file,
                 (unsigned long long)found, (unsigned long long)most);
        deny("the policy demands a cgroup limit:", wanted);
    }
    if (most && !by_cgroup)
        lower_limit(resource, most);
    note(",\"%s\":\"%s\"", name, by_cgroup ? "cgroup" : most ? "process" : "none");
}

static uint64_t three_sets(int index)
{
    struct cap_head head = {CAP_VERSION_3, 0};
    struct cap_data data[2] = {0};
    must(syscall(SYS_capget, &head, data), "capget", "");
    uint32_t *low = &data[0].effective + index, *high = &data[1].effective + index;
    return *low | (uint64_t)*high << 32;
}

static void set_capabilities(uint64_t effective, uint64_t inheritable)
{
    struct cap_head head = {CAP_VERSION_3, 0};
    struct cap_data data[2] = {
        {(uint32_t)effective, (uint32_t)effective, (uint32_t)inheritable},
        {(uint32_t)(effective >> 32), (uint32_t)(effective >> 32), (uint32_t)(inheritable >> 32)},
    };
    must(syscall(SYS_capset, &head, data), "capabilities", "");
}

/* Become the account, keep the policy's capabilities (most often none), lock the door, and look whether it is locked. */
static void drop_rights(void)
{
    uint64_t wanted = scalar[CAPABILITIES];
    must(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities", "");
    if (!user_mode) {
        must(setresgid(group, group, group), "group", "");
        must(setresuid(account, account, account), "account", "");
    }
    set_capabilities(wanted | CAP_SETPCAP_BIT, wanted);
    must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities", "");
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++) {
        if (wanted >> cap & 1)
            must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0), "ambient capability", "");
        else
            must(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), "bounding set", "");
    }
    must(prctl(PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0), "securebits", "");
    set_capabilities(wanted, wanted);
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
    note(",\"account\":%u,\"group\":%u,\"capabilities\":\"%016llx\"", account, group, (unsigned long long)three_sets(0));
}

static void allow_path(int ruleset, const char *path, uint64_t access)
{
    struct stat info;
    struct landlock_beneath rule = {access, open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC)};
    must(rule.parent, "Landlock rule for", path);
    must(fstat(rule.parent, &info), "Landlock rule for", path);
    if (!S_ISDIR(info.st_mode))
        rule.access &= LL_FILE;
    must(syscall(SYS_landlock_add_rule, ruleset, 1, &rule, 0), "Landlock rule for", path);
    close(rule.parent);
}

static void landlock(void)
{
    static const unsigned bits[] = {0, 13, 14, 15, 15, 16, 16}; /* file system rights that each ABI knows */
    int abi = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
    landlock_abi = abi < 0 ? 0 : abi;
    landlock_used = landlock_abi > 6 ? 6 : landlock_abi;
    if (!landlock_used) {
        if (scalar[REQUIRE] & REQUIRE_LANDLOCK)
            deny("the policy demands Landlock, which this kernel does not have", "");
        return;
    }
    uint64_t all = (1ull << bits[landlock_used]) - 1;
    struct landlock_ruleset rules = {all, 0, landlock_used >= 6 ? LL_SCOPES : 0};
    size_t size = landlock_used >= 6 ? sizeof rules : sizeof rules.fs;
    int ruleset = (int)must(syscall(SYS_landlock_create_ruleset, &rules, size, 0), "Landlock", "");
    uint64_t look = (LL_READ_FILE | LL_READ_DIR | LL_EXECUTE) & all;
    uint64_t change = all & ~(uint64_t)(LL_MAKE_CHAR | LL_MAKE_BLOCK | LL_IOCTL_DEV | (scalar[WRITABLE_EXEC] ? 0 : LL_EXECUTE));
    allow_path(ruleset, "/", LL_READ_DIR);
    allow_path(ruleset, "/dev", (LL_READ_FILE | LL_READ_DIR | LL_WRITE_FILE | LL_TRUNCATE | LL_IOCTL_DEV) & all);
    if (scalar[PROC] != PROC_NONE)
        allow_path(ruleset, "/proc", look);
    if (scalar[SHM])
        allow_path(ruleset, "/dev/shm", change & ~(uint64_t)LL_EXECUTE);
    for (struct record *item = records; item < records + count; item++) {
        if (item->head.tag == TMPFS || (item->head.tag == READ_WRITE && item->type))
            allow_path(ruleset, item->data, change);
        else if (item->head.tag == READ_ONLY && item->type && !*item->link)
            allow_path(ruleset, item->data, look);
    }
    must(syscall(SYS_landlock_restrict_self, ruleset, 0), "Landlock", "");
    close(ruleset);
}

static void install_filter(const struct record *item)
{
    struct sock_fprog program = {(unsigned short)(item->head.length / sizeof(struct sock_filter)), (void *)item->data};
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "seccomp", "");
}

#endif
