# The system bus: parses messages of every account.
include <include/variables>

profile dbus-daemon /usr/bin/dbus-daemon {
  include <include/program>

  /usr/bin/dbus-daemon mr,
  /usr/share/dbus-1/{,**} r,
  /etc/dbus-1/{,**} r,
  /etc/{passwd,group,nsswitch.conf,machine-id} r,
  /var/lib/dbus/machine-id r,
  /run/dbus/ rw,
  /run/dbus/** rwk,
  /dev/log rw,
  # Whom it talks to, for the log and for limits.
  @{PROC}/@{pid}/{cmdline,status,mounts,fd/} r,
  @{PROC}/@{pid}/oom_score_adj rw,

  capability setuid,
  capability setgid,
  capability setpcap,
  capability sys_resource,
}
