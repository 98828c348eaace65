/* The compiled policy's format (its writer is daemon/linux/sandbox/compile.py), and kernel interfaces that the C libraries'
 * headers lack or disagree about: declared here from the kernel's uapi headers, so that glibc and musl of any age do.
 *
 * A policy is a header (magic, version, size of the whole), then records, each a multiple of 8 bytes, little endian:
 *     u32 tag, u32 flags, u64 value, u32 length, u32 zero, length bytes of data, zeros up to a multiple of 8
 * Scalars carry only `value` and must be there exactly once. Text data ends with its only NUL. */
#ifndef MIXOS_SANDBOX_H
#define MIXOS_SANDBOX_H

#include <stdint.h>
#include <sys/syscall.h>

#define POLICY_MAGIC "MIXOSBX"
#define POLICY_VERSION 1
#define POLICY_MAX (256 * 1024)
#define RECORDS_MAX 512
#define PATH_LENGTH 1024

enum tag {
    /* scalars */
    UID_FIRST, UID_LAST, /* equal: this account; else a free one of the range is taken */
    GID,                 /* SAME_GID: the number of the account */
    NETWORK, PROXY_PORT, PROC, TERMINAL, WRITABLE_EXEC, CAPABILITIES, WALL_MS, MEMORY, PIDS, SHM, REQUIRE, UMASK,
    SCALARS,
    /* lists */
    READ_ONLY = 64, READ_WRITE, TMPFS, DEVICE, PROTECT, ENV_PASS, ENV_SET, RLIMIT, GROUP,
    /* at most once */
    HOSTNAME = 96, DIRECTORY, UID_LOCKS, PROXY_SOCKET, FILTER, BRIDGE_FILTER,
    TAGS,
};
enum { NETWORK_NONE, NETWORK_HOST, NETWORK_PROXY };
enum { PROC_NONE, PROC_PIDS, PROC_FULL };
enum { REQUIRE_LANDLOCK = 1, REQUIRE_MEMORY = 2, REQUIRE_PIDS = 4, REQUIRE_ACCOUNT = 8, REQUIRE_ALL = 15 };
enum { OPTIONAL = 1, AS_USER = 2 };  /* READ_ONLY, READ_WRITE */
enum { FOLDER = 1, MASK = 2 };       /* PROTECT: what to make when it is absent; show an empty thing instead */
#define SAME_GID 0xffffffffu

struct policy_head { char magic[8]; uint32_t version, size; };
struct record_head { uint32_t tag, flags; uint64_t value; uint32_t length, zero; };

/* openat2(2): linux/openat2.h */
struct how { uint64_t flags, mode, resolve; };
#define NO_XDEV 0x01
#define NO_MAGICLINKS 0x02
#define NO_SYMLINKS 0x04
#define BENEATH 0x08
/* open_tree, move_mount, fsopen, mount_setattr: linux/mount.h */
struct mount_attributes { uint64_t set, clear, propagation, userns; };
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
/* clone3(2): linux/sched.h */
struct clone_arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
#define INTO_CGROUP 0x200000000ull
/* capabilities, securebits, prctl: linux/capability.h, linux/securebits.h, linux/prctl.h */
struct cap_head { uint32_t version; int pid; };
struct cap_data { uint32_t effective, permitted, inheritable; };
#define CAP_VERSION_3 0x20080522
#define CAP_SETPCAP_BIT (1ull << 8)
/* noroot, no-setuid-fixup off, keep-caps off, no-ambient-raise: each locked */
#define SECUREBITS ((1 << 0) | (1 << 1) | (1 << 3) | (1 << 5) | (1 << 6) | (1 << 7))
/* landlock(7): linux/landlock.h, ABI 1 to 6 */
struct landlock_ruleset { uint64_t fs, net, scoped; };
struct landlock_beneath { uint64_t access; int32_t parent; } __attribute__((packed));
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
