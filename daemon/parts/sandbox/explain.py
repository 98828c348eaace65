"""What a policy really gets on this kernel and host: measured, not remembered.

The launcher sets the sandbox up, runs nothing, and reports what it read back; that is put beside what the policy asks.
"yes" is enforced as written, "partly" is enforced by something weaker that is named, "no" is not enforced at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from daemon.linux.process import capture
from daemon.linux.sandbox.policy import Policy
from daemon.parts.sandbox.run import Runner

Verdict = Literal["yes", "partly", "no"]
ABI_USED = 6  # of Landlock: what daemon/native/sandbox/landlock.c knows


class Row(NamedTuple):
    """One promise of the policy: what, whether it is kept, and by what or why not."""

    what: str
    enforced: Verdict
    how: str


async def explain(runner: Runner, policy: Policy) -> dict[str, Any]:
    """`{"kernel": …, "facts": …, "rows": [{"what", "enforced", "how"}, …]}`.

    Raises SandboxError `sandbox-refused` when this sandbox cannot be had here, with the launcher's reason.
    """
    facts = await runner.facts(policy)
    probed = await capture([str(runner.launcher), "--probe"])
    return {
        "kernel": {"release": os.uname().release, **json.loads(probed.out)},
        "facts": facts,
        "rows": [row._asdict() for row in rows(policy, facts)],
    }


def rows(policy: Policy, facts: dict[str, Any]) -> Iterator[Row]:
    """One row for each thing that a policy promises; `facts` is the launcher's report."""
    yield from _walls(policy, facts)
    yield from _rights(policy, facts)
    yield from _limits(policy, facts)


def _walls(policy: Policy, facts: dict[str, Any]) -> Iterator[Row]:
    yield Row("files", "yes", f"own root with {sum(1 for _ in policy.entries())} listed paths, nothing else")
    used, abi = facts["landlock"]["used"], facts["landlock"]["abi"]
    if used:
        missing = (
            ""
            if used >= ABI_USED
            else f"; ABI {ABI_USED} would also confine device controls, signals, abstract sockets"
        )
        yield Row("files, second wall", "yes" if used >= 3 else "partly", f"Landlock ABI {abi}, used {used}{missing}")
    else:
        yield Row("files, second wall", "no", "this kernel has no Landlock: mounts alone confine")
    if guarded := len(policy.hide) + len(policy.protect):
        absent = [path for path in policy.hide if path.removesuffix("/") in facts["absent"]]
        seen = f"; not there now, would be seen if made later, from outside: {', '.join(absent)}" if absent else ""
        yield Row(
            "hidden and protected paths",
            "partly" if absent else "yes",
            f"{guarded} listed, {facts['placeholders']} of them did not exist and got a placeholder{seen}",
        )
    how = {
        "none": "not there",
        "pids": "own processes only",
        "full": "own processes; figures of the machine are visible",
    }
    yield Row("processes", "yes", f"own PID namespace; /proc: {how[facts['proc']]}")
    yield Row(
        "terminal",
        "yes",
        "own session; TIOCSTI and TIOCLINUX refused; " + ("passed on" if policy.terminal else "none is let in"),
    )
    if facts["network"] == "host":
        scoped = used >= 6
        yield Row("network", "no", "the policy gives the host's: restrict it with the firewall, which knows the cgroup")
        yield Row(
            "abstract sockets of the host",
            "yes" if scoped else "no",
            "Landlock scope" if scoped else "they belong to the network, and Landlock here is too old to confine them",
        )
    else:
        way = "one way out, the filtering proxy" if facts["network"] == "proxy" else "loopback only"
        yield Row("network", "yes", f"own network namespace: {way}")


def _rights(policy: Policy, facts: dict[str, Any]) -> Iterator[Row]:
    if facts["user-namespace"]:
        yield Row(
            "account", "partly", f"not root: seen as {facts['account']} inside, outside it is the caller's own account"
        )
    elif policy.user == "dynamic":
        yield Row("account", "yes", "one that nobody else has, for as long as the sandbox runs")
    else:
        yield Row("account", "partly", f"{facts['account']}, which other programs have too")
    yield Row(
        "capabilities", "yes", f"{facts['capabilities']}, read back from every set; no_new_privs; securebits locked"
    )
    filtered = facts["seccomp"] == 2
    yield Row("system calls", "yes" if filtered else "no", f"seccomp filter, level {policy.seccomp}")
    new = facts["keyring"] == "new"
    yield Row("keyrings", "yes", "a session keyring of its own" if new else "this kernel has none")


def _limits(policy: Policy, facts: dict[str, Any]) -> Iterator[Row]:
    for name, each in (("memory", "RLIMIT_DATA of each process"), ("pids", "RLIMIT_NPROC of the account")):
        if facts[name] == "cgroup":
            yield Row(name, "yes", f"cgroup, {getattr(policy.limits, name)}")
        elif facts[name] == "process":
            yield Row(name, "partly", f"{each}: there is no cgroup with this controller")
        else:
            yield Row(name, "no", "the policy sets no limit")
    cpu = policy.limits.cpu
    if cpu is not None:
        there = "cpu.max" not in facts.get("missing", ())
        yield Row(
            "cpu",
            "yes" if there else "no",
            f"{cpu} % of one CPU" if there else "there is no cgroup with this controller",
        )
    wall = policy.limits.wall
    yield Row(
        "time",
        "yes" if wall else "no",
        f"{wall:g} s, then everything is killed" if wall else "the policy sets no limit",
    )
    writable = bool(policy.read_write or policy.asked_read_write)
    if policy.scratch:
        yield Row("disk, private folders", "yes", f"{sum(policy.scratch.values())} bytes in memory")
    if writable:
        size = policy.limits.file_size
        how = (
            f"each file at most {size} bytes, their number is not bounded"
            if size
            else "neither files nor their number is bounded"
        )
        yield Row("disk, writable paths", "partly" if size else "no", how)
