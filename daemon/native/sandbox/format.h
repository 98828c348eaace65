/* The compiled policy's format (its writer is daemon/linux/sandbox/compile.py).
 *
 * A policy is a header (magic, version, size of the whole), then records, each a multiple of 8 bytes, little endian:
 *     u32 tag, u32 flags, u64 value, u32 length, u32 zero, length bytes of data, zeros up to a multiple of 8
 * Scalars carry only `value` and must be there exactly once. Text data ends with its only NUL. */
#ifndef MIXOS_SANDBOX_FORMAT_H
#define MIXOS_SANDBOX_FORMAT_H

#include <stdint.h>

#define POLICY_MAGIC "MIXOSBX"
#define POLICY_VERSION 1
#define POLICY_MAX (256 * 1024)
#define RECORDS_MAX 512
#define PATH_LENGTH 1024

enum tag {
    /* scalars */
    UID_FIRST,
    UID_LAST, /* equal: this account; else a free one of the range is taken */
    GID,      /* SAME_GID: the number of the account */
    NETWORK,
    PROXY_PORT,
    PROC,
    TERMINAL,
    WRITABLE_EXEC,
    CAPABILITIES,
    WALL_MS,
    MEMORY,
    PIDS,
    SHM,
    REQUIRE,
    UMASK,
    SCALARS,
    /* lists */
    READ_ONLY = 64,
    READ_WRITE,
    TMPFS,
    DEVICE,
    PROTECT,
    ENV_PASS,
    ENV_SET,
    RLIMIT,
    GROUP,
    /* at most once */
    HOSTNAME = 96,
    DIRECTORY,
    UID_LOCKS,
    PROXY_SOCKET,
    FILTER,
    BRIDGE_FILTER,
    ACCOUNT, /* the account has no name outside: it gets ACCOUNT_NAME, and this home */
    TAGS,
};
enum { NETWORK_NONE, NETWORK_HOST, NETWORK_PROXY };
enum { PROC_NONE, PROC_PIDS, PROC_FULL };
enum { REQUIRE_LANDLOCK = 1, REQUIRE_MEMORY = 2, REQUIRE_PIDS = 4, REQUIRE_ACCOUNT = 8, REQUIRE_ALL = 15 };
enum { OPTIONAL = 1, AS_USER = 2 }; /* READ_ONLY, READ_WRITE */
enum { FOLDER = 1, MASK = 2 };      /* PROTECT: what to make when it is absent; show an empty thing instead */
#define SAME_GID 0xffffffffu
#define ACCOUNT_NAME "sandbox"

struct policy_head {
    char magic[8];
    uint32_t version, size;
};
struct record_head {
    uint32_t tag, flags;
    uint64_t value;
    uint32_t length, zero;
};

#endif
