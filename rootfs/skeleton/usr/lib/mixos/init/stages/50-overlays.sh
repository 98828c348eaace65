# shellcheck shell=sh
# /etc and /var are writable layers over the read-only root, on the data partition or, without one, in memory.
layers=/data/overlay
[ -n "$DATA" ] || layers=$RUN/volatile
for name in etc var; do
    [ -d "$layers/$name/work" ] || mkdir -p "$layers/$name/upper" "$layers/$name/work"
    mount -t overlay -o "nosuid,nodev,noexec,lowerdir=/$name,upperdir=$layers/$name/upper,workdir=$layers/$name/work" \
        overlay "/$name" || say "/$name stays read-only"
done
