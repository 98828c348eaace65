# The only program that writes to disks while the system runs: it counts the starts of the loader's entries,
# and says in the partition table that the data are to be erased.
include <include/variables>

profile mixos-slots /usr/libexec/mixos-slots {
  include <include/program>
  include <include/python>

  /usr/libexec/mixos-slots r,
  /run/mixos/disk r,
  /dev/{vd[a-z]*,sd[a-z]*,nvme[0-9]*,mmcblk[0-9]*} rwk,
  /sys/class/block/ r,
  /sys/devices/**/block/** r,
}
