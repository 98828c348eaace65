# shellcheck shell=sh
# Kernel file systems. The kernel has mounted /dev itself (DEVTMPFS_MOUNT, _SAFE: nosuid, noexec); fstab has the rest.
[ -c /dev/null ] || mount -t devtmpfs -o nosuid,noexec,mode=0755 devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -a || echo "mixos: not all of fstab could be mounted" >/dev/console
mkdir -p "$RUN/net" /run/lock /run/sshd
for pair in securityfs:/sys/kernel/security pstore:/sys/fs/pstore efivarfs:/sys/firmware/efi/efivars; do
    if [ -d "${pair#*:}" ]; then
        mount -t "${pair%%:*}" -o nosuid,nodev,noexec "${pair%%:*}" "${pair#*:}" || note "${pair%%:*} is not available"
    fi
done
