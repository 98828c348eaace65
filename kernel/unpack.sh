#!/bin/sh -eu
# Makes a kernel source tree out of any form it comes in, and prints its path.
#
#   unpack.sh SOURCE DEST [kconfig]
#
# SOURCE: a source tree (used where it is, read-only), a tarball of one, or the distribution's linux-source .deb, which
# holds a tarball under usr/src. DEST: where to unpack; created. kconfig: leave out what only a compile reads, which is
# nine tenths of the files.
source=$1
dest=$2
part=${3:-all}

fail() {
	echo "unpack: $1" >&2
	exit 1
}

if [ -d "$source" ]; then
	[ -f "$source/Kconfig" ] && [ -f "$source/Makefile" ] || fail "$source is not a kernel source tree"
	[ ! -e "$source/.config" ] && [ ! -e "$source/include/config/auto.conf" ] ||
		fail "$source holds the results of a build; run 'make mrproper' in it"
	echo "$source"
	exit 0
fi

set -- --extract --no-same-owner --strip-components=1 --directory="$dest"
if [ "$part" = kconfig ]; then
	# Patterns are anchored at the top folder of the tarball ("linux-6.6.8/drivers/…"), so scripts/ stays whole.
	set -- "$@" --anchored --wildcards --wildcards-match-slash --exclude='*.rst' --exclude='*.dts*' --exclude='*.json'
	for folder in Documentation arch block crypto drivers fs kernel lib mm net samples security sound tools virt; do
		set -- "$@" --exclude="linux*/$folder/*.[chS]"
	done
fi
mkdir -p "$dest"
export XZ_DEFAULTS="-T${JOBS:-1}"
if [ "$(head -c 7 "$source")" = '!<arch>' ]; then
	dpkg-deb --fsys-tarfile "$source" |
		tar --extract --to-stdout --wildcards './usr/src/linux-source-*.tar.xz' |
		tar "$@" --xz
else
	tar "$@" --file="$source"
fi
# The status of a pipe is that of its last command: look at what came out.
[ -f "$dest/Kconfig" ] && [ -f "$dest/Makefile" ] || fail "$source did not hold a kernel source tree"
echo "$dest"
