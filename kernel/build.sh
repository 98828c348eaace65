#!/bin/sh -eu
# Compiles the kernel. Runs in the build sandbox.
#
# In:  /in/linux   source: tree, tarball or linux-source .deb (unpack.sh)
#      /in/config  the file `config` of kernel.config:configure's output
#      /in/unpack  kernel/unpack.sh
#      /in/patches patches for this version, in order: `patches/` of the same output
# Out: bzImage, config, release (the release string), System.map (decodes the addresses in a panic record; the kernel
#      carries no symbol table of its own)
#
# The same source, configuration and compiler give the same bytes: fixed names and times go in instead of the host's.
# Needs gcc, binutils, make, patch, flex, bison, bc, perl and the headers of libelf (objtool). MODULE compresses the
# kernel (payload.py; zstd-frames.patch).

KBUILD_BUILD_TIMESTAMP=$(LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" '+%a %b %e %H:%M:%S UTC %Y')
export KBUILD_BUILD_TIMESTAMP
export KBUILD_BUILD_USER=mixos KBUILD_BUILD_HOST=mixos-build KBUILD_BUILD_VERSION=1
# Empty but set: no "+" behind the version when the tree happens to be a git checkout.
export LOCALVERSION=

tree=$(sh /in/unpack /in/linux /build/linux)
out=/build/out

for patch in /in/patches/*.patch; do
	[ -e "$patch" ] || continue
	if [ "$tree" = /in/linux ]; then
		# A tree is mounted read-only: take a copy made of links, and real files where patches change them.
		tree=/build/linux
		cp --archive --symbolic-link /in/linux "$tree"
	fi
	sed -n 's,^+++ b/,,p' "$patch" | while read -r name; do
		[ ! -L "$tree/$name" ] || cp --remove-destination "$(readlink "$tree/$name")" "$tree/$name"
	done
	echo "patch: ${patch##*/}"
	patch --directory="$tree" --strip=1 --fuzz=0 --forward --batch --input="$patch"
done

mkdir -p "$out"
cp /in/config "$out/.config"
chmod 644 "$out/.config"

# The same words as in kernel/config.py, for the reasons given there.
kmake() {
	make -C "$tree" ZSTD_FRAMES="$MODULE" O="$out" ARCH=x86_64 CROSS_COMPILE= LLVM= CC=gcc LD=ld HOSTCC=gcc \
		PAHOLE=/nonexistent RUSTC=/nonexistent "$@"
}

# The configuration was made with this very compiler; if it changes now, the checks it passed are worth nothing.
kmake -s olddefconfig
cmp /in/config "$out/.config"

case " ${MAKEFLAGS:-} " in
*jobserver*) kmake bzImage ;;
*) kmake "-j${JOBS:-1}" bzImage ;;
esac

install -m 644 "$out/arch/x86/boot/bzImage" /out/bzImage
install -m 644 "$out/System.map" /out/System.map
install -m 644 "$out/.config" /out/config
kmake -s kernelrelease >/out/release
echo "bzImage $(stat -c %s /out/bzImage) bytes, release $(cat /out/release)"
