/* Reading a compiled policy: every length is checked before it is used, every value has its bounds, and what is not
 * understood is refused. The format is in format.h. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t scalar[SCALARS];
struct record records[RECORDS_MAX], *once[TAGS];
unsigned record_count;

/* Absolute, and nothing in it that means another path than it says. */
static int plain_path(const char *path)
{
    if (*path != '/' || !path[1])
        return 0;
    for (const char *part = path; *part;) {
        size_t length = strcspn(++part, "/");
        if (length == 0 || length > 255 || (part[0] == '.' && (length == 1 || (length == 2 && part[1] == '.'))))
            return 0;
        part += length;
    }
    return 1;
}

static int sound_data(const struct record_head *head, const char *data)
{
    int text =
        head->length >= 1 && head->length <= PATH_LENGTH && memchr(data, 0, head->length) == data + head->length - 1;
    switch (head->tag) {
    case READ_ONLY:
    case READ_WRITE:
        return text && plain_path(data) && head->flags <= (OPTIONAL | AS_USER);
    case TMPFS:
        return text && plain_path(data) && head->value > 0;
    case DEVICE:
    case UID_LOCKS:
    case PROXY_SOCKET:
        return text && plain_path(data);
    case PROTECT:
        return text && plain_path(data) && head->flags <= (FOLDER | MASK);
    case DIRECTORY:
        return text && (plain_path(data) || !strcmp(data, "/"));
    case ACCOUNT: /* a field of passwd(5) */
        return text && *data == '/' && !strpbrk(data, ":\n");
    case ENV_PASS:
        return text && *data && !strchr(data, '=');
    case ENV_SET:
        return text && strchr(data, '=') > data;
    case HOSTNAME:
        return text && head->length <= 64;
    case RLIMIT:
        return head->length == 0 && head->flags < RLIM_NLIMITS;
    case GROUP:
        return head->length == 0 && head->value > 0 && head->value < SAME_GID;
    case FILTER:
    case BRIDGE_FILTER:
        return head->length % sizeof(struct sock_filter) == 0 && head->length > 0 &&
               head->length <= BPF_MAXINSNS * sizeof(struct sock_filter);
    }
    return 0;
}

static void check_policy(uint64_t seen)
{
    static const uint64_t most[SCALARS] = {
        [UID_FIRST] = SAME_GID - 1, [UID_LAST] = SAME_GID - 1, [GID] = SAME_GID,      [NETWORK] = NETWORK_PROXY,
        [PROXY_PORT] = 65535,       [PROC] = PROC_FULL,        [TERMINAL] = 1,        [WRITABLE_EXEC] = 1,
        [CAPABILITIES] = ~0ull,     [WALL_MS] = 1ull << 40,    [MEMORY] = 1ull << 60, [PIDS] = 1 << 22,
        [SHM] = 1ull << 50,         [REQUIRE] = REQUIRE_ALL,   [UMASK] = 0777,
    };
    int sound = seen == (1ull << SCALARS) - 1;
    for (int index = 0; index < SCALARS; index++)
        sound = sound && scalar[index] <= most[index];
    int proxy = scalar[NETWORK] == NETWORK_PROXY;
    sound = sound && scalar[UID_FIRST] > 0 && scalar[UID_FIRST] <= scalar[UID_LAST] && scalar[GID] > 0;
    sound = sound && scalar[UID_LAST] - scalar[UID_FIRST] < 65536 && once[FILTER] && once[HOSTNAME] && once[DIRECTORY];
    sound = sound && (scalar[UID_FIRST] == scalar[UID_LAST] || once[UID_LOCKS]);
    sound =
        sound && proxy == !!once[PROXY_SOCKET] && proxy == !!once[BRIDGE_FILTER] && proxy == (scalar[PROXY_PORT] > 0);
    if (!sound)
        deny("the policy is not complete or contradicts itself", "");
}

void read_policy(const char *path)
{
    static _Alignas(8) char text[POLICY_MAX];
    struct policy_head head;
    struct stat info;
    size_t size = 0;
    int fd = (int)must(open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY), "policy", path);
    must(fstat(fd, &info), "policy", path);
    if (!S_ISREG(info.st_mode) || (info.st_uid != 0 && info.st_uid != geteuid()) || (info.st_mode & 022))
        deny("the policy is not a file that only its owner, root or this account, can change:", path);
    for (ssize_t got;
         size < sizeof text && (got = must(read(fd, text + size, sizeof text - size), "policy", path)) > 0;)
        size += (size_t)got;
    close(fd);
    if (size < sizeof head)
        deny("the policy is cut short:", path);
    memcpy(&head, text, sizeof head);
    if (memcmp(head.magic, POLICY_MAGIC, sizeof POLICY_MAGIC) || head.version != POLICY_VERSION || head.size != size)
        deny("not a compiled policy of this version, or not a whole one:", path);
    uint64_t seen = 0;
    for (size_t at = sizeof head; at < size;) {
        struct record *item = &records[record_count];
        size_t left = size - at - sizeof item->head; /* may wrap: the first test below */
        if (size - at < sizeof item->head || record_count == RECORDS_MAX)
            deny("the policy is cut short or too long:", path);
        memcpy(&item->head, text + at, sizeof item->head);
        const struct record_head *next = &item->head;
        size_t padded = ((size_t)next->length + 7) & ~(size_t)7;
        item->data = text + at + sizeof *next;
        if (padded > left || next->zero)
            deny("the policy is cut short:", path);
        at += sizeof *next + padded;
        if (next->tag < SCALARS) {
            if (next->length || next->flags || seen >> next->tag & 1)
                deny("the policy has a malformed scalar:", path);
            seen |= 1ull << next->tag;
            scalar[next->tag] = next->value;
            continue;
        }
        if (!sound_data(next, item->data))
            deny("the policy has a malformed record:", path);
        if (next->tag >= HOSTNAME) {
            if (once[next->tag])
                deny("the policy has a record twice:", path);
            once[next->tag] = item;
        }
        record_count++;
    }
    check_policy(seen);
}
