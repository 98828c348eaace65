# The packet filter's tool. It may read rules from wherever an administrator keeps them, and changes nothing but rules.
include <include/variables>

profile nft /usr/sbin/nft {
  include <include/program>
  include <include/names>

  /usr/sbin/nft mr,
  /{etc,usr,run,tmp,root,home}/{,**} r,
  /var/{home,tmp}/{,**} r,
  # What early boot loads. The rest of the daemon's state (keys, history) is none of its business.
  /var/lib/mixos/firewall.json r,
  deny /etc/shadow{,-} r,
  deny /etc/ssh/ssh_host_*_key r,
  deny /etc/mixos/*.secret.toml r,
  # The upper layers of the overlays have the same files again: /data is not in the list above, and without it:
  deny /run/**/volatile/** r,
  @{PROC}/@{pid}/** r,
  @{PROC}/sys/net/** r,

  capability net_admin,
  network netlink raw,
}
