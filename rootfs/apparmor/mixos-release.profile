# Whether a release is to be trusted: reads what strangers have written, and keeps what was trusted before.
include <include/variables>

profile mixos-release /usr/libexec/mixos-release {
  include <include/program>
  include <include/python>

  /usr/libexec/mixos-release r,
  /etc/{passwd,group} r,
  /usr/lib/mixos/update/* r,
  /{var/lib,data}/mixos/update/trust/{,**} rwk,
  /{var/lib,data}/mixos/update/key r,
  capability dac_read_search,
  capability setgid,
  capability setpcap,
  capability setuid,
}
