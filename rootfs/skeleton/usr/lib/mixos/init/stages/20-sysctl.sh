# shellcheck shell=sh
# The image's kernel settings, before anything else runs.
. /usr/lib/mixos/init/sysctl
settings /usr/lib/sysctl.d/*.conf
[ -z "$sysctl_missing" ] || note "settings this kernel does not have:$sysctl_missing"
[ -z "$sysctl_refused" ] || say "settings this kernel refused:$sysctl_refused"
