# The process that makes the windows of a release (daemon/slots/worker.py): it unpacks what strangers have sent. Of the
# disks it has the partitions that it was given; it could open none, which are root's.
include <include/variables>

profile update-windows {
  include <include/program>
  include <include/python>

  /dev/{vd[a-z]*[0-9],sd[a-z]*[0-9],nvme[0-9]*p[0-9]*,mmcblk[0-9]*p[0-9]*} rw,
  @{PROC}/@{pid}/attr/apparmor/current r,
}
