/* Words of the spec and of commands. */
#define _GNU_SOURCE
#include "shim.h"

#include <stdio.h>
#include <string.h>

bool to_number(const char *text, long long low, long long high, long long *result)
{
    bool negative = *text == '-';
    long long value = 0;
    const char *at = text + negative;
    if (!*at || strlen(at) > 18)
        return false;
    for (; *at; at++) {
        if (*at < '0' || *at > '9')
            return false;
        value = value * 10 + (*at - '0');
    }
    *result = negative ? -value : value;
    return low <= *result && *result <= high;
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool decode(char *text)
{
    char *to = text;
    for (; *text; text++) {
        if (*text <= ' ' || *text >= 0x7f)
            return false;
        if (*text != '%') {
            *to++ = *text;
            continue;
        }
        int high = hex(text[1]), low = high < 0 ? -1 : hex(text[2]);
        if (low < 0 || (high | low) == 0)
            return false;
        *to++ = (char)(high << 4 | low);
        text += 2;
    }
    *to = 0;
    return true;
}

void encode(char *to, const char *from, size_t size)
{
    for (; size--; from++) {
        unsigned char c = (unsigned char)*from;
        if (c > ' ' && c < 0x7f && c != '%')
            *to++ = (char)c;
        else
            to += sprintf(to, "%%%02X", c);
    }
    *to = 0;
}

int split(char *line, char **words, int most)
{
    int count = 0;
    for (char *at = line; at; count++) {
        if (count == most)
            return -1;
        words[count] = at;
        at = strchr(at, ' ');
        if (at)
            *at++ = 0;
    }
    return count;
}
