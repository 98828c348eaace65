/* attempts: try to get out, and say whether it worked.
 *
 *     attempts NAME            one attempt; exit code 0: it worked, 1: blocked (why is printed), 2: not applicable here
 *     attempts --all [PREFIX]  all of them but those that need a sandbox of their own, one line each: NAME RESULT DETAIL
 *     attempts --list          their names
 *     attempts stage DIR NAME=VALUE...   make what they attack, and stay until killed (see stage.h)
 *     attempts open-proxy PORT           a proxy that refuses nothing, until killed
 *
 * "It worked" is only said for an effect that was seen: a token read, a value changed, a call that returned. Where the
 * effect would do harm, a call is made whose arguments are wrong but which is refused only after the rights are checked.
 * So the same program must say "worked" outside, as root, and "blocked" inside. Facts come from the file `facts` beside
 * this program. Compiles with glibc and musl, static. */
#include "attempts.h"

#include "mounts.h"
#include "files.h"
#include "processes.h"
#include "kernel.h"
#include "network.h"
#include "stage.h"

#define GROUP(list) {list, sizeof list / sizeof *list}
static const struct { const struct attempt *list; size_t length; } groups[] = {
    GROUP(what_works), GROUP(mount_attempts), GROUP(file_attempts), GROUP(process_attempts), GROUP(kernel_attempts),
    GROUP(network_attempts),
};
static const struct attempt alone[] = { /* each needs a sandbox of its own, which it ends or tries to outlive */
    {"memory-over", memory_over}, {"outlive", outlive}, {"past-the-clock", past_the_clock},
};
#define EACH_ALONE(one) for (const struct attempt *one = alone; one < alone + sizeof alone / sizeof *alone; one++)
#define EACH_ATTEMPT(one)                                                                                              \
    for (size_t group = 0; group < sizeof groups / sizeof *groups; group++)                                             \
        for (const struct attempt *one = groups[group].list; one < groups[group].list + groups[group].length; one++)

enum { SECONDS = 30 };

static void spelled(char *to, const char *name) /* names made by the preprocessor have _ for - */
{
    while ((*to++ = *name == '_' ? '-' : *name))
        name++;
}

/* In a process of its own, which may die of it. */
static int attempt(const struct attempt *one)
{
    *detail = 0;
    pid_t child = fork();
    if (child == 0) {
        alarm(SECONDS);
        errno = 0;
        _exit(one->act());
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    say(0, "signal %d", WTERMSIG(status));
    return WTERMSIG(status) == SIGALRM ? 3 : BLOCKED;
}

static int one_by_name(const char *name)
{
    char known[80];
    EACH_ATTEMPT(one) {
        spelled(known, one->name);
        if (!strcmp(known, name))
            return attempt(one);
    }
    EACH_ALONE(one)
        if (!strcmp(one->name, name))
            return attempt(one);
    say(0, "no such attempt");
    return 4;
}

static int all(const char *prefix)
{
    static const char *const words[] = {"escaped", "blocked", "inapplicable", "hung", "unknown"};
    int except = *prefix == '-'; /* "-x": all that do not begin with x */
    prefix += except;
    EACH_ATTEMPT(one) {
        char name[80];
        spelled(name, one->name);
        if (*prefix && (strncmp(name, prefix, strlen(prefix)) == 0) == except)
            continue;
        fflush(stdout);
        int result = attempt(one);
        printf("%s\t%s\t%s\n", name, words[result < 0 || result > 4 ? 4 : result], detail);
    }
    printf("end\t\t\n");
    return 0;
}

static void read_facts(void)
{
    ssize_t length = readlink("/proc/self/exe", here, sizeof here - 1);
    here[length < 0 ? 0 : length] = 0;
    for (int level = 0; level < 2 && strrchr(here, '/'); level++) /* shown/attempts */
        *strrchr(here, '/') = 0;
    int fd = open(in("shown/facts"), O_RDONLY | O_CLOEXEC);
    length = read(fd, facts, sizeof facts - 2);
    close(fd);
    for (ssize_t index = 0; index < length; index++)
        facts[index] = facts[index] == '\n' ? 0 : facts[index];
}

int main(int count, char **words)
{
    const char *word = count > 1 ? words[1] : "";
    detail = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!strcmp(word, "am-i-here"))
        return 0;
    if (!strcmp(word, "am-i-root"))
        return geteuid() != 0;
    if (!strcmp(word, "am-i-capable"))
        return !has_capability(0, 0);
    if (!strcmp(word, "stage") && count > 2) {
        snprintf(here, sizeof here, "%s", words[2]);
        return make_stage(words + 3);
    }
    if (!strcmp(word, "open-proxy") && count > 2) {
        serve(listens("127.0.0.1", atoi(words[2]), SOCK_STREAM), pretend, "proxy");
        for (;;)
            pause();
    }
    if (!strcmp(word, "--list")) {
        EACH_ATTEMPT(one) {
            char name[80];
            spelled(name, one->name);
            puts(name);
        }
        EACH_ALONE(one)
            puts(one->name);
        return 0;
    }
    read_facts();
    if (!strcmp(word, "victim"))
        return be_victim();
    if (!strcmp(word, "--all"))
        return all(count > 2 ? words[2] : "");
    int result = one_by_name(word);
    printf("%s\n", detail);
    return result;
}
