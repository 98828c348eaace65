/* Inside: limits of the cgroup, and of the process where the cgroup has none. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

char cgroup_path[PATH_LENGTH];

#define CGROUPS "/sys/fs/cgroup"

/* Started inside our cgroup: the line "0::/path" says which (cgroups(7)); the last one where there is version 1, too. */
void find_cgroup(void)
{
    char text[PATH_LENGTH];
    if (*cgroup_path)
        return;
    read_at(AT_FDCWD, "/proc/self/cgroup", text, sizeof text);
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
        read_at(AT_FDCWD, path, text, sizeof text);
        uint64_t found = strtoull(text, NULL, 10); /* "max" is 0 */
        lowest = found && (!lowest || found < lowest) ? found : lowest;
    }
    return lowest;
}

void lower_limit(unsigned resource, uint64_t value)
{
    struct rlimit limit;
    must(getrlimit(resource, &limit), "limit", "");
    limit.rlim_cur = limit.rlim_max = value < limit.rlim_max ? value : limit.rlim_max;
    must(setrlimit(resource, &limit), "limit", "");
}

/* Memory and processes are the cgroup's to limit. Where it does not, a limit of each process is better than none. */
void bound(const char *name, const char *file, uint64_t most, unsigned resource, uint64_t required)
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
