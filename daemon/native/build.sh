# The daemon's helpers in C: one static program per folder, position independent like all others (-static-pie).
. /in/toolchain/env.sh

warnings="-Wall -Wextra -Wmissing-prototypes -Wstrict-prototypes -Wshadow -Werror"
mkdir -p /out/usr/libexec/mixos
for program in keeper sandbox shim; do
    # shellcheck disable=SC2086 # lists of words on purpose
    $CC $CFLAGS -std=c11 $warnings -static-pie -Qunused-arguments -Wno-ignored-optimization-argument \
        -o "/out/usr/libexec/mixos/$program" /in/native/base.c "/in/native/$program"/*.c
done
