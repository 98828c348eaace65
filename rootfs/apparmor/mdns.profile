# The mDNS responder: Python, and packets from anyone in the neighbourhood.
include <include/variables>

profile mdns /usr/libexec/mixos-mdns {
  include <include/program>
  include <include/python>

  /usr/libexec/mixos-mdns r,
  /etc/{passwd,group} r,
  /run/mixos/mdns.json r,
  /run/mixos-mdns/ rw,
  /run/mixos-mdns/** rwk,
  @{PROC}/@{pid}/net/** r,
  /sys/class/net/ r,
  /sys/devices/**/net/** r,

  network inet dgram,
  network inet6 dgram,
  network netlink raw,
}
