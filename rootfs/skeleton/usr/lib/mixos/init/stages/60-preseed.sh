# shellcheck shell=sh
# The ESP, and the settings someone may have put on it. Applied once per content and image version, all or nothing.
if partition mixos-esp; then
    mount -t vfat -o ro,nosuid,nodev,noexec,umask=0077 "/dev/$partition" /boot || say "the ESP cannot be mounted"
fi
# What somebody meant to be the preseed and named otherwise. FAT knows no case: the right name may be in capitals.
for file in /boot/*; do
    case ${file##*/} in
    *[Pp][Rr][Ee][Ss][Ee][Ee][Dd]* | [Mm][Ii][Xx][Oo][Ss]*.[Tt][Oo][Mm][Ll]*)
        [ -f "$file" ] && [ "$file" -ef /boot/mixos-preseed.toml ] && continue
        name=$(printf %s "${file##*/}" | tr -c ' -~' '?')
        say "'$name' on the ESP is NOT READ: name the file mixos-preseed.toml (Windows hides a .txt at the end)"
        ;;
    esac
done
if [ -f /boot/mixos-preseed.toml ]; then
    sum=$(sha256sum /boot/mixos-preseed.toml)
    sum="${sum%% *} $MIXOS_VERSION"
    if ! first_line "$STATE/preseed.applied" || [ "$line" != "$sum" ]; then
        /usr/libexec/mixos-preseed /boot/mixos-preseed.toml "$STATE" "$sum" >/dev/console 2>&1
    fi
fi
