# The system log. It hears everybody and writes one family of files.
include <include/variables>

profile syslogd /usr/lib/mixos/init/syslog {
  include <include/program>
  include <include/shell>

  /usr/lib/mixos/init/syslog r,
  /etc/syslog.conf r,
  /etc/{passwd,group} r,
  /dev/log rw,
  /var/log/ r,
  /var/log/messages* rwk,
  /run/syslogd.pid rw,
}
