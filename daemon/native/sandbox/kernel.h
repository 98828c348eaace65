/* Kernel interfaces that the C libraries' headers lack or disagree about: declared here from the kernel's uapi headers, so
 * that glibc and musl of any age do. */
#ifndef MIXOS_SANDBOX_KERNEL_H
#define MIXOS_SANDBOX_KERNEL_H

#include <stdint.h>
#include <sys/syscall.h>

/* openat2(2): linux/openat2.h */
struct how {
    uint64_t flags, mode, resolve;
};
#define NO_XDEV 0x01
#define NO_MAGICLINKS 0x02
#define NO_SYMLINKS 0x04
#define BENEATH 0x08
/* open_tree, move_mount, fsopen, mount_setattr: linux/mount.h */
struct mount_attributes {
    uint64_t set, clear, propagation, userns;
};
#define TREE_CLONE 1
#define TREE_CLOEXEC 02000000
#define TREE_RECURSIVE 0x8000
#define EMPTY_PATH 0x1000
#define MOVE_EMPTY_PATHS (0x04 | 0x40)
#define FS_CLOEXEC 1
#define FS_SET_FLAG 0
#define FS_SET_STRING 1
#define FS_CREATE 6
#define ATTR_RDONLY 0x01
#define ATTR_NOSUID 0x02
#define ATTR_NODEV 0x04
#define ATTR_NOEXEC 0x08
#define MS_REC_PRIVATE ((1 << 14) | (1 << 18))
#define MS_PRIVATE_ 0x40000
#define MNT_DETACH_ 2
/* linux/capability.h, linux/securebits.h; more of the former is in base.h */
#define CAP_SETPCAP_BIT (1ull << 8)
/* noroot, no-setuid-fixup off, keep-caps off, no-ambient-raise: each locked */
#define SECUREBITS ((1 << 0) | (1 << 1) | (1 << 3) | (1 << 5) | (1 << 6) | (1 << 7))
/* landlock(7): linux/landlock.h, ABI 1 to 6 */
struct landlock_ruleset {
    uint64_t fs, net, scoped;
};
struct landlock_beneath {
    uint64_t access;
    int32_t parent;
} __attribute__((packed));
#define LL_EXECUTE (1 << 0)
#define LL_WRITE_FILE (1 << 1)
#define LL_READ_FILE (1 << 2)
#define LL_READ_DIR (1 << 3)
#define LL_MAKE_CHAR (1 << 6)
#define LL_MAKE_BLOCK (1 << 11)
#define LL_TRUNCATE (1 << 14)
#define LL_IOCTL_DEV (1 << 15)
#define LL_FILE (LL_EXECUTE | LL_WRITE_FILE | LL_READ_FILE | LL_TRUNCATE | LL_IOCTL_DEV)
#define LL_SCOPES 3 /* abstract sockets, signals */

/* Numbers that the oldest supported headers lack; the same on every architecture (scripts/syscall.tbl). */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

#endif
