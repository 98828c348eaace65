"""The attempts of `attempts.c`: compile them, run them, read their table; what the sandbox allows on purpose.

Each attempt is made twice: outside, as root, where it must work, or "blocked" would prove nothing; and inside, where it
must not. Attempts that this kernel grants to nobody are listed by whoever runs the suite, each with its reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from buildsys.run import run
from tests.native import FLAGS

SOURCE = Path(__file__).with_name("attempts.c")
LEAST = 200  # attempts; fewer were not all of them
# Attempts that end a sandbox or try to outlive it: the file in project/ whose appearance shows that it worked, if not
# the exit code does. None worked once no process of it is left that could make the file.
ALONE: Mapping[str, str | None] = {"memory-over": None, "outlive": "outlived", "past-the-clock": "too-late"}
CHECKS = ("works-", "proxy-works-")  # no attempts: what must work in both places
TOKEN = "mixos-escape-token"

# The stage's limits, which the sandbox must have, and which some attempts exceed.
PROXY_PORT = 3128
LIMITS: Mapping[str, int] = {"pids": 64, "memory": 64 << 20, "file-size": 1 << 20, "files": 200, "scratch": 4 << 20}

# What works inside, too, because it gives nothing that was not given, each with the reason. Documented in
# docs/sandbox-proxy.md and docs/sandbox.md.
OPEN: Mapping[str, str] = {
    "memory-program": "a sandbox is no allow list of programs; level strict refuses it",
    "written-program": "the same; a policy without execute-writable refuses it",
    "writable-code": "just-in-time compilers need it; level strict refuses it",
    "shown-socket": "who shows a folder shows its sockets: a read-only mount does not keep from connecting",
}
OPEN_WHEN_STRICT = frozenset({"shown-socket"})
# With the host's network everything that it reaches is reached; abstract sockets too, before Landlock ABI 6.
OPEN_WITH_NETWORK = frozenset(
    {"host-loopback", "host-loopback-six", "host-address", "metadata-service", "dns-udp", "dns-tcp"}
)

# With proc = "full": figures of the machine, as the name says.
OPEN_WITH_FULL_PROC = frozenset({"disk-figures"})

# Names that the proxy's tests give addresses to, and the list of what is allowed.
NAMES: Mapping[str, str] = {
    "ok.escape.test": "127.0.0.9",
    "loop.escape.test": "127.0.0.1",
    "link.escape.test": "169.254.169.254",
    "lan.escape.test": "192.168.77.1",
    "mapped.escape.test": "::ffff:127.0.0.1",
    "mixed.escape.test": "127.0.0.9 127.0.0.1",
    "own.escape.test": "192.0.2.80",
}
ALLOW = (*(f"{name}:80,443" for name in NAMES), "127.0.0.9:80,443")
OWN_ADDRESSES = ("169.254.169.254", "192.0.2.80")  # of the host, for the time of the test


class Row(NamedTuple):
    """What became of an attempt: `escaped`, `blocked`, `inapplicable` or `hung`; detail: why."""

    result: str
    detail: str


def program() -> bytes:
    """The compiled program: static, so that it runs on the device."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "attempts")
        run(["gcc", *FLAGS, "-static", "-o", binary, SOURCE], timeout=300)
        return binary.read_bytes()


def parse(text: str) -> dict[str, Row]:
    """The table of `attempts --all`. Raises ValueError when its end is missing: something ended the program itself."""
    lines = [line.split("\t") for line in text.splitlines() if line.count("\t") == 2]
    if not lines or lines[-1][0] != "end":
        raise ValueError(f"the table breaks off: {text[-500:]}")
    return {name: Row(result, detail) for name, result, detail in lines[:-1]}


def checks(table: Mapping[str, Row]) -> dict[str, Row]:
    """Those rows that are no attempts."""
    return {name: row for name, row in table.items() if name.startswith(CHECKS)}


def attempts(table: Mapping[str, Row]) -> dict[str, Row]:
    """Those that are."""
    return {name: row for name, row in table.items() if not name.startswith(CHECKS)}


def with_result(table: Mapping[str, Row], *results: str) -> dict[str, Row]:
    """The rows with one of these results."""
    return {name: row for name, row in table.items() if row.result in results}


def unexplained(outside: Mapping[str, Row], known: Collection[str]) -> dict[str, Row]:
    """Attempts that did not work outside and that nobody has explained: inside they prove nothing."""
    return {name: row for name, row in attempts(outside).items() if row.result != "escaped" and name not in known}


def escapes(inside: Mapping[str, Row], allowed: Collection[str]) -> dict[str, Row]:
    """Attempts that worked inside, or whose outcome is not known, and that are not allowed to."""
    return {name: row for name, row in attempts(inside).items() if row.result != "blocked" and name not in allowed}


def policy(stage: Path) -> dict[str, Any]:
    """The keys of a policy or profile that the stage counts on; network, account and level are the caller's."""
    return {
        "read-only": [f"{stage}/shown"],
        "read-write": [f"{stage}/project"],
        "hide": [f"{stage}/project/secret", f"{stage}/project/keys/"],
        "protect": [f"{stage}/project/{name}" for name in (".git/config", ".git/hooks/", "agent.toml", ".editor/")],
        "scratch": {f"{stage}/scratch": LIMITS["scratch"]},
        "sockets": ["unix", "inet", "inet6", "netlink-route"],
        "limits": {
            "pids": LIMITS["pids"],
            "memory": LIMITS["memory"],
            "file-size": LIMITS["file-size"],
            "open-files": LIMITS["files"],
            "wall": "5m",
        },
    }


def facts(account: int, disk: str) -> list[str]:
    """The words behind `attempts stage DIR`."""
    given = {"account": account, "address": OWN_ADDRESSES[-1], "disk": disk, "proxy-port": PROXY_PORT, **LIMITS}
    return [f"{name}={value}" for name, value in given.items()]
