"""Enter the build sandbox and run one program in it: `python3 -I -S enter.py FD`, standard library only.

FD is open on the specification (JSON, see spec.py).

Order, and why:
  1. new user namespace first: it grants the capabilities that the other steps need, also to an unprivileged builder;
  2. mount, PID, IPC, UTS, network and cgroup namespaces in the same call, so that none can be forgotten; the keys of
     the builder's session, which no namespace is about, are left behind with their keyring;
  3. a tmpfs root with exactly the declared mounts, read-only through mount_setattr(2), which reaches submounts too;
  4. no further user namespace, which would give all capabilities again: the limit of ours becomes 0 while /proc can
     still be written; raising it would take a capability that step 6 takes away;
  5. pivot_root(2) and detach of the old root: no path leads back to the host;
  6. capabilities that could undo this are dropped from the bounding set and read back; no_new_privs last;
  7. a shell for people keeps their terminal, and so gets a filter of system calls: nothing in it types there.
Any step that fails ends the process with status 125 and one line on stderr: there is no weaker mode.
"""

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import sys

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 23, 24, 38
SYS_PIVOT_ROOT, SYS_KEYCTL = {"x86_64": (155, 250), "aarch64": (41, 219)}[os.uname().machine]
SYS_MOUNT_SETATTR = 442  # the same on all architectures
# seccomp(2), linux/filter.h, linux/audit.h: machine of the system calls, number of ioctl(2).
AUDIT_ARCH, SYS_IOCTL = {"x86_64": (0xC000003E, 16), "aarch64": (0xC00000B7, 29)}[os.uname().machine]
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, SECCOMP_ALLOW, SECCOMP_EPERM = 22, 2, 0x7FFF0000, 0x50001
BPF_LOAD, BPF_EQUAL, BPF_AT_LEAST, BPF_RETURN = 0x20, 0x15, 0x35, 0x06
X32_BIT = 0x40000000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
KEYCTL_JOIN_SESSION_KEYRING = 1
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = -100, 0x8000, 0x1, 0x2
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
# chown, dac_override, dac_read_search, fowner, fsetid, kill, setgid, setuid: what `make install` and `tar` use.
KEPT_CAPABILITIES = frozenset({0, 1, 2, 3, 4, 5, 6, 7})
DEVICES = ("null", "zero", "full", "random", "urandom")
REFUSED = 125

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Turn a C library failure into OSError with the step's name."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: "str | None", flags: int, data: str = "") -> None:
    """mount(2)."""
    args = (source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), data.encode())
    check(libc.mount(*args), f"mount {target}")


def read_only(target: str) -> None:
    """Make a mount and everything below it read-only and nosuid: mount_setattr(2), Linux 5.12."""
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    result = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, attributes, len(attributes))
    check(result, f"make {target} read-only")


def new_namespaces() -> None:
    """Leave the host's namespaces and become uid 0 of a user namespace that maps only the builder."""
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWCGROUP
    check(libc.unshare(ctypes.c_int(flags)), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - pathlib is not worth its import time here
            file.write(text)


def leave_keyring() -> None:
    """Begin an empty session keyring (keyctl(2)). Where the kernel has none, or does not let us, there are no keys."""
    if libc.syscall(SYS_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EPERM):
            raise OSError(number, f"leave the session keyring: {os.strerror(number)}")


def show(root: str, entry: "dict[str, object]") -> None:
    """Bind one host path into the new root."""
    host, target = str(entry["host"]), root + str(entry["inside"])
    if os.path.isdir(host):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):  # over a file of a mount that is read-only nothing is made
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    mount(host, target, None, MS_BIND | MS_REC)
    if not entry["writable"]:
        read_only(target)


def new_root(spec: "dict[str, object]") -> None:
    """Build the sandbox's file system below spec['root'] and make it the root."""
    root = str(spec["root"])
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("sandbox", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=64m")
    for name in ("proc", "dev", "dev/shm", "tmp", "etc"):
        os.mkdir(f"{root}/{name}")
    for entry in spec["mounts"]:  # type: ignore[attr-defined]
        show(root, entry)
    for name in DEVICES:  # read-only: their modes are the host's; what they are given goes to no file system
        show(root, {"host": f"/dev/{name}", "inside": f"/dev/{name}", "writable": False})
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{root}/dev/{name}")
    for path, target in spec["links"].items():  # type: ignore[attr-defined]
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    for path in ("dev/shm", "tmp"):
        mount("tmpfs", f"{root}/{path}", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    # Read-only: a builder who is root passes for the owner of /proc/sys and /proc/sysrq-trigger in here too.
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    forbid_user_namespaces(f"{root}/proc")
    read_only(f"{root}/proc")
    os.chdir(root)
    check(libc.syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")  # the new root now lies under the old: pivot_root(2)
    check(libc.umount2(b".", MNT_DETACH), "detach the old root")
    os.chdir("/")
    flags = MOUNT_ATTR_RDONLY
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", 0, attributes, len(attributes)), "make / read-only")


def loopback_up() -> None:
    """Bring up 127.0.0.1: some test programs listen there. It is the only interface of the namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))


def drop_privileges() -> None:
    """Keep file ownership capabilities only, read the result back, and forbid gaining any."""
    capability = 0
    while (present := libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0)) >= 0:
        if present and capability not in KEPT_CAPABILITIES:
            check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), f"drop capability {capability}")
            if libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) != 0:
                raise OSError(0, f"capability {capability} is still there")
        capability += 1
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def forbid_typing() -> None:
    """Refuse the two requests that put text into a terminal as if somebody typed it there (ioctl_tty(2)), and all
    system calls by tables other than this machine's own, by which they could be made too."""
    program = [  # code, how many to skip if it is so, and if not, value
        (BPF_LOAD, 0, 0, 4),  # seccomp_data.arch
        (BPF_EQUAL, 0, 7, AUDIT_ARCH),
        (BPF_LOAD, 0, 0, 0),  # .nr
        (BPF_AT_LEAST, 5, 0, X32_BIT),
        (BPF_EQUAL, 0, 3, SYS_IOCTL),
        (BPF_LOAD, 0, 0, 24),  # .args[1], its lower half
        (BPF_EQUAL, 2, 0, TIOCSTI),
        (BPF_EQUAL, 1, 0, TIOCLINUX),
        (BPF_RETURN, 0, 0, SECCOMP_ALLOW),
        (BPF_RETURN, 0, 0, SECCOMP_EPERM),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))
    head = struct.pack("@HP", len(program), ctypes.addressof(code))
    check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(head), 0, 0), "filter system calls")


def forbid_user_namespaces(proc: str) -> None:
    """Set the limit of user namespaces below ours to none (namespaces(7), /proc/sys/user), and read it back."""
    limit = f"{proc}/sys/user/max_user_namespaces"
    with open(limit, "w") as file:  # noqa: PTH123  # standard library's smallest part only
        file.write("0\n")
    with open(limit) as file:  # noqa: PTH123
        if file.read().strip() != "0":
            raise OSError(0, "user namespaces can still be made")


def close_others(keep: "set[int]") -> None:
    """Close every descriptor that was not asked for."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own descriptor is gone already


def become_init(spec: "dict[str, object]") -> int:
    """As PID 1 of the new namespace: start the program, reap orphans, return the program's exit status."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    new_root(spec)
    loopback_up()
    socket.sethostname("mixos-build")
    drop_privileges()
    close_others({0, 1, 2, *spec["fds"]})  # type: ignore[misc]
    os.umask(0o022)
    os.chdir(str(spec["cwd"]))
    child = os.fork()
    if child == 0:
        argv = spec["argv"]
        try:
            if spec["interactive"]:
                forbid_typing()
            else:
                os.setsid()
            os.execve(argv[0], argv, spec["env"])  # type: ignore[index, arg-type]
        except OSError as error:
            os.write(2, f"sandbox: {argv[0]}: {error.strerror}\n".encode())  # type: ignore[index]
            os._exit(127)
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def main() -> int:
    """Read the specification, enter, run; the exit status is the program's (128+n for a signal)."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        spec = json.loads(file.read())
    for descriptor in spec["fds"]:
        os.set_inheritable(descriptor, True)
    parent = os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return REFUSED  # the builder died before we could bind our life to its
    try:
        new_namespaces()
        leave_keyring()
        init = os.fork()
        if init == 0:
            try:
                status = become_init(spec)
            except OSError as error:
                os.write(2, f"sandbox: cannot isolate this build: {error.strerror or error}\n".encode())
                status = REFUSED
            os._exit(status if status >= 0 else 128 - status)
        return os.waitstatus_to_exitcode(os.waitpid(init, 0)[1])
    except OSError as error:
        os.write(2, f"sandbox: cannot isolate this build: {error.strerror or error}\n".encode())
        return REFUSED


if __name__ == "__main__":
    result = main()
    sys.exit(result if result >= 0 else 128 - result)
