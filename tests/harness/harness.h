/* What the harnesses share: a reader of the device's programs, given one input
 * after the other (length, bytes; answered by a byte), so that a sanitizer sees
 * what it does. `read_one` is the harness's own; the data is followed by a byte
 * 0. */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void read_one(char *data, size_t size);

int main(void)
{
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        char *data = malloc((size_t)size + 1); /* of just this size: what reads on is seen */
        if (!data || fread(data, 1, size, stdin) != size)
            return 1;
        data[size] = 0;
        read_one(data, size);
        free(data);
        if (putchar('.') == EOF || fflush(stdout))
            return 1;
    }
    return 0;
}

/* For readers of files. */
__attribute__((unused)) static void put(const char *path, const char *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file))
        abort();
}

#endif
