"""Three hundred ways out of a sandbox, tried on this host: first outside, where they work, then inside.

Everything happens in namespaces that are gone afterwards. The same attempts against a booted image:
tests/boot/test_escapes.py. Needs root, gcc, unshare and ip.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from buildsys.run import run
from tests.boot.escapes import suite
from tests.hostpackages import ROOT
from tests.native import native

pytestmark = pytest.mark.integration

SETUP = 'ip link set lo up; for one in {addresses}; do ip address add $one/32 dev lo; done; exec "$@"'

# What some host's kernel grants to nobody, not even to root in namespaces of its own.
NOT_HERE = {
    **dict.fromkeys(("kcore", "iomem", "slabinfo", "sysrq", "efi-variables"), "hidden in virtual machines"),
    **dict.fromkeys(("kexec-load", "kexec-file-load"), "kernels without kexec, or locked down"),
    **dict.fromkeys(("init-module", "finit-module", "delete-module"), "kernels without modules, or locked down"),
    **dict.fromkeys(("iopl", "ioperm", "modify-ldt", "x32", "int-80"), "not in every kernel"),
    **dict.fromkeys(("bpf", "perf-event", "io-uring", "userfaultfd", "acct", "fanotify"), "not in every kernel"),
    **dict.fromkeys(("oom-score", "raise-limit"), "containers without CAP_SYS_RESOURCE"),
    **dict.fromkeys(("disk", "shown-disk", "disk-flush", "disk-size", "quotactl"), "containers without disks"),
    **dict.fromkeys((f"dev-{name}" for name in (
        "mem", "kmem", "port", "kmsg", "uinput", "tty0", "ttyS0", "console", "fuse", "kvm", "tun", "loop", "rtc",
        "input", "mapper", "hwrng", "vsock", "ptmx-outside",
    )), "devices that not every machine has"),
    **dict.fromkeys((f"socket-{name}" for name in (
        "alg", "vsock", "key", "xdp", "bluetooth", "can", "tipc", "xfrm", "diag", "mptcp", "udp-lite",
    )), "families that not every kernel has"),
    "cgroup-release-agent": "control groups of version 2 have none",
    "terminal-linux": "machines without a screen",
    "setns-user": "nobody joins the user namespace that he is in",
    "daemon-socket": "this is no device",
    "bus-socket": "this is no device",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What `onhost` found: tables by condition, and the rest of its JSON object."""

    tables: dict[str, dict[str, suite.Row]]
    rest: dict[str, Any]


@pytest.fixture(scope="module")
def found() -> Found:
    """All attempts under all conditions, in one run."""
    folder = Path(tempfile.mkdtemp(prefix="escapes-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        (folder / "attempts").write_bytes(suite.program())
        (folder / "attempts").chmod(0o755)
        shutil.copy(native("sandbox"), folder / "sandbox")
        script = SETUP.format(addresses=" ".join(suite.OWN_ADDRESSES))
        spaces = ("--pid", "--net", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        inner = (sys.executable, "-m", "tests.boot.escapes.onhost", folder, folder / "sandbox")
        done = run(["unshare", *spaces, "sh", "-c", script, "sh", *inner], cwd=ROOT, split=True, timeout=900)
        data: dict[str, Any] = json.loads(done.stdout)
    finally:
        shutil.rmtree(folder)
    tables = {name: suite.parse(text) for name, text in data.items() if isinstance(text, str)}
    return Found(tables, {name: value for name, value in data.items() if name not in tables})


def test_outside_they_work(found: Found) -> None:
    outside = found.tables["outside"]
    assert suite.unexplained(outside, NOT_HERE) == {}
    assert {row.result for row in suite.checks(outside).values()} == {"escaped"}
    assert set(found.rest["outside-alone"].values()) == {True}


@pytest.mark.parametrize(
    ("condition", "open_on_purpose"),
    [
        ("inside", set(suite.OPEN)),
        ("strict", suite.OPEN_WHEN_STRICT),
        ("proxy", set()),
        ("behind-proxy", set(suite.OPEN)),
        ("full-proc", set(suite.OPEN) | suite.OPEN_WITH_FULL_PROC),
        ("host-network", set(suite.OPEN) | suite.OPEN_WITH_NETWORK),
    ],
)
def test_inside_none_does(found: Found, condition: str, open_on_purpose: set[str]) -> None:
    table = found.tables[condition]
    assert suite.escapes(table, open_on_purpose) == {}
    assert {
        name for name, row in table.items() if name in open_on_purpose and row.result == "escaped"
    } == open_on_purpose
    assert {row.result for row in suite.checks(table).values()} == {"escaped"}


def test_a_sandbox_ends_with_its_command_its_clock_and_its_memory(found: Found) -> None:
    assert set(found.rest["inside-alone"].values()) == {False}


def test_enough_was_proved(found: Found) -> None:
    """Attempts that worked outside and did not inside, with and without the proxy."""
    worked = set(suite.with_result(suite.attempts(found.tables["outside"]), "escaped"))
    inside = {**found.tables["proxy"], **found.tables["inside"]}
    assert set(inside) == set(found.tables["outside"])
    assert len(worked & set(suite.with_result(inside, "blocked"))) >= suite.LEAST


def test_nothing_was_changed_or_left_behind(found: Found) -> None:
    before, after = found.rest["before"], found.rest["after"]
    kept = ("secret", "keys/key", ".git/config", "keys", ".git")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert {"agent.toml", ".editor", ".git/hooks"} & set(after) == set()
    modes = [int(mode, 8) for name, mode in after.items() if name not in ("secret", "keys/key", ".git/config")]
    assert [mode for mode in modes if mode & 0o6000 or mode >> 12 in (0o2, 0o6)] == []


def test_what_the_proxy_refused_was_told(found: Found) -> None:
    told = set(found.rest["denied"])
    assert {"name-denied", "port-denied", "address-denied", "answer-denied", "name-invalid", "malformed"} <= told
