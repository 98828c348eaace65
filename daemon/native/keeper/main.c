/* keeper WATCHDOG SECONDS TRIAL: resets a machine that hangs, and restarts one whose system on trial does not get well.
 *
 * Started by init before anything else can hang; it needs neither a disk nor the daemon. It detaches itself, opens the
 * hardware watchdog (Documentation/watchdog/watchdog-api.rst), if there is one, and feeds it four times in SECONDS.
 * TRIAL is a file that holds a time, in seconds after the kernel's start; it is made by init when the boot is on trial
 * (docs/updates.md) and removed by the daemon when all is well. When that time has come and the file is still there, init
 * is asked for a restart, as `reboot` does; a shutdown that has not ended PATIENCE seconds later ends here, by the watchdog
 * that is fed no more and by reboot(2). The kernel is told to leave its log in the firmware (pstore), as when it dies, so
 * that the version which is started then knows why (daemon/parts/update/ending.py reads what is said here).
 */
#define _GNU_SOURCE
#include "../base.h"

#include <fcntl.h>
#include <linux/watchdog.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE 120
#define KEEP_LOG "/sys/module/printk/parameters/always_kmsg_dump" /* not for an ordinary restart: firmware wears */

static void say(const char *text)
{
    write_at(AT_FDCWD, "/dev/kmsg", text);
    write_at(AT_FDCWD, "/dev/console", text + 3); /* without the priority */
}

static long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_BOOTTIME, &time);
    return (long)time.tv_sec;
}

/* Whether the trial is over without success. An empty file is one whose writer was cut off: the trial goes on. */
static bool overdue(const char *trial)
{
    char text[32];
    read_at(AT_FDCWD, trial, text, sizeof text);
    long end = strtol(text, NULL, 10);
    return end > 0 && now() >= end;
}

static int open_watchdog(const char *path, int seconds)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        ioctl(fd, WDIOC_SETTIMEOUT, &seconds); /* not each can: most then have 60 */
    return fd;
}

int main(int argc, char **argv)
{
    int seconds = argc == 4 ? atoi(argv[2]) : 0, end = 0;
    if (seconds < 4 || seconds > 600)
        fail(2, "usage: keeper WATCHDOG SECONDS TRIAL\n");
    int watchdog = open_watchdog(argv[1], seconds);
    if (daemon(0, 0) < 0)
        fail(1, "keeper: %m\n");
    prctl(PR_SET_NAME, "watchdog"); /* what a shutdown leaves alone */
    default_signals();
    mlockall(MCL_CURRENT | MCL_FUTURE);
    for (;;) {
        if (watchdog < 0)
            watchdog = open_watchdog(argv[1], seconds); /* its driver may have come later */
        if (watchdog >= 0 && !(end && now() >= end))
            ioctl(watchdog, WDIOC_KEEPALIVE, NULL);
        if (!end && overdue(argv[3])) {
            write_at(AT_FDCWD, KEEP_LOG, "1");
            say("<2>mixos: this version did not get well in time: restarting\n");
            end = (int)now() + PATIENCE;
            kill(1, SIGTERM); /* BusyBox init: restart */
        } else if (end && now() >= end) {
            say("<2>mixos: the restart did not come to its end\n");
            reboot(RB_AUTOBOOT);
        }
        poll(NULL, 0, seconds * 250);
    }
}
