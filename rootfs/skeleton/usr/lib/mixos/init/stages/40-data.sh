# shellcheck shell=sh
# The boot disk, its data partition, /data. Sets DISK and STATE (where boot state is kept).
. /usr/lib/mixos/init/disk
PARTITIONS=''
find_disk || note "the disk that the root is on is not known"
STATE=$RUN/state DATA='' fitted=
if partition mixos-data-erase || partition mixos-data-overwrite; then
    # A factory reset. Until it is through, what is there is not mounted.
    DATA=/dev/$partition
    say "FACTORY RESET: everything on the data partition is erased"
    first_boot erase && fitted=yes || DATA=
elif partition mixos-data; then
    DATA=/dev/$partition
fi
if [ -n "$DATA" ]; then
    partition_is_short && first_boot prepare && fitted=yes
    mount_data || { first_boot prepare && fitted=yes && mount_data; } || DATA=
fi
if [ -n "$DATA" ]; then
    STATE=/data/mixos
    [ -d "$STATE" ] || mkdir -m 0700 "$STATE"
    if [ -n "$fitted" ] || file_system_is_short; then
        [ -n "$fitted" ] || first_boot resize
        first_line "/sys/class/block/$partition/size" && echo "$line" >"$STATE/size"
    fi
else
    say "NO DATA PARTITION: nothing that changes on this device will outlive a reboot"
    mkdir -p "$RUN/volatile" "$STATE"
    mount -t tmpfs -o nosuid,nodev,noexec,mode=0755,size=25% tmpfs "$RUN/volatile"
fi
echo "STATE=$STATE DATA=$DATA DISK=$DISK" >"$RUN/disk"
