# shellcheck shell=sh
# Kernel settings. "key = value", '#' starts a comment; later files win. One process reads all files: the shell's own
# `read` takes a system call per byte.
sysctl_missing='' sysctl_refused=''
lines=$(cat /usr/lib/sysctl.d/*.conf /etc/sysctl.d/*.conf 2>/dev/null)
IFS='
'
for setting in $lines; do
    case $setting in
    '#'*) continue ;;
    *' = '*) ;;
    *) say "'$setting' is not a kernel setting" && continue ;;
    esac
    key=${setting%% = *}
    path=/proc/sys
    rest=$key.
    while [ -n "$rest" ]; do
        path=$path/${rest%%.*}
        rest=${rest#*.}
    done
    if [ ! -e "$path" ]; then
        sysctl_missing="$sysctl_missing $key"
    elif ! echo "${setting#* = }" 2>/dev/null >"$path"; then
        sysctl_refused="$sysctl_refused $key"
    fi
done
unset IFS
[ -z "$sysctl_missing" ] || note "settings this kernel does not have:$sysctl_missing"
[ -z "$sysctl_refused" ] || say "settings this kernel refused:$sysctl_refused"
printf 'missing%s\nrefused%s\n' "$sysctl_missing" "$sysctl_refused" >"$RUN/sysctl"
