# shellcheck shell=sh
# Kernel file systems. The kernel has mounted /dev itself (DEVTMPFS_MOUNT, _SAFE: nosuid, noexec); fstab has the rest.
[ -c /dev/null ] || mount -t devtmpfs -o nosuid,noexec,mode=0755 devtmpfs /dev
mkdir -p /dev/pts /dev/shm
# What programs expect beside devtmpfs (/dev/stdin is what many read for "-").
ln -s /proc/self/fd /dev/fd
for pair in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${pair%:*}" "/dev/${pair#*:}"; done
mount -a || echo "mixos: not all of fstab could be mounted" >/dev/console
# What boot and the daemon keep has room of its own: a unit that fills its folder in /run must not keep others from starting.
mkdir -p "$RUN"
mount -t tmpfs -o nosuid,nodev,noexec,mode=0755,size=10% tmpfs "$RUN" || echo "mixos: $RUN has no room of its own" >/dev/console
mkdir -p "$RUN/net" /run/lock /run/sshd
# Variables of the firmware are read only: nothing here writes them, and a wrong one can keep a machine from starting.
for pair in securityfs:/sys/kernel/security pstore:/sys/fs/pstore efivarfs,ro:/sys/firmware/efi/efivars; do
    kind=${pair%%:*}
    if [ -d "${pair#*:}" ]; then
        mount -t "${kind%,ro}" -o "nosuid,nodev,noexec${kind#"${kind%,ro}"}" "${kind%,ro}" "${pair#*:}" ||
            note "${kind%,ro} is not available"
    fi
done
