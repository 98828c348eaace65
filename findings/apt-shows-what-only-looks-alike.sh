#!/bin/sh
# apt-cache takes the name of a package as a pattern when there is no package of that name.
#
# Expected: `apt-cache show linux-source-6.12` fails, or says nothing, where no package is called linux-source-6.12.
# Seen (apt 2.6.1, Debian 12): it prints the record of linux-source-6.12-extra with status 0. A program that takes the first
# record for an answer takes another package. The dot matches any character, too.
#
# Needs apt-get, apt-cache, dpkg-deb; runs Debian's apt 2.6.1 and libapt-pkg6.0 out of a temporary folder.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p lists/partial debs tree archive state
apt-get -q update -o Dir::State::Lists="$work/state" -o APT::Sandbox::User=root >/dev/null
for package in apt=2.6.1 libapt-pkg6.0=2.6.1; do
    (cd debs && apt-get -q download -o Dir::State::Lists="$work/state" -o APT::Sandbox::User=root "$package" >/dev/null)
done
for deb in debs/*.deb; do dpkg-deb --extract "$deb" tree; done

cat >archive/Packages <<'INDEX'
Package: linux-source-6.12-extra
Version: 1
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: another package
Filename: ./extra.deb
Size: 1
SHA256: ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb
INDEX
echo "deb [trusted=yes] file:$work/archive ./" >sources.list
export LD_LIBRARY_PATH="$work/tree/usr/lib/x86_64-linux-gnu"
options="-o Dir::Etc::sourcelist=$work/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::Lists=$work/lists
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Dir::State::status=/dev/null -o APT::Sandbox::User=root"
# shellcheck disable=SC2086 # a list of words on purpose
tree/usr/bin/apt-get -q $options update >/dev/null 2>&1

tree/usr/bin/apt-cache --version
status=0
# shellcheck disable=SC2086
tree/usr/bin/apt-cache $options show linux-source-6.12 >shown 2>&1 || status=$?
echo "status $status"
cat shown
if [ "$status" = 0 ] && grep -q '^Package: linux-source-6.12-extra$' shown; then
    echo "as described"
else
    echo "this has changed" >&2
    exit 1
fi
