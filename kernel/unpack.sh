#!/bin/sh -eu
# Makes a kernel source tree out of any form it comes in, and prints its path.
#
#   unpack.sh SOURCE DEST [kconfig]
#   unpack.sh SOURCE - makefile
#
# SOURCE: a source tree (used where it is, read-only), a tarball of one, or the distribution's linux-source .deb, which
# holds a tarball under usr/src. DEST: where to unpack; created. kconfig: leave out what only a compile reads, which is
# nine tenths of the files. makefile: print the Makefile at the top of a tarball or .deb, and unpack nothing.
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

# tar with these arguments on the tarball, as it is or out of the .deb.
tarball() {
	if [ "$(head -c 7 "$source")" != '!<arch>' ]; then
		tar "$@" --file="$source"
		return
	fi
	# Ubuntu's has a folder of that name in between, and a link to the tarball beside it.
	inner=$(dpkg-deb --fsys-tarfile "$source" |
		tar --list --verbose --wildcards './usr/src/linux-source-*.tar.*' | sed -n 's,^-.* \(\./usr/src/.*\)$,\1,p')
	case $inner in
	'' | *"
"*) fail "$source does not hold one kernel source under usr/src" ;;
	*.xz) set -- "$@" --xz ;;
	*.bz2) set -- "$@" --bzip2 ;;
	*.gz) set -- "$@" --gzip ;;
	*.zst) set -- "$@" --zstd ;;
	esac
	dpkg-deb --fsys-tarfile "$source" | tar --extract --to-stdout "$inner" | tar "$@"
}
export XZ_DEFAULTS="-T${JOBS:-1}"

if [ "$part" = makefile ]; then
	# It is among the first files of a tarball that is sorted, and tar stops reading there.
	for pattern in '*/Makefile' './*/Makefile'; do
		found=$(tarball --extract --to-stdout --occurrence=1 --wildcards --no-wildcards-match-slash "$pattern" |
			head -c 1048576)
		[ -z "$found" ] || break
	done
	printf '%s\n' "$found"
	exit 0
fi

set -- --extract --no-same-owner --directory="$dest.parts"
if [ "$part" = kconfig ]; then
	# Patterns are anchored at the top folder of the tarball ("linux-6.6.8/drivers/…"), so scripts/ stays whole.
	set -- "$@" --anchored --wildcards --wildcards-match-slash --exclude='*.rst' --exclude='*.dts*' --exclude='*.json'
	for folder in Documentation arch block crypto drivers fs kernel lib mm net samples security sound tools virt; do
		set -- "$@" --exclude="linux*/$folder/*.[chS]"
	done
fi
mkdir -p "$dest.parts"
tarball "$@"
# The status of a pipe is that of its last command: look at what came out.
for top in "$dest.parts"/*/; do
	[ ! -f "$top/Kconfig" ] || [ ! -f "$top/Makefile" ] || mv "$top" "$dest"
done
[ -d "$dest" ] || fail "$source did not hold a kernel source tree"
rm -rf "$dest.parts"
echo "$dest"
