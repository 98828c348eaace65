# The daemon. It administers the device as root, so this is a long rein, not a cell: it may read nearly everything and
# change configuration, state and the network. What it has no business with is out of reach even when its code is led
# astray: the kernel's memory and code, the policy of this very file, the disks behind the file systems, what is in /usr.
#
# What it starts stays in this profile (ix), except:
#   the parent of each service, and the sandbox launcher: each service has its own confinement (its unit's sandbox, its
#   own profile); inheriting this one would let it do what the daemon may;
#   programs with a profile of their own.
include <include/variables>

profile mixosd /usr/bin/mixosd flags=(attach_disconnected) {
  include <include/python>

  / r,
  /** rmix,
  /usr/libexec/mixos/{shim,sandbox} Ux,
  /usr/libexec/mixos-{fetch,firmware,floor,release,slots} Px,
  /usr/sbin/nft Px,
  /usr/bin/dbus-daemon Px,

  # Processes of its parts, which parse what strangers send: the fork server enters their profiles.
  include <include/entered>
  @{PROC}/@{pid}/attr/apparmor/current w,

  /{etc,var,run,data,tmp}/** wkl,
  /dev/{null,zero,full,random,urandom,console,kmsg,log,tty,ptmx,tty[0-9]*,ttyS[0-9]*} wk,
  /dev/{pts,shm}/** wk,
  /dev/net/tun w,
  # Asking device-mapper about the verified root: its ioctl wants a descriptor for writing.
  /dev/mapper/control w,
  # Services live below it, and their limits are set there.
  /sys/fs/cgroup/** wk,
  /sys/devices/**/net/** w,
  # What a kernel that died has left is removed there, once it was read.
  /sys/fs/pstore/* w,
  @{PROC}/@{pid}/{oom_score_adj,comm,timerslack_ns,coredump_filter} w,
  @{PROC}/sys/net/** w,
  @{PROC}/sys/kernel/{hostname,domainname} w,

  # Reading is allowed above: not these. Nobody needs them, and some answer with the kernel's secrets.
  deny /dev/{mem,kmem,port} rwmx,
  deny @{PROC}/{kcore,kallsyms,kpagecount,kpageflags,kpagecgroup} rwmx,
  deny /sys/kernel/{debug,tracing}/** rw,
  deny /sys/kernel/security/apparmor/{.load,.replace,.remove} rw,
  deny /{etc,data/overlay/etc/upper}/shadow{,-} rwkmx,

  capability audit_write,
  capability chown,
  capability dac_override,
  capability dac_read_search,
  capability fowner,
  capability fsetid,
  capability ipc_lock,
  capability kill,
  capability lease,
  capability net_admin,
  capability net_bind_service,
  capability net_broadcast,
  capability net_raw,
  capability setfcap,
  capability setgid,
  capability setpcap,
  capability setuid,
  # setns(2) and unshare(2) for network namespaces, quotas, control groups
  capability sys_admin,
  capability sys_boot,
  capability sys_chroot,
  capability sys_nice,
  capability sys_ptrace,
  # ATA PASS-THROUGH by SG_IO: the health of disks. What else it opens, lockdown and the rules above close again.
  capability sys_rawio,
  capability sys_resource,
  capability sys_time,
  capability syslog,
  # Not: sys_module, mknod, mac_admin, mac_override, bpf, perfmon, audit_control.

  # By name: "all families" is a different list in each version of the parser.
  network unix,
  network inet,
  network inet6,
  network netlink,
  network packet,
  signal,
  ptrace (read, readby),
  # Mounts are the sandbox launcher's and early boot's.
}
