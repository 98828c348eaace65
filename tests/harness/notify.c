/* The shim's sd_notify(3) messages. */
#include "shim/notify.c"

#include "harness.h"

#include <stdarg.h>

struct spec spec;
struct shim shim = {.client = -1};
struct service service = {.phase = RUNNING, .main_pid = 5, .notify = -1};
struct kept kept[KEPT];
int kept_count;

void tell(const char *format, ...)
{
    char text[256];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
}
void changed(void)
{
}
void let_go(int fd)
{
    (void)fd;
}
bool new_main(pid_t pid)
{
    return pid == 7;
}
void look_ready(bool now)
{
    (void)now;
}
void look_kept(void)
{
}
void extend(long long microseconds)
{
    if (microseconds < 0)
        abort();
}
void unkeep(const char *name, bool own)
{
    (void)own;
    if (strlen(name) > 4096)
        abort();
}
bool keep(const char *name, int fd, bool own, bool watched)
{
    return fd >= 0 && own && watched && strlen(name) <= NAME;
}
int received(struct msghdr *message, int *fds, int room, struct ucred *sender)
{
    (void)message, (void)fds, (void)room, (void)sender;
    return 0;
}
bool process(pid_t pid, pid_t *parent, unsigned long long *start_time)
{
    (void)pid, (void)parent, (void)start_time;
    return false;
}
bool descends(pid_t pid)
{
    (void)pid;
    return false;
}
long long clock_ns(clockid_t id)
{
    (void)id;
    return 0;
}

static void read_one(char *data, size_t size)
{
    int fds[2] = {-1, 5};
    if (size < 4096) /* what look_notify() takes */
        notified(data, fds, 2);
}
