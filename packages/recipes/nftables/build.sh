. /in/toolchain/env.sh

# The libraries are the distribution's builds, which it keeps patched; compat.c gives them what they expect of glibc and
# musl does not have. nft.c is the program around them: the distribution's own would bring an editor of lines.
for package in /in/deb-*; do
    dpkg-deb -x "$package" /build/root
done
libraries=/build/root/usr/lib/x86_64-linux-gnu
mkdir -p /out/usr/lib
for library in libnftables.so.1 libnftnl.so.11 libmnl.so.0 libjansson.so.4 libgmp.so.10 libxtables.so.12; do
    install -m 755 "$libraries/$library" "/out/usr/lib/$library"
done

# Seen by the libraries, hence exported.
$CC $CFLAGS -std=c11 -Wall -Wextra -Werror -DVERSION='"1.0.6"' -o nft /in/recipe/nft.c /in/recipe/compat.c \
    -Wl,--export-dynamic,--allow-shlib-undefined,-rpath-link,/out/usr/lib /out/usr/lib/libnftables.so.1
# Everything is bound at the start: a symbol that is missing shows here.
LD_LIBRARY_PATH=/out/usr/lib ./nft --version
install -D -m 755 nft /out/usr/sbin/nft
