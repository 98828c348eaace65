# The daemon's helpers in C: one static program per file, position independent like all others (-static-pie).
. /in/toolchain/env.sh

mkdir -p /out/usr/libexec/mixos
for source in /in/native/*.c; do
    name=${source##*/}
    $CC $CFLAGS -std=c11 -Wall -Wextra -Werror -static-pie -Qunused-arguments -Wno-ignored-optimization-argument \
        -o "/out/usr/libexec/mixos/${name%.c}" "$source"
done
