# shellcheck shell=sh
# Kernel settings, without a process. "key = value", '#' starts a comment; later files win.
sysctl_missing='' sysctl_refused=''
for file in /usr/lib/sysctl.d/*.conf /etc/sysctl.d/*.conf; do
    [ -r "$file" ] || continue
    while read -r key equals value; do
        case $key in '' | '#'*) continue ;; esac
        [ "$equals" = '=' ] || { say "$file: '$key' has no value" && continue; }
        path=/proc/sys
        rest=$key.
        while [ -n "$rest" ]; do
            path=$path/${rest%%.*}
            rest=${rest#*.}
        done
        if [ ! -e "$path" ]; then
            sysctl_missing="$sysctl_missing $key"
        elif ! echo "$value" 2>/dev/null >"$path"; then
            sysctl_refused="$sysctl_refused $key"
        fi
    done <"$file"
done
[ -z "$sysctl_missing" ] || note "settings this kernel does not have:$sysctl_missing"
[ -z "$sysctl_refused" ] || say "settings this kernel refused:$sysctl_refused"
printf 'missing%s\nrefused%s\n' "$sysctl_missing" "$sysctl_refused" >"$RUN/sysctl"
