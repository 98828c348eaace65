# shellcheck shell=sh
# The data were left by some release. If that is not the one that runs: migrations and new defaults, or what this one had
# before it was left (docs/updates.md, "Data"). Before anything reads settings.

# release_key: the root hash, which no two releases share, in $key.
release_key() {
    read -r key </proc/cmdline
    case $key in *' sha256 '*) key=${key#* sha256 } && key=${key%% *} ;; *) key=$MIXOS_VERSION ;; esac
}

# handed_over: whether the data are this release's already, those included that a restored backup brought.
handed_over() {
    first_line "$STATE/ledger" && [ "$line" = "1 $key" ] || return 1
    for last in /usr/lib/mixos/python/daemon/migrations/m[0-9]*.py; do :; done
    last=${last##*/m} last=${last%%_*}
    first_line /var/lib/mixos/level || line=
    case $last in [0-9]*) [ "$line" = "$last" ] ;; *) [ -z "$line" ] ;; esac
}

release_key
if [ -n "$DATA" ] && ! handed_over; then
    # The image's own /etc: what is mounted over it is not mounted there.
    mkdir -p "$RUN/image"
    if mount -o bind / "$RUN/image"; then
        /usr/libexec/mixos-handover "$STATE" "$key" "$MIXOS_VERSION" "$RUN/image" >/dev/console 2>&1
        umount "$RUN/image"
    else
        say "the defaults of this version cannot be seen"
    fi
fi
