# shellcheck shell=sh
# The ESP, and the settings someone may have put on it. Applied once per content and image version, all or nothing.
if partition mixos-esp; then
    mount -t vfat -o ro,nosuid,nodev,noexec,umask=0077 "/dev/$partition" /boot || say "the ESP cannot be mounted"
fi
if [ -f /boot/mixos-preseed.toml ]; then
    sum=$(sha256sum /boot/mixos-preseed.toml)
    sum="${sum%% *} $MIXOS_VERSION"
    if ! first_line "$STATE/preseed.applied" || [ "$line" != "$sum" ]; then
        /usr/libexec/mixos-preseed /boot/mixos-preseed.toml "$STATE" "$sum" >/dev/console 2>&1
    fi
fi
