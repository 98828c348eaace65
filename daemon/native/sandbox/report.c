/* The only ways out, and the report: what was set up, in JSON, for whoever started us. */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool in_init;
int report_fd = -1;
static char report[16384];
static size_t report_length;

_Noreturn void refuse(const char *what, const char *which)
{
    const char *why = errno ? strerror(errno) : "";
    static int already;
    dprintf(STDERR_FILENO, "sandbox: %s%s%s%s%s\n", what, *which ? " " : "", which, *why ? ": " : "", why);
    if (!in_init && !already++) {
        act_as(0, 0); /* perhaps it went wrong while we looked something up for the account */
        remove_placeholders();
    }
    _exit(REFUSED);
}

_Noreturn void deny(const char *what, const char *which)
{
    errno = 0;
    refuse(what, which);
}

long must(long result, const char *what, const char *which)
{
    if (result < 0)
        refuse(what, which);
    return result;
}

void note(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int length = vsnprintf(report + report_length, sizeof report - report_length, format, list);
    va_end(list);
    if (length > 0 && (size_t)length < sizeof report - report_length)
        report_length += (size_t)length;
}

void note_text(const char *text)
{
    note("\"");
    for (; *text; text++)
        note((unsigned char)*text < 0x20 || *text == '"' || *text == '\\' ? "\\u%04x" : "%c", (unsigned char)*text);
    note("\"");
}

bool report_has_room(void)
{
    return report_length < sizeof report / 2;
}

void send_report(void)
{
    if (report_fd >= 0 && write(report_fd, report, report_length) != (ssize_t)report_length)
        deny("the report cannot be written", "");
    report_length = 0;
}
