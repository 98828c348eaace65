"""The system call filter: what a sandboxed program may not ask of the kernel, as a classic BPF program.

Everything is allowed but a reviewed list, and whatever is newer than the review. Why not the reverse: an allow list
breaks programs with each C library release, and then gets switched off. What is refused: what changes the system or the
sandbox's walls, what looks into other processes, what reaches the kernel through large and young code (io_uring, BPF,
perf), sockets of families that nobody asked for, and set-user-ID bits, which would outlive the sandbox.

The program (seccomp(2), Documentation/userspace-api/seccomp_filter.rst; struct seccomp_data in linux/seccomp.h): check
the architecture, refuse x32, find the number's interval in a binary tree, compare arguments there. The kernel remembers
for which numbers the answer is always "allow" and then runs no filter. Arguments are 64 bits wide, but the kernel uses
the low 32 of all that are compared here, so only these are: a filter that compared all 64 could be passed by setting a
bit above (as happened to TIOCSTI rules).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

from daemon.linux.sandbox.syscalls import REVIEWED, numbers

Level = Literal["standard", "strict"]
Family = Literal["unix", "inet", "inet6", "netlink-route"]

ALLOW = 0x7FFF0000
KILL = 0x80000000  # the whole process, SIGSYS; and a line in the kernel's log
ERRNO = 0x00050000
EPERM, ENOSYS, EAFNOSUPPORT = ERRNO | 1, ERRNO | 38, ERRNO | 97

AUDIT_ARCH: Mapping[str, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
X32 = 0x40000000  # bit of x32 numbers: a second table with bugs of its own


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Nothing honest tries these without privilege: end it, and leave a trace.
KILLED = _names("""
    create_module delete_module finit_module init_module get_kernel_syms query_module ioperm iopl
    kexec_file_load kexec_load
""")

# "This kernel does not have it", for which programs have an answer. clone3 and openat2 take their flags in memory,
# where no filter can look; both have an older form that can be checked.
ABSENT = _names("""
    clone3 openat2 io_uring_enter io_uring_register io_uring_setup userfaultfd lookup_dcookie remap_file_pages
    _sysctl afs_syscall epoll_ctl_old epoll_wait_old getpmsg putpmsg nfsservctl security sysfs tuxcall uselib ustat
    vserver modify_ldt memfd_secret
""")

FORBIDDEN = _names("""
    mount umount2 pivot_root chroot mount_setattr open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick
    statmount listmount listns setns sethostname setdomainname
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd
    bpf perf_event_open fanotify_init fanotify_mark open_by_handle_at lsm_set_self_attr
    add_key keyctl request_key
    acct quotactl quotactl_fd file_setattr swapon swapoff reboot syslog vhangup
    settimeofday clock_settime clock_adjtime adjtimex
    mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node
""")

# Also refused at level "strict": anonymous executables, System V and POSIX queues, other processes' scheduling, pinned
# memory.
STRICT = _names("""
    memfd_create execveat personality name_to_handle_at pidfd_open pidfd_send_signal
    shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
    mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
    sched_setattr sched_setparam sched_setscheduler sched_setaffinity setpriority ioprio_set
    mlock mlock2 mlockall munlockall seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
""")

NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET (linux/sched.h)
NEW_TIME = 0x80  # CLONE_NEWTIME; part of the exit signal in clone(2), which cannot ask for it
SET_ID = 0o6000  # S_ISUID, S_ISGID
CREATES = 0x400040  # O_CREAT, __O_TMPFILE: else open(2) has no mode
FILE_TYPE, BLOCK, CHARACTER = 0o170000, 0o060000, 0o020000
WRITE, EXECUTE = 2, 4  # PROT_*
SHM_EXEC = 0o100000
TERMINAL_REQUESTS = (0x5412, 0x541C, 0x541D, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD (asm-generic/ioctls.h)
# FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS (linux/fs.h): a file's owner could take it out of its quota
FILE_REQUESTS = (0x401C5820, 0x40086602, 0x40046602)
DOMAINS: Mapping[str, int] = {"unix": 1, "inet": 2, "inet6": 10, "netlink-route": 16}
# Protocols by family: the default, TCP, UDP, ping sockets; for netlink NETLINK_ROUTE.
PROTOCOLS: Mapping[str, tuple[int, ...]] = {"inet": (0, 6, 17, 1), "inet6": (0, 6, 17, 58), "netlink-route": (0,)}


class Test(NamedTuple):
    """Holds when the low half of argument `argument` (from 0) under `mask` equals `value`; else when it does not."""

    argument: int
    mask: int
    value: int
    equal: bool = True


class Case(NamedTuple):
    """All tests hold: `action`."""

    tests: tuple[Test, ...]
    action: int


class Rule(NamedTuple):
    """The first case that fits, else `otherwise`."""

    cases: tuple[Case, ...]
    otherwise: int


Decision = Rule | int


def decisions(level: Level, families: Collection[str]) -> dict[str, Decision]:
    """What happens to each system call that is not simply allowed, by name."""
    found: dict[str, Decision] = dict.fromkeys(FORBIDDEN, EPERM)
    found |= dict.fromkeys(ABSENT, ENOSYS)
    found |= dict.fromkeys(KILLED, KILL)
    found["ioctl"] = Rule(tuple(_when(Test(1, 0xFFFFFFFF, one)) for one in (*TERMINAL_REQUESTS, *FILE_REQUESTS)), ALLOW)
    found["clone"] = _refuse(Test(0, NEW_NAMESPACES, 0, equal=False))
    found["unshare"] = _refuse(Test(0, NEW_NAMESPACES | NEW_TIME, 0, equal=False))
    found["personality"] = Rule(
        (Case((Test(0, 0xFFFFFFFF, 0),), ALLOW), Case((Test(0, 0xFFFFFFFF, 0xFFFFFFFF),), ALLOW)), EPERM
    )
    for name, argument in (
        ("chmod", 1),
        ("fchmod", 1),
        ("fchmodat", 2),
        ("fchmodat2", 2),
        ("mkdir", 1),
        ("mkdirat", 2),
    ):
        found[name] = _refuse(_set_id(argument))
    for name, flags in (("open", 1), ("openat", 2)):
        found[name] = _refuse(Test(flags, CREATES, 0, equal=False), _set_id(flags + 1))
    found["creat"] = _refuse(_set_id(1))
    for name, mode in (("mknod", 1), ("mknodat", 2)):
        devices = (_when(Test(mode, FILE_TYPE, kind)) for kind in (BLOCK, CHARACTER))
        found[name] = Rule((*devices, _when(_set_id(mode))), ALLOW)
    found["socket"] = Rule(tuple(_families(families)), EAFNOSUPPORT)
    found["socketpair"] = Rule((Case((Test(0, 0xFFFFFFFF, DOMAINS["unix"]),), ALLOW),), EAFNOSUPPORT)
    if level == "strict":
        found |= dict.fromkeys(STRICT, EPERM)
        found["mmap"] = _refuse(Test(2, WRITE | EXECUTE, WRITE | EXECUTE))
        found["mprotect"] = found["pkey_mprotect"] = _refuse(Test(2, EXECUTE, EXECUTE))
    return found


def _when(test: Test) -> Case:
    return Case((test,), EPERM)


def _refuse(*tests: Test) -> Rule:
    return Rule((Case(tests, EPERM),), ALLOW)


def _set_id(argument: int) -> Test:
    return Test(argument, SET_ID, 0, equal=False)


def _families(families: Collection[str]) -> Iterator[Case]:
    for family in sorted(families):
        domain = Test(0, 0xFFFFFFFF, DOMAINS[family])
        if family not in PROTOCOLS:
            yield Case((domain,), ALLOW)
        for protocol in PROTOCOLS.get(family, ()):
            yield Case((domain, Test(2, 0xFFFFFFFF, protocol)), ALLOW)


# What the bridge of network "proxy" needs (daemon/native/sandbox/bridge.c): it is allowed nothing else.
BRIDGE = _names(
    "poll ppoll accept4 connect recvfrom sendto close shutdown exit exit_group rt_sigreturn restart_syscall"
)


@cache
def program(architecture: str, level: Level, families: frozenset[str]) -> bytes:
    """The filter as an array of struct sock_filter (linux/filter.h), native for a little-endian machine."""
    table = numbers(architecture)
    found = {table[name]: decision for name, decision in decisions(level, families).items() if name in table}
    return _assemble(architecture, found, ALLOW)


@cache
def bridge_program(architecture: str) -> bytes:
    """The filter of the bridge process: a short allow list, and the end of the process for anything else."""
    table = numbers(architecture)
    found: dict[int, Decision] = {table[name]: ALLOW for name in BRIDGE if name in table}
    found[table["socket"]] = Rule((Case((Test(0, 0xFFFFFFFF, DOMAINS["unix"]),), ALLOW),), KILL)
    return _assemble(architecture, found, KILL)


# -- assembler: linux/bpf_common.h; an instruction is (code, jump if true, jump if false, constant) ------------------

_LOAD, _AND, _JUMP, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_Code = list[tuple[int, int, int, int]]


def _assemble(architecture: str, found: Mapping[int, Decision], default: int) -> bytes:
    code: _Code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, AUDIT_ARCH[architecture]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if architecture == "x86_64":
        code += [(_AT_LEAST, 0, 1, X32), (_RETURN, 0, 0, KILL)]
    code += _tree(_intervals(architecture, found, default))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _intervals(architecture: str, found: Mapping[int, Decision], default: int) -> list[tuple[int, Decision]]:
    """(first number, decision) up to the next one's first, neighbours of one mind joined. Numbers in the gaps of the
    table are unknown, too: new calls have been put there."""
    unknown = default if default == KILL else ENOSYS
    reviewed = dict.fromkeys(numbers(architecture).values(), default)
    every = [(number, found.get(number, reviewed.get(number, unknown))) for number in range(REVIEWED + 2)]
    return [pair for index, pair in enumerate(every) if index == 0 or pair[1] != every[index - 1][1]]


def _tree(intervals: Sequence[tuple[int, Decision]]) -> _Code:
    if len(intervals) == 1:
        return _body(intervals[0][1])
    middle = len(intervals) // 2
    below, above = _tree(intervals[:middle]), _tree(intervals[middle:])
    if len(below) < 256:
        return [(_AT_LEAST, len(below), 0, intervals[middle][0]), *below, *above]
    return [(_AT_LEAST, 0, 1, intervals[middle][0]), (_JUMP, 0, 0, len(below)), *below, *above]


def _body(decision: Decision) -> _Code:
    if isinstance(decision, int):
        return [(_RETURN, 0, 0, decision)]
    return [*(step for case in decision.cases for step in _case(case)), (_RETURN, 0, 0, decision.otherwise)]


def _case(case: Case) -> _Code:
    """Each test that fails jumps behind the case's return."""
    code: _Code = [(_RETURN, 0, 0, case.action)]
    for test in reversed(case.tests):
        away = len(code)
        jump = (_EQUAL, 0, away, test.value) if test.equal else (_EQUAL, away, 0, test.value)
        mask: _Code = [] if test.mask == 0xFFFFFFFF else [(_AND, 0, 0, test.mask)]
        code = [(_LOAD, 0, 0, _ARGUMENTS + 8 * test.argument), *mask, jump, *code]
    return code
