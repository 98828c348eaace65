# shellcheck shell=sh
# The device's own kernel settings, which lie in the layer over /etc.
refused=$sysctl_refused
settings /etc/sysctl.d/*.conf
[ "$sysctl_refused" = "$refused" ] || say "settings of /etc/sysctl.d that this kernel refused:${sysctl_refused#"$refused"}"
