/* The compiled policy of the sandbox's launcher, in the working directory. */
#include "sandbox/policy.c"

#include "harness.h"

#include <setjmp.h>

static jmp_buf refused;

_Noreturn void deny(const char *what, const char *which)
{
    (void)what, (void)which;
    longjmp(refused, 1);
}
_Noreturn void refuse(const char *what, const char *which)
{
    deny(what, which);
}
long must(long result, const char *what, const char *which)
{
    if (result < 0)
        refuse(what, which);
    return result;
}

static void read_one(char *data, size_t size)
{
    memset(once, 0, sizeof once);
    memset(scalar, 0, sizeof scalar);
    record_count = 0;
    put("policy", data, size);
    if (!setjmp(refused))
        read_policy("policy");
}
