# The only program that writes variables of the firmware: what the image adds to Secure Boot's databases. It reads the
# boot disk, since all that starts must still start afterwards, and opens efivarfs for itself, in a mount namespace of its
# own, before it reads anything.
include <include/variables>

profile mixos-firmware /usr/libexec/mixos-firmware {
  include <include/program>
  include <include/python>

  /usr/libexec/mixos-firmware r,
  /usr/lib/mixos/secureboot/{,*} r,
  /run/mixos/{disk,slot} r,
  /dev/{vd[a-z]*,sd[a-z]*,nvme[0-9]*,mmcblk[0-9]*} rk,
  /sys/block/ r,
  /sys/class/block/ r,
  /sys/devices/**/block/** r,
  /sys/firmware/efi/efivars/* r,
  /sys/firmware/efi/efivars/{db,dbx}-d719b2cb-3d3a-4596-a3bc-dad00e67656f w,
  /sys/firmware/efi/efivars/KEK-8be4df61-93ca-11d2-aa0d-00e098032b8c w,

  mount options=(rw, remount, nosuid, nodev, noexec) -> /sys/firmware/efi/efivars/,
  # The mark that keeps variables from being changed by accident.
  capability linux_immutable,
  capability setpcap,
  # Its mount namespace.
  capability sys_admin,
}
