/* The shim's specification of a service, in the working directory. */
#include "shim/spec.c"

#include "harness.h"

static void read_one(char *data, size_t size)
{
    int line;
    put("spec", data, size);
    spec_load(&line);
}
