# shellcheck shell=sh
# The ESP: whether what runs is on trial, and the settings that someone may have put there, which are applied once per
# content and image version, all or nothing. It does not stay mounted: only the loader and the daemon write to it.
COUNTED=/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f

# on_trial: whether what runs was never called good, and there is something else that the loader would start instead. A
# version that is new has three starts, one that was called good four (docs/updates.md).
on_trial() {
    [ -r "$COUNTED" ] || return 1
    running=$(tr -dc 'A-Za-z0-9_.~^+\\-' <"$COUNTED") # UTF-16, behind four bytes of attributes
    running=${running##*\\}
    tries=${running##*+}
    tries=${tries%.efi}
    case $tries in
    [0-9]-[0-9]) [ $((${tries%-*} + ${tries#*-})) -eq 3 ] || return 1 ;;
    *) return 1 ;;
    esac
    for other in /boot/EFI/Linux/*.efi; do # not RESCUE.EFI, in which nothing gets well
        case ${other##*/} in "$running" | *+0-*.efi) ;; *) return 0 ;; esac
    done
    return 1
}

# trial_seconds: how long after the start of the kernel it has to get well; the boot parameter mixos.trial says otherwise.
trial_seconds() {
    read -r words </proc/cmdline
    case " $words" in
    *' mixos.trial='*) words=${words##*mixos.trial=} && echo "${words%% *}" ;;
    *) echo 600 ;;
    esac
}

if partition mixos-esp && ! mount -t vfat -o ro,nosuid,nodev,noexec,umask=0077 "/dev/$partition" /boot; then
    say "the ESP cannot be mounted"
fi
on_trial && trial_seconds >"$RUN/trial" # for the keeper, see stage 15
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
umount /boot 2>/dev/null
