/* The command's environment: what the policy sets, and what it lets pass from outside. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *environment[RECORDS_MAX + 2];

/* Whether the variable in "NAME=value" passes from outside, and is there. */
static int passes(const char *text)
{
    EACH (item, ENV_PASS) {
        size_t length = item->head.length - 1;
        if (!strncmp(text, item->data, length) && text[length] == '=' && getenv(item->data))
            return 1;
    }
    return 0;
}

void make_environment(void)
{
    static char process[32];
    size_t used = 0;
    EACH (item, ENV_SET)
        if (!passes(item->data))
            environment[used++] = (char *)item->data;
    EACH (item, ENV_PASS) {
        char *value = getenv(item->data);
        /* sd_listen_fds(3): the receiver's own number, which is ours to know */
        if (value && !strcmp(item->data, "LISTEN_PID"))
            snprintf(process, sizeof process, "LISTEN_PID=%d", getpid());
        if (value) /* the text before it is the name and '=' */
            environment[used++] = *process && !strcmp(item->data, "LISTEN_PID") ? process : value - item->head.length;
    }
    environ = environment;
}
