# The only program that writes to disks while the system runs: the counters of the loader's entries, the slot that does
# not run, and in the partition table that the data are to be erased. What unpacks a release has a profile of its own.
include <include/variables>

profile mixos-slots /usr/libexec/mixos-slots {
  include <include/program>
  include <include/python>

  /usr/libexec/mixos-slots r,
  /etc/{passwd,group} r,
  /run/mixos/{disk,slot} r,
  /dev/{vd[a-z]*,sd[a-z]*,nvme[0-9]*,mmcblk[0-9]*} rwk,
  /sys/block/ r,
  /sys/class/block/ r,
  /sys/devices/**/block/** r,
  /sys/firmware/efi/efivars/* r,
  /sys/module/apparmor/parameters/enabled r,

  change_profile -> update-windows,
  @{PROC}/@{pid}/attr/apparmor/current rw,
  signal send peer=update-windows,
  capability kill,
  capability setgid,
  capability setpcap,
  capability setuid,
}
