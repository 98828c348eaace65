# A DHCP client and the script that it calls with each lease: what comes in from the network unauthenticated.
include <include/variables>

profile udhcpc /usr/lib/mixos/init/udhcpc {
  include <include/program>
  include <include/shell>

  /usr/lib/mixos/init/udhcpc r,
  /usr/lib/mixos/init/dhcp rix,
  /usr/bin/ r,
  /usr/sbin/ r,
  /etc/iproute2/** r,
  /run/mixos/net/ r,
  /run/mixos/net/** rwk,
  /run/mixos/dns/ rw,
  /run/mixos/dns/resolv.conf* rwk,
  /run/udhcpc.*.pid rw,
  /dev/log rw,
  /sys/class/net/ r,
  /sys/devices/**/net/** r,
  /sys/devices/**/net/*/mtu w,
  @{PROC}/@{pid}/net/** r,
  @{PROC}/net/** r,
  @{PROC}/sys/net/ipv4/** r,
  @{PROC}/sys/net/ipv6/** r,

  capability net_admin,
  capability net_raw,
  capability net_bind_service,
  network inet dgram,
  network inet raw,
  network packet,
  network netlink raw,
}
