"""Three hundred ways out of a sandbox, tried on the booted image: as root, where they work, then as `mixctl` runs them.

The victim has the account that the sandbox has, so that ownership alone allows everything. What is attempted, and how
a result is told: tests/boot/escapes/attempts.c.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from buildsys.run import Completed
from tests.boot.escapes import suite
from tests.boot.guest import Guest, wait_until

ADMIN = 1000  # the account of `admin`, who runs the sandboxes
PROGRAM = "/data/attempts"  # /data is the only place that lets programs run that came later
STAGE = "/run/escapes"
ATTEMPTS = f"{STAGE}/shown/attempts"
PROFILES = "/etc/mixos/profiles"

# What this system grants to nobody, not even to root.
FOR_NOBODY = {
    **dict.fromkeys(("ptrace-attach", "ptrace-seize", "ptrace-own-child"), "Yama: nobody traces anybody"),
    **dict.fromkeys(("proc-mem", "init-mem", "steal-descriptor"), "Yama counts it as tracing"),
    **dict.fromkeys(("unshare-user", "clone-user", "clone3-user", "setns-user"), "no user namespaces"),
    **dict.fromkeys(("system-program", "path-hijack"), "the root is read-only and verified"),
    **dict.fromkeys((
        "vm-readv", "vm-writev", "compare-victim", "file-handle", "fanotify", "io-uring", "bpf", "userfaultfd",
        "perf-event", "kexec-load", "kexec-file-load", "init-module", "finit-module", "delete-module", "iopl", "ioperm",
        "modify-ldt", "x32", "int-80", "acct", "sysrq", "core-pattern", "kcore", "kernel-symbols", "slabinfo",
        "leave-immutable", "cgroup-release-agent",
    ), "not in this kernel"),
    **dict.fromkeys((f"dev-{name}" for name in (
        "mem", "kmem", "port", "uinput", "fuse", "kvm", "tun", "loop", "vsock", "rtc", "input", "hwrng", "ttyS0",
        "console", "ptmx-outside",
    )), "no such device, or in use"),
    **dict.fromkeys((f"socket-{name}" for name in (
        "alg", "vsock", "key", "xdp", "bluetooth", "can", "tipc", "xfrm", "diag", "mptcp", "udp-lite",
    )), "not in this kernel"),
    "bus-socket": "the bus is not started on every device",
}  # fmt: skip


def toml(values: Mapping[str, Any]) -> str:
    """A profile: strings, lists and numbers first, then tables."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables]
    for key, table in tables.items():
        lines += [f"[{key}]", *(f'"{name}" = {json.dumps(value)}' for name, value in table.items())]
    return "\n".join([*lines, ""])


def profiles() -> dict[str, str]:
    """By name: with no network, behind the proxy, and with a short clock."""
    base = {"extends": "tool", "directory": f"{STAGE}/project", **suite.policy(Path(STAGE))}
    brief = {**base, "limits": {**base["limits"], "wall": "2s"}}
    behind = {**base, "network": "proxy", "allow": list(suite.ALLOW)}
    return {"escapes": toml(base), "escapes-brief": toml(brief), "escapes-proxy": toml(behind)}


@dataclass(frozen=True)
class Found:
    """Tables outside and inside, and whether those that stand alone worked."""

    outside: dict[str, suite.Row]
    inside: dict[str, suite.Row]
    alone_outside: dict[str, bool]
    alone_inside: dict[str, bool]


@pytest.fixture(scope="module")
def found(shared: Any) -> Iterator[Found]:
    """Everything in a few commands, since each costs an emulated guest more than the attempts do."""
    guest: Guest = shared.guest
    guest.run(f"cat > {PROGRAM} && chmod 755 {PROGRAM}", stdin=suite.program())
    for name, text in profiles().items():
        guest.run(f"mkdir -p {PROFILES} && cat > {PROFILES}/{name}.toml", stdin=text.encode())
    hosts = "".join(f"{address} {name}\n" for name, addresses in suite.NAMES.items() for address in addresses.split())
    guest.run("cp /etc/hosts /run/hosts.kept; cat >> /etc/hosts", stdin=hosts.encode())
    disk = guest.lines("ls /sys/block | grep -E '^(vd|sd|nvme)'")[0]
    words = " ".join(suite.facts(ADMIN, f"/dev/{disk}"))
    guest.run("; ".join(f"ip address add {one}/32 dev lo" for one in suite.OWN_ADDRESSES))
    guest.run(f"setsid {PROGRAM} stage {STAGE} {words} </dev/null >/run/stage.log 2>&1 &")
    try:
        if not wait_until(lambda: guest.attempt(f"test -e {STAGE}/shown/facts").status == 0, 60.0):
            pytest.fail(guest.run("cat /run/stage.log"))
        outside, alone_outside = _outside(guest)
        yield Found(outside, _inside(guest), alone_outside, _alone_inside(guest))
    finally:
        guest.attempt(f"for one in $(pidof attempts); do kill -9 $one; done; umount -l {STAGE}; rm -f {PROGRAM}")
        guest.attempt("; ".join(f"ip address del {one}/32 dev lo" for one in suite.OWN_ADDRESSES))
        guest.attempt(f"cat /run/hosts.kept > /etc/hosts; rm -f {PROFILES}/escapes*.toml /dev/shm/mixos-escape")


def _outside(guest: Guest) -> tuple[dict[str, suite.Row], dict[str, bool]]:
    """As root, with a proxy that refuses nothing, a leaked descriptor and a secret in the environment."""
    start = f"setsid {PROGRAM} open-proxy {suite.PROXY_PORT} </dev/null >/dev/null 2>&1 & echo $!; sleep 1"
    proxy = guest.run(start)
    prefix = f"exec 9<{STAGE}/outside; SECRET={suite.TOKEN}"
    table = {
        **suite.parse(guest.run(f"{prefix} {ATTEMPTS} --all -proxy-")),
        **suite.parse(guest.run(f"{prefix} {ATTEMPTS} --all proxy-")),
    }
    alone = {name: _worked(guest, name, guest.attempt(f"{ATTEMPTS} {name}")) for name in suite.ALONE}
    guest.attempt(f"kill -9 {proxy}")
    return table, alone


def _inside(guest: Guest) -> dict[str, suite.Row]:
    parts = (("escapes", "-proxy-"), ("escapes-proxy", "proxy-"))
    tables = (
        suite.parse(guest.run(f"mixctl sandbox run --profile {profile} -- {ATTEMPTS} --all {prefix}", user="admin"))
        for profile, prefix in parts
    )
    return {name: row for table in tables for name, row in table.items()}


def _alone_inside(guest: Guest) -> dict[str, bool]:
    command = f"mixctl sandbox run --profile escapes-brief -- {ATTEMPTS}"
    return {name: _worked(guest, name, guest.attempt(f"{command} {name}", user="admin")) for name in suite.ALONE}


def _worked(guest: Guest, name: str, done: Completed) -> bool:
    """By its exit code, or by a file that appears when it should no longer be there to make it."""
    file = suite.ALONE[name]
    if file is None:
        return done.status == 0
    path, words = f"{STAGE}/project/{file}", f"{ATTEMPTS} [{name[0]}]{name[1:]}"  # which does not find itself
    left = f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q '{words}'"
    guest.run(f"for i in $(seq 300); do test -e {path} && break; {left} || break; sleep 0.2; done")
    return guest.attempt(f"test -e {path} && rm {path}").status == 0


# case: B23
def test_outside_they_work(found: Found) -> None:
    assert suite.unexplained(found.outside, FOR_NOBODY) == {}
    assert {row.result for row in suite.checks(found.outside).values()} == {"escaped"}
    assert set(found.alone_outside.values()) == {True}


def test_inside_none_does(found: Found) -> None:
    assert suite.escapes(found.inside, suite.OPEN) == {}
    assert {name for name in suite.OPEN if found.inside[name].result == "escaped"} == set(suite.OPEN)
    assert {row.result for row in suite.checks(found.inside).values()} == {"escaped"}


def test_a_sandbox_ends_with_its_command_its_clock_and_its_memory(found: Found) -> None:
    assert set(found.alone_inside.values()) == {False}


def test_enough_was_proved(found: Found) -> None:
    worked = set(suite.with_result(suite.attempts(found.outside), "escaped"))
    assert set(found.inside) == set(found.outside)
    assert len(worked & set(suite.with_result(found.inside, "blocked"))) >= suite.LEAST


def test_nothing_was_left_behind(found: Found, guest: Guest) -> None:
    """Protected names are as absent as before, and nothing in the writable folder gives rights."""
    assert guest.lines(f"cd {STAGE}/project && ls -d agent.toml .editor .git/hooks 2>/dev/null; :") == []
    assert guest.lines(f"find {STAGE}/project -perm /6000 -o -type b -o -type c") == []
    assert guest.run(f"cat {STAGE}/project/secret") == suite.TOKEN
