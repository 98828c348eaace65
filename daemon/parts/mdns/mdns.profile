# The mDNS responder: packets from anyone in the neighbourhood.
include <include/variables>

profile mdns {
  include <include/part>

  @{PROC}/@{pid}/net/** r,
  /sys/class/net/ r,
  /sys/devices/**/net/** r,

  network inet dgram,
  network inet6 dgram,
  network netlink raw,
}
