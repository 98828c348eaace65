"""What `mixctl status` tells, read from the kernel and from what init left in /run/mixos.

Every reader answers None (or leaves a list empty) for what this system does not have, so that a status can always be
given; a fact is never guessed. `root` is the tree to read from: "/" on a device, a sample in tests.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

from common.lines import split_lines

ROOT = Path("/")


def text(path: Path) -> str | None:
    """A small file's content without surrounding space, or None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def release(root: Path = ROOT) -> dict[str, str]:
    """The facts of the image: lines NAME=value of /usr/lib/mixos/release."""
    lines = (text(root / "usr/lib/mixos/release") or "").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def status(root: Path = ROOT) -> dict[str, Any]:
    """The whole status; keys are stable, sizes in bytes, times in seconds."""
    facts = release(root)
    return {
        "hostname": text(root / "proc/sys/kernel/hostname"),
        "version": facts.get("MIXOS_VERSION"),
        "kernel": text(root / "proc/sys/kernel/osrelease"),
        "slot": slot(root),
        "boot_id": text(root / "proc/sys/kernel/random/boot_id"),
        "uptime": uptime(root),
        "boot_times": boot_times(root),
        "load": load(root),
        "memory": memory(root),
        "data": data(root),
        "network": network(root),
        "ssh_fingerprint": fingerprint(root),
        "preseed": preseed(root),
        "hardening": hardening(root),
    }


def slot(root: Path) -> str | None:
    """The booted slot ("a" or "b"): the GPT name of what backs the root's verity device, never an identifier."""
    for uevent in sorted((root / "sys/block").glob("dm-0/slaves/*/uevent")):
        for line in (text(uevent) or "").splitlines():
            if line.startswith("PARTNAME=mixos-root-"):
                return line.rpartition("-")[2]
    return text(root / "run/mixos/slot")  # a root without verity (development): init looked at the partition itself


def uptime(root: Path) -> float | None:
    """Seconds since the kernel started."""
    line = text(root / "proc/uptime")
    return float(line.split()[0]) if line else None


def boot_times(root: Path) -> dict[str, float]:
    """Step of the boot → seconds after the kernel's start at which it ended."""
    rows = (line.split() for line in (text(root / "run/mixos/boot-times") or "").splitlines())
    return {row[1]: float(row[0]) for row in rows if len(row) == 2}


def load(root: Path) -> list[float]:
    """Load averages of 1, 5 and 15 minutes."""
    line = text(root / "proc/loadavg")
    return [float(word) for word in line.split()[:3]] if line else []


def memory(root: Path) -> dict[str, int]:
    """Total and available memory in bytes, and the daemon's own resident set."""
    found = {}
    names = {"MemTotal:": "total", "MemAvailable:": "available"}
    for line in (text(root / "proc/meminfo") or "").splitlines():
        words = line.split()
        if words and words[0] in names:
            found[names[words[0]]] = int(words[1]) << 10
    for line in (text(root / "proc/self/status") or "").splitlines():
        if line.startswith("VmRSS:"):
            found["daemon"] = int(line.split()[1]) << 10
    return found


def data(root: Path) -> dict[str, Any]:
    """The data partition: whether it is mounted (else /etc and /var are in memory; None: this is no device), its
    device, size and free space."""
    for line in split_lines(text(root / "proc/self/mounts") or ""):
        device, point, kind = [*line.split(" ", 3), "", "", ""][:3]  # the kernel escapes blanks in names, and no others
        if point == "/data":
            space = os.statvfs(root / "data")
            return {
                "persistent": True,
                "device": device,
                "type": kind,
                "size": space.f_blocks * space.f_frsize,
                "free": space.f_bavail * space.f_frsize,
            }
    return {"persistent": False if release(root) else None}


def network(root: Path) -> list[dict[str, Any]]:
    """Interfaces with hardware behind them: name, MAC, link state, addresses."""
    six = _ipv6(root)
    result = []
    for folder in sorted((root / "sys/class/net").glob("*")):
        if not (folder / "device").exists():
            continue
        four = _ipv4(folder.name)
        row = {"name": folder.name, "mac": text(folder / "address"), "state": text(folder / "operstate")}
        result.append({**row, "addresses": ([four] if four else []) + six.get(folder.name, [])})
    return result


def _ipv4(name: str) -> str | None:
    """The first IPv4 address of an interface (netdevice(7), SIOCGIFADDR)."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        try:
            answer = fcntl.ioctl(channel, 0x8915, struct.pack("16s24x", name.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def _ipv6(root: Path) -> dict[str, list[str]]:
    """Interface → its IPv6 addresses (/proc/net/if_inet6: address, index, prefix length, scope, flags, name)."""
    found: dict[str, list[str]] = {}
    for line in (text(root / "proc/net/if_inet6") or "").splitlines():
        words = line.split()
        found.setdefault(words[5], []).append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0])))
    return found


def fingerprint(root: Path) -> str | None:
    """The SSH host key's fingerprint, as `ssh` shows it at the first connection."""
    line = text(root / "etc/ssh/ssh_host_ed25519_key.fingerprint")
    words = line.split() if line else []
    return words[1] if len(words) > 1 else None


def preseed(root: Path) -> dict[str, Any] | None:
    """What became of a preseed at this boot; None when there was none or it was applied earlier."""
    content = text(root / "run/mixos/preseed.json")
    try:
        return dict(json.loads(content)) if content else None
    except (ValueError, TypeError, RecursionError):
        return {"state": "unknown"}


def hardening(root: Path) -> dict[str, Any]:
    """Protection that is in force now, as the kernel says."""
    from daemon.linux.dm import verity_state

    lockdown = text(root / "sys/kernel/security/lockdown") or ""
    sysctl, apparmor = _words(root / "run/mixos/sysctl"), _words(root / "run/mixos/apparmor")
    return {
        "verity": verity_state() if root == ROOT else None,
        "lockdown": lockdown.partition("[")[2].partition("]")[0] or None,
        "lsm": (text(root / "sys/kernel/security/lsm") or "").split(",") if lockdown else [],
        "apparmor_loaded": apparmor.get("loaded", []),
        "apparmor_refused": apparmor.get("failed", []),
        "sysctl_missing": sysctl.get("missing", []),
        "sysctl_refused": sysctl.get("refused", []),
        "watchdog": text(root / "sys/class/watchdog/watchdog0/state"),
        "tainted": text(root / "proc/sys/kernel/tainted"),
    }


def _words(path: Path) -> dict[str, list[str]]:
    """What an early script left: on each line a word, and what it is about."""
    lines = [line.split() for line in (text(path) or "").splitlines()]
    return {words[0]: words[1:] for words in lines if words}
