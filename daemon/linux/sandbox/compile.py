"""`Policy` → the bytes that the launcher reads. It parses nothing that people write, so everything is decided here.

The format is described in daemon/native/sandbox/format.h, whose numbers are repeated here. Same policy, same bytes.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING

from common.errors import RefusedError
from daemon.linux.sandbox import seccomp
from daemon.linux.sandbox.policy import DYNAMIC, PROCS, Access, Policy

if TYPE_CHECKING:
    from pathlib import Path

MAGIC, VERSION = b"MIXOSBX\0", 1
MAX_BYTES, MAX_RECORDS, MAX_TEXT = 256 << 10, 512, 1024
UID_LOCKS = "/run/mixos/uids"
SAME_GID = 0xFFFFFFFF
ACCOUNT_NAME = "sandbox"  # of a dynamic account, inside
OPTIONAL, AS_USER = 1, 2
FOLDER, MASK = 1, 2


class Tag(IntEnum):
    """Records: scalars, lists, things that are there at most once."""

    UID_FIRST, UID_LAST, GID, NETWORK, PROXY_PORT, PROC, TERMINAL, WRITABLE_EXEC = range(8)
    CAPABILITIES, WALL_MS, MEMORY, PIDS, SHM, REQUIRE, UMASK = range(8, 15)
    READ_ONLY, READ_WRITE, TMPFS, DEVICE, PROTECT, ENV_PASS, ENV_SET, RLIMIT, GROUP = range(64, 73)
    HOSTNAME, DIRECTORY, UID_LOCKS, PROXY_SOCKET, FILTER, BRIDGE_FILTER, ACCOUNT = range(96, 103)


NETWORKS = ("none", "host", "proxy")
# What /proc says about the whole machine and no program needs; proc = "processes" has none of it.
PROC_HIDDEN = (
    "acpi/", "bus/", "cmdline", "config.gz", "driver/", "fs/", "interrupts", "iomem", "ioports", "irq/", "kallsyms",
    "kcore", "key-users", "keys", "kmsg", "latency_stats", "locks", "modules", "sched_debug", "scsi/", "slabinfo",
    "sysrq-trigger", "timer_list", "timer_stats", "vmallocinfo",
)  # fmt: skip
REQUIREMENTS = ("landlock", "memory", "pids", "account")
# Major and minor of what /dev has under these names (Documentation/admin-guide/devices.txt).
DEVICES = {"/dev/null": (1, 3), "/dev/zero": (1, 5), "/dev/full": (1, 7), "/dev/random": (1, 8), "/dev/urandom": (1, 9)}
# resource numbers, the same on both architectures (asm-generic/resource.h)
RLIMIT_FSIZE, RLIMIT_CORE, RLIMIT_NOFILE = 1, 4, 7
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)  # linux/capability.h, from 0
# These undo the sandbox, so no policy may keep them.
UNSAFE = (
    "DAC_READ_SEARCH SETPCAP SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_ADMIN SYS_BOOT MKNOD SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG PERFMON BPF CHECKPOINT_RESTORE SETUID SETGID DAC_OVERRIDE FOWNER CHOWN"
)


def compile_policy(policy: Policy, *, architecture: str | None = None, uid_locks: str | Path = UID_LOCKS) -> bytes:
    """The compiled policy for this machine type, or another one.

    uid_locks: folder in which launchers agree on dynamic accounts. Raises RefusedError `policy-account` (user "caller"
    was not resolved by `Policy.for_account`), `policy-capability`, `policy-proxy` or `policy-size`.
    """
    machine = architecture or os.uname().machine
    records = [*_scalars(policy), *_paths(policy), *_environment(policy), *_rlimits(policy)]
    records += [_number(Tag.GROUP, gid) for gid in policy.groups]
    records += [_text(Tag.HOSTNAME, policy.hostname), _text(Tag.DIRECTORY, policy.directory)]
    records += [_text(Tag.UID_LOCKS, os.fspath(uid_locks))]
    records += [_record(Tag.FILTER, seccomp.program(machine, policy.seccomp, _families(policy)))]
    if policy.network == "proxy":
        if policy.proxy_socket is None:
            raise RefusedError('network = "proxy", but no proxy serves this sandbox', reason="policy-proxy")
        records += [_text(Tag.PROXY_SOCKET, policy.proxy_socket)]
        records += [_record(Tag.BRIDGE_FILTER, seccomp.bridge_program(machine))]
    body = b"".join(records)
    size = 16 + len(body)
    if size > MAX_BYTES or len(records) - 15 > MAX_RECORDS:
        raise RefusedError("the policy lists more than a launcher takes", reason="policy-size")
    return MAGIC + struct.pack("<II", VERSION, size) + body


def capability_mask(policy: Policy) -> int:
    """The capabilities that the program keeps, as bits. Raises RefusedError `policy-capability`."""
    known = CAPABILITIES.split()
    mask = 0
    for name in policy.capabilities:
        short = name.removeprefix("CAP_")
        if short not in known or short in UNSAFE.split():
            why = "would undo the sandbox" if short in known else "does not exist"
            raise RefusedError(f"capability {name} {why}", reason="policy-capability")
        mask |= 1 << known.index(short)
    return mask


def _families(policy: Policy) -> frozenset[str]:
    """With a proxy, programs must be able to reach loopback."""
    return frozenset(policy.sockets) | ({"inet"} if policy.network == "proxy" else set())


def _scalars(policy: Policy) -> Iterator[bytes]:
    if policy.user == "caller":
        raise RefusedError("it is not known for whom this sandbox runs", reason="policy-account")
    first, last = DYNAMIC if policy.user == "dynamic" else (policy.user, policy.user)
    limits, proxy = policy.limits, policy.network == "proxy"
    values = {
        Tag.UID_FIRST: first,
        Tag.UID_LAST: last,
        Tag.GID: SAME_GID if policy.group is None or policy.user == "dynamic" else policy.group,
        Tag.NETWORK: NETWORKS.index(policy.network),
        Tag.PROXY_PORT: policy.proxy_port if proxy else 0,
        Tag.PROC: PROCS.index(policy.proc),
        Tag.TERMINAL: int(policy.terminal),
        Tag.WRITABLE_EXEC: int(policy.execute_writable),
        Tag.CAPABILITIES: capability_mask(policy),
        Tag.WALL_MS: int((limits.wall or 0) * 1000),
        Tag.MEMORY: limits.memory or 0,
        Tag.PIDS: limits.pids or 0,
        Tag.SHM: policy.shared_memory,
        Tag.REQUIRE: sum(1 << REQUIREMENTS.index(one) for one in set(policy.require)),
        Tag.UMASK: policy.umask,
    }
    yield from (_number(tag, value) for tag, value in values.items())


def _paths(policy: Policy) -> Iterator[bytes]:
    """Outer paths before inner ones: what is mounted later covers what is below it."""
    tags = {Access.READ: Tag.READ_ONLY, Access.WRITE: Tag.READ_WRITE, Access.OWN: Tag.TMPFS}
    optional = {path[1:] for path in (*policy.read_only, *policy.asked_read_only) if path.startswith("?")}
    asked = {path.removeprefix("?") for path in (*policy.asked_read_only, *policy.asked_read_write)}
    for path, access in sorted(policy.entries(), key=lambda entry: entry[0].split("/")):
        flags = OPTIONAL * (path in optional) | AS_USER * (path in asked)
        yield _text(tags[access], path, flags, policy.scratch.get(path, 0))
    for path in sorted(policy.devices):
        yield _text(Tag.DEVICE, path, value=os.makedev(*DEVICES[path]) if path in DEVICES else 0)
    hidden = [*policy.hide, *(f"/proc/{name}" for name in PROC_HIDDEN if policy.proc == "full")]
    masked = {path.removesuffix("/") for path in hidden}
    guarded = {path.removesuffix("/"): path.endswith("/") for path in (*policy.protect, *hidden)}
    for path, folder in sorted(guarded.items(), key=lambda entry: entry[0].split("/")):
        yield _text(Tag.PROTECT, path, FOLDER * folder | MASK * (path in masked))


def _environment(policy: Policy) -> Iterator[bytes]:
    """What is set, then what passes from outside, which is stronger than the two values that everybody gets."""
    given = dict(policy.environment)
    if policy.user == "dynamic":
        given = {"HOME": "/", "USER": ACCOUNT_NAME, "LOGNAME": ACCOUNT_NAME, **given}
        home = given["HOME"]
        yield _text(Tag.ACCOUNT, home if re.fullmatch("/[^:\n]*", home) else "/")  # a field of passwd(5)
    if policy.network == "proxy":
        url = f"http://127.0.0.1:{policy.proxy_port}"
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        given |= dict.fromkeys(names, url) | {
            "no_proxy": "127.0.0.1,::1,localhost",
            "NO_PROXY": "127.0.0.1,::1,localhost",
        }
    every = {"PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "LC_ALL": "C.UTF-8", **given}
    yield from (_text(Tag.ENV_SET, f"{name}={value}") for name, value in sorted(every.items()))
    yield from (_text(Tag.ENV_PASS, name) for name in sorted(set(policy.pass_environment) - set(given)))


def _rlimits(policy: Policy) -> Iterator[bytes]:
    """A core limit of 1 also keeps a core_pattern program from being started (fs/coredump.c); 0 does not."""
    limits = {RLIMIT_CORE: 1, RLIMIT_FSIZE: policy.limits.file_size, RLIMIT_NOFILE: policy.limits.open_files}
    for resource, value in limits.items():
        if value is not None:
            yield _record(Tag.RLIMIT, flags=resource, value=value)


def _record(tag: Tag, data: bytes = b"", flags: int = 0, value: int = 0) -> bytes:
    return struct.pack("<IIQII", tag, flags, value, len(data), 0) + data + bytes(-len(data) % 8)


def _number(tag: Tag, value: int) -> bytes:
    return _record(tag, value=value)


def _text(tag: Tag, text: str, flags: int = 0, value: int = 0) -> bytes:
    data = os.fsencode(text) + b"\0"
    if len(data) > MAX_TEXT:
        raise RefusedError(f"longer than {MAX_TEXT - 1} bytes: {text[:80]}…", reason="policy-size")
    return _record(tag, data, flags, value)
