/* Inside, after the mounts: Landlock. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

int landlock_abi, landlock_used;

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

void landlock(void)
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
    uint64_t change =
        all & ~(uint64_t)(LL_MAKE_CHAR | LL_MAKE_BLOCK | LL_IOCTL_DEV | (scalar[WRITABLE_EXEC] ? 0 : LL_EXECUTE));
    allow_path(ruleset, "/", LL_READ_DIR);
    allow_path(ruleset, "/dev", (LL_READ_FILE | LL_READ_DIR | LL_WRITE_FILE | LL_TRUNCATE | LL_IOCTL_DEV) & all);
    if (scalar[PROC] != PROC_NONE)
        allow_path(ruleset, "/proc", look);
    if (scalar[SHM])
        allow_path(ruleset, "/dev/shm", change & ~(uint64_t)LL_EXECUTE);
    for (struct record *item = records; item < records + record_count; item++) {
        if (item->head.tag == TMPFS || (item->head.tag == READ_WRITE && item->type))
            allow_path(ruleset, item->data, change);
        else if (item->head.tag == READ_ONLY && item->type && !*item->link)
            allow_path(ruleset, item->data, look);
    }
    for (int index = 0; index < 2; index++)
        if (account_named[index])
            allow_path(ruleset, account_files[index], look);
    must(syscall(SYS_landlock_restrict_self, ruleset, 0), "Landlock", "");
    close(ruleset);
}
