/* From the pipes of the service to records in files. Format: daemon/parts/service/logs.py. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct logs logs = {.fd = -1};

static char input[CHUNK];         /* one read */
static char output[NOTE + CHUNK]; /* records to be written, after room for one of our own */
static char held[2][LINE];        /* the line begun, by stream */
static size_t held_size[2], output_size;
static unsigned output_lines;
static off_t log_size;
static long long tokens_at, dropped_told, lost_told, retry_at;

void log_open(bool next)
{
    union {
        char bytes[2048];
        struct {
            uint64_t ino, off;
            unsigned short size;
            unsigned char type;
            char name[];
        } entry;
    } buffer;
    char name[24], last;
    unsigned newest = 0;
    ssize_t got;
    mkdir(spec.log_folder, 0750);
    int dir = open(spec.log_folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int pass = 0; dir >= 0 && pass < 2; pass++, lseek(dir, 0, SEEK_SET)) {
        if (pass == 1 && next)
            newest++;
        while ((got = syscall(SYS_getdents64, dir, &buffer, sizeof buffer)) > 0)
            for (ssize_t at = 0; at < got;) {
                char *entry = buffer.bytes + at, *file = entry + 19; /* struct linux_dirent64, getdents(2) */
                unsigned short size;
                memcpy(&size, entry + 16, sizeof size);
                unsigned number = (unsigned)strtoul(file, NULL, 10);
                if (strlen(file) == 12 && strcmp(file + 8, ".log") == 0 && number) {
                    if (pass == 0 && number > newest)
                        newest = number;
                    else if (pass == 1 && number + (unsigned)spec.log_files < newest)
                        unlinkat(dir, file, 0);
                }
                at += size;
            }
    }
    newest += newest == 0;
    snprintf(name, sizeof name, "%08u.log", newest);
    hook("log-open");
    int fd = dir < 0 ? -1 : openat(dir, name, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
    struct stat about;
    if (fd >= 0 && fstat(fd, &about) == 0) {
        close_fd(&logs.fd);
        logs.fd = fd;
        log_size = about.st_size;
        if (log_size && pread(fd, &last, 1, log_size - 1) == 1 && last != '\n')
            log_size += write(fd, "\n", 1) == 1; /* torn by a power cut: the next record begins a line */
    }
    close_fd(&dir);
}

static bool log_write(const char *text, size_t size, unsigned lines)
{
    size_t done = 0;
    while (logs.fd >= 0 && done < size) {
        ssize_t wrote = write(logs.fd, text + done, size - done);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            break;
        done += (size_t)wrote;
    }
    if (done == size) {
        log_size += (off_t)size;
        return true;
    }
    if (done && ftruncate(logs.fd, log_size) < 0) /* no half records: they are counted as lost as a whole */
        close_fd(&logs.fd);
    logs.lost += lines;
    return false;
}

static void prefix(char *to, char stream)
{
    sprintf(to, "%lld %lld %.8s %c ", clock_ns(CLOCK_REALTIME), clock_ns(CLOCK_BOOTTIME), shim.boot, stream);
}

void log_flush(void)
{
    char note[NOTE] = "", *from = output + NOTE;
    if (!output_size)
        return;
    long long now = clock_ns(CLOCK_MONOTONIC), lost_before = logs.lost;
    if (logs.fd < 0 && now >= retry_at) {
        log_open(false);
        retry_at = now + SECOND;
    }
    if (log_size && log_size + (off_t)output_size > spec.log_size)
        log_open(true);
    if (logs.lost > lost_told) {
        prefix(note, 's');
        sprintf(note + strlen(note), "lost %lld\n", logs.lost - lost_told);
        from -= strlen(note); /* both or none: else a full disk fills with notes */
        memcpy(from, note, strlen(note));
    }
    if (log_write(from, strlen(note) + output_size, output_lines))
        lost_told = lost_before;
    output_size = output_lines = 0;
}

static void record(char stream, const char *text, size_t size)
{
    if (output_size + PREFIX + size + 1 > CHUNK)
        log_flush();
    char *to = output + NOTE + output_size;
    prefix(to, stream);
    size_t head = strlen(to);
    memcpy(to + head, text, size);
    to[head + size] = '\n';
    output_size += head + size + 1;
    output_lines++;
}

void note(const char *format, ...)
{
    char text[128];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    record('s', text, strlen(text));
}

void note_dropped(void)
{
    if (logs.dropped > dropped_told)
        note("dropped %lld", logs.dropped - dropped_told);
    dropped_told = logs.dropped;
    logs.dropped_at = 0;
}

static void line_done(int stream, const char *text, size_t size, bool more)
{
    long long cost = (1 + (long long)size / COST) * SECOND;
    if (spec.log_rate && logs.tokens < cost) {
        logs.dropped++;
        return;
    }
    logs.tokens -= cost;
    record("oeOE"[stream + 2 * more], text, size);
}

static void take(int stream, const char *text, size_t size) /* bytes of a stream, into lines */
{
    while (size) {
        const char *end = memchr(text, '\n', size);
        size_t part = end ? (size_t)(end - text) : size, room = LINE - held_size[stream];
        if (end && !held_size[stream] && part <= LINE)
            line_done(stream, text, part, false);
        else {
            bool full = part > room;
            part = full ? room : part;
            memcpy(held[stream] + held_size[stream], text, part);
            held_size[stream] += part;
            if (full)
                end = NULL;
            if (full || end) {
                line_done(stream, held[stream], held_size[stream], full);
                held_size[stream] = 0;
            }
        }
        part += end != NULL;
        text += part;
        size -= part;
    }
}

void pump(int stream, int reads)
{
    long long now = clock_ns(CLOCK_MONOTONIC), passed = now - tokens_at;
    long long full = spec.log_burst * SECOND, before = logs.dropped;
    tokens_at = now;
    if (passed > 1000 * SECOND)
        passed = 1000 * SECOND;
    logs.tokens = logs.tokens + passed * spec.log_rate > full ? full : logs.tokens + passed * spec.log_rate;
    while (reads--) {
        ssize_t got = read(shim.pipes[stream][0], input, sizeof input);
        if (got <= 0)
            break;
        take(stream, input, (size_t)got);
    }
    if (logs.dropped > before) {
        logs.throttled = now + TICK_MS * SECOND / 1000;
        if (!logs.dropped_at)
            logs.dropped_at = now + SECOND;
    }
}

void drain(void)
{
    for (int stream = 0; stream < 2; stream++) {
        pump(stream, 64); /* a pipe holds 1 MiB at most */
        if (held_size[stream])
            line_done(stream, held[stream], held_size[stream], false);
        held_size[stream] = 0;
    }
    note_dropped();
}
