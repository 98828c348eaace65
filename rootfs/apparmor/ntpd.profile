# The clock. Attached to the script that starts it: the program itself is BusyBox, as is half of the system.
include <include/variables>

profile ntpd /usr/lib/mixos/init/ntp {
  include <include/program>
  include <include/shell>
  include <include/names>

  /usr/lib/mixos/init/ntp r,
  /etc/ntp.conf r,
  /run/mixos/net/ r,
  /run/mixos/net/*.ntp r,
  /run/ntpd.pid rw,

  capability sys_time,
  capability sys_nice,
}
