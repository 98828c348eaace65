#!/bin/sh
# `apt-get indextargets` names only archives whose index was fetched already, not those that apt is configured for.
#
# Expected: a listing of the configured index targets, with $(SITE), is a way to ask which mirrors a host uses.
# Seen (apt 2.6.1, Debian 12): with empty lists it prints nothing, with status 0, and after an update of one of two sources
# only that one. `apt-get update --print-uris` names both without lists, locks or root.
#
# Needs apt-get, dpkg-deb; runs Debian's apt 2.6.1 and libapt-pkg6.0 out of a temporary folder.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p lists/partial debs tree archive/dists/stable/main/binary-amd64 state
apt-get -q update -o Dir::State::Lists="$work/state" -o APT::Sandbox::User=root >/dev/null
for package in apt=2.6.1 libapt-pkg6.0=2.6.1; do
    (cd debs && apt-get -q download -o Dir::State::Lists="$work/state" -o APT::Sandbox::User=root "$package" >/dev/null)
done
for deb in debs/*.deb; do dpkg-deb --extract "$deb" tree; done
export LD_LIBRARY_PATH="$work/tree/usr/lib/x86_64-linux-gnu"

index=archive/dists/stable/main/binary-amd64/Packages
printf '%s\n' 'Package: example' 'Version: 1' 'Architecture: all' 'Maintainer: nobody <nobody@example.org>' 'Size: 1' \
    'Filename: pool/example.deb' 'SHA256: ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb' >"$index"
printf 'Suite: stable\nComponents: main\nArchitectures: amd64\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n %s %s %s\n' \
    "$(sha256sum <"$index" | cut -d' ' -f1)" "$(wc -c <"$index")" main/binary-amd64/Packages >archive/dists/stable/Release
{
    echo "deb [trusted=yes] file:$work/archive stable main"
    echo "deb [trusted=yes] file:$work/never-updated stable main"
} >sources.list
options="-o Dir::Etc::sourcelist=$work/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::Lists=$work/lists
    -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Sandbox::User=root -o Debug::NoLocking=1"

# shellcheck disable=SC2086,SC2016 # words; $(SITE) is apt's own
sites() { tree/usr/bin/apt-get $options indextargets --format '$(SITE)' | sort -u; }
tree/usr/bin/apt-get --version | head -n 1
before=$(sites)
echo "without lists: '$before'"
# shellcheck disable=SC2086
tree/usr/bin/apt-get -q $options update >/dev/null 2>&1 || true # the second source has no Release file
after=$(sites)
echo "after an update of one: '$after'"
# shellcheck disable=SC2086
uris=$(tree/usr/bin/apt-get $options --print-uris update | sed -n "s,^'\(.*\)/dists/.*,\1,p" | sort -u | wc -l)
echo "print-uris names $uris"
if [ -z "$before" ] && [ "$after" = "file:$work/archive" ] && [ "$uris" = 2 ]; then
    echo "as described"
else
    echo "this has changed" >&2
    exit 1
fi
