/* Reading DIR/spec. A file that is not understood to its last byte is refused. Its writer is
 * daemon/parts/service/spec.py. */
#define _GNU_SOURCE
#include "shim.h"

#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define AT(member) offsetof(struct spec, member)
/* Names are arrays, not pointers: what needs no relocation is shared by all shims. */
static const struct number_key {
    char name[18];
    size_t at;
    long long low, high;
} numbers[] = {
    {"uid", AT(uid), 0, 0xfffffffeLL},
    {"gid", AT(gid), 0, 0xfffffffeLL},
    {"notify-uid", AT(notify_uid), 0, ANYBODY},
    {"umask", AT(umask), 0, 0777},
    {"nice", AT(nice), -20, 19},
    {"oom-score-adj", AT(oom_score_adj), -1000, 1000},
    {"no-new-privileges", AT(no_new_privileges), 0, 1},
    {"ambient", AT(ambient), 0, (1LL << 41) - 1},
    {"bounding", AT(bounding), 0, (1LL << 41) - 1},
    {"notify", AT(notify), 0, 1},
    {"await-ready", AT(await_ready), 0, 1},
    {"ready-fd", AT(ready_fd), 0, 255},
    {"daemonises", AT(daemonises), 0, 1},
    {"stop-signal", AT(stop_signal), 1, 64},
    {"grace", AT(grace), 0, 86400000},
    {"fd-store", AT(fd_store), 0, KEPT},
    {"log-size", AT(log_size), 65536, 1LL << 32},
    {"log-files", AT(log_files), 0, 100},
    {"log-rate", AT(log_rate), 0, 1000000},
    {"log-burst", AT(log_burst), 1, 1000000},
};
static const struct text_key {
    char name[12];
    size_t at;
} texts[] = {
    {"unit", AT(unit)},
    {"cwd", AT(cwd)},
    {"cgroup", AT(cgroup)},
    {"shim-cgroup", AT(shim_cgroup)},
    {"log-folder", AT(log_folder)},
};
const struct limit_name limit_names[LIMITS] = {
    {"as", RLIMIT_AS},           {"core", RLIMIT_CORE},         {"cpu", RLIMIT_CPU},
    {"data", RLIMIT_DATA},       {"fsize", RLIMIT_FSIZE},       {"locks", RLIMIT_LOCKS},
    {"memlock", RLIMIT_MEMLOCK}, {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE},
    {"nofile", RLIMIT_NOFILE},   {"nproc", RLIMIT_NPROC},       {"rss", RLIMIT_RSS},
    {"rtprio", RLIMIT_RTPRIO},   {"rttime", RLIMIT_RTTIME},     {"sigpending", RLIMIT_SIGPENDING},
    {"stack", RLIMIT_STACK},
};

enum { NUMBERS = sizeof numbers / sizeof *numbers, TEXTS = sizeof texts / sizeof *texts };

struct spec spec = {.unit = "", .cgroup = ""};

static const char *list_key(struct spec *s, char **word, int count)
{
    long long value, hard;
    if (strcmp(word[0], "arg") == 0 && count == 2)
        s->argv[s->args++] = word[1]; /* there is room: they were counted */
    else if (strcmp(word[0], "env") == 0 && count == 2) {
        if (!strchr(word[1], '=') || s->envs == LISTS)
            return "bad environment";
        s->envp[s->envs++] = word[1];
    } else if (strcmp(word[0], "group") == 0 && count == 2) {
        if (s->groups == GROUPS || !to_number(word[1], 0, 0xfffffffeLL, &value))
            return "bad group";
        s->group[s->groups++] = (gid_t)value;
    } else if (strcmp(word[0], "limit") == 0 && count == 4) {
        int i = 0;
        while (i < LIMITS && strcmp(limit_names[i].name, word[1]) != 0)
            i++;
        if (i == LIMITS || s->limit[i].set)
            return "bad limit name";
        struct limit *limit = &s->limit[i];
        limit->set = true;
        value = hard = -1;
        if ((strcmp(word[2], "infinity") != 0 && !to_number(word[2], 0, INT64_MAX, &value)) ||
            (strcmp(word[3], "infinity") != 0 && !to_number(word[3], 0, INT64_MAX, &hard)))
            return "bad limit";
        limit->value.rlim_cur = value < 0 ? RLIM_INFINITY : (rlim_t)value;
        limit->value.rlim_max = hard < 0 ? RLIM_INFINITY : (rlim_t)hard;
    } else
        return "unknown key or wrong number of words";
    return NULL;
}

static const char *spec_line(struct spec *s, char *line, uint64_t *seen)
{
    char *word[4];
    int count = split(line, word, 4), key = 0;
    if (count < 2)
        return "wrong number of words";
    for (int i = 0; i < count; i++)
        if (!decode(word[i]))
            return "bad character";
    for (; key < NUMBERS + TEXTS; key++)
        if (strcmp(key < NUMBERS ? numbers[key].name : texts[key - NUMBERS].name, word[0]) == 0)
            break;
    if (key == NUMBERS + TEXTS)
        return list_key(s, word, count);
    if (count != 2 || *seen >> key & 1)
        return "key given twice";
    *seen |= 1ULL << key;
    if (key < NUMBERS) {
        long long *to = (long long *)((char *)s + numbers[key].at);
        return to_number(word[1], numbers[key].low, numbers[key].high, to) ? NULL : "number out of range";
    }
    *(char **)((char *)s + texts[key - NUMBERS].at) = word[1];
    return strlen(word[1]) < MAX_PATH ? NULL : "text too long";
}

static const char *spec_parse(struct spec *s, size_t length, int *line)
{
    char *at = s->map, *end = s->map + length;
    uint64_t seen = 0;
    int args = 0;
    for (char *c = at; c && end - c > 5; c = memchr(c + 1, '\n', (size_t)(end - c - 1)))
        args += memcmp(c, "\narg ", 5) == 0;
    if (args > LISTS)
        return "too many arguments";
    s->argv = (char **)(s->map + ((length + 8) & ~7UL));
    s->envp = s->argv + args + 1;
    for (*line = 1; at < end; ++*line) {
        char *stop = memchr(at, '\n', (size_t)(end - at));
        if (!stop || memchr(at, 0, (size_t)(stop - at)))
            return "not a line of text";
        *stop = 0;
        const char *wrong = *line > 1 ? spec_line(s, at, &seen) : strcmp(at, "mixos-spec 1") != 0 ? "bad head" : NULL;
        if (wrong)
            return wrong;
        at = stop + 1;
    }
    if (!*s->unit || !s->args || s->argv[0][0] != '/' || s->cwd[0] != '/' || s->log_folder[0] != '/')
        return "unit, arg, cwd or log-folder is missing or not absolute";
    if (strpbrk(s->unit, " \n") || strpbrk(s->cgroup, " \n")) /* they go into the state as they are */
        return "unit or cgroup with a space";
    if (s->ready_fd && s->ready_fd < 3)
        return "ready-fd is a standard stream";
    if (s->notify_uid < 0)
        s->notify_uid = s->uid;
    return NULL;
}

const char *spec_load(int *line)
{
    struct spec s = {
        .unit = "",
        .cwd = "/",
        .cgroup = "",
        .shim_cgroup = "",
        .log_folder = "",
        .notify_uid = -1,
        .umask = 022,
        .bounding = -1,
        .stop_signal = SIGTERM,
        .grace = 10000,
        .log_size = 1 << 20,
        .log_files = 4,
        .log_rate = 1000,
        .log_burst = 10000,
    };
    struct stat about;
    int fd = open("spec", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    *line = 0;
    if (fd < 0 || fstat(fd, &about) < 0 || !S_ISREG(about.st_mode) || about.st_size > MAX_SPEC) {
        close_fd(&fd);
        return "no file, or too large";
    }
    s.size = (size_t)about.st_size + 16 + (2 * LISTS + 8) * sizeof(char *);
    s.map = mmap(NULL, s.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const char *wrong = "no memory";
    if (s.map != MAP_FAILED) {
        ssize_t got = read(fd, s.map, (size_t)about.st_size);
        wrong = got == about.st_size ? spec_parse(&s, (size_t)got, line) : "cannot be read";
        if (!wrong && spec.map)
            munmap(spec.map, spec.size);
        if (!wrong)
            spec = s;
        else
            munmap(s.map, s.size);
    }
    close(fd);
    return wrong;
}
