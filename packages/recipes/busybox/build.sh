. /in/toolchain/env.sh

tar xf /in/busybox --strip-components=1

# Everything off, then what busybox.config asks for; a request that Kconfig drops is an error.
grep '^CONFIG_' /in/recipe/busybox.config >/build/requests
make allnoconfig HOSTCC=gcc >/build/kconfig.log
sed 's/=.*//' /build/requests | while read -r symbol; do
    printf '/^%s=/d\n/^# %s is not set$/d\n' "$symbol" "$symbol"
done >/build/requests.sed
sed -i -f /build/requests.sed .config
cat /build/requests >>.config
yes n | make oldconfig HOSTCC=gcc >>/build/kconfig.log
while read -r request; do
    grep -qxF "$request" .config || { echo "busybox: Kconfig dropped the request $request" >&2; exit 1; }
done </build/requests

# CONFIG_STATIC and CONFIG_PIE exclude each other there; clang's -static-pie gives both.
compiler="$CC -static-pie -Qunused-arguments -Wno-ignored-optimization-argument"
make busybox busybox.links HOSTCC=gcc CC="$compiler" LD="$LD" AR="$AR" SKIP_STRIP=y
install -D -m 755 busybox /out/usr/bin/busybox

# One relative symlink per applet, in the directory where people expect it under a merged /usr.
mkdir -p /out/usr/sbin
while read -r link; do
    applet=${link##*/}
    case $link in
        /linuxrc) ;;
        */sbin/*) ln -s ../bin/busybox "/out/usr/sbin/$applet" ;;
        *) ln -s busybox "/out/usr/bin/$applet" ;;
    esac
done <busybox.links
