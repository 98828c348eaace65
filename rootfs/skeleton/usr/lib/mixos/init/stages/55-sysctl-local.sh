# shellcheck shell=sh
# The device's own kernel settings, which lie in the layer over /etc. They may weaken those of the image: this is told.
refused=$sysctl_refused
settings /etc/sysctl.d/*.conf
[ "$sysctl_refused" = "$refused" ] || say "settings of /etc/sysctl.d that this kernel refused:${sysctl_refused#"$refused"}"
[ -z "$sysctl_again" ] || say "settings of the image that /etc/sysctl.d sets otherwise:$sysctl_again"
