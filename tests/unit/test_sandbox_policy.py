"""Policies: what they refuse to say, and that an overlay can only take away."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import RefusedError
from daemon.linux.sandbox.policy import LEVELS, NETWORKS, PROCS, Access, Overlay, Policy, is_below, tighten


def policy(**changes: Any) -> Policy:
    return Policy.model_validate({key.replace("_", "-"): value for key, value in changes.items()})


def overlay(**changes: Any) -> Overlay:
    return Overlay.model_validate({key.replace("_", "-"): value for key, value in changes.items()})


@pytest.mark.parametrize(
    "changes",
    [
        {"read_only": ["usr"]},
        {"read_only": ["/usr/../etc"]},
        {"read_only": ["/usr/"]},
        {"read_only": ["//usr"]},
        {"read_only": ["/"]},
        {"read_only": ["/proc/1"]},
        {"read_only": ["/dev"]},
        {"read_only": ["/run"]},
        {"read_only": ["/run/mixos"]},
        {"read_only": ["/sys"]},
        {"read_only": ["/sys/fs"]},
        {"read_only": ["/sys/kernel"]},
        {"read_only": ["/run/mixos/mixosd.sock"]},
        {"read_only": ["/a\0b"]},
        {"read_only": ["/" + "x" * 256]},
        {"read_write": ["/sys/class"]},
        {"read_write": ["?/project"]},
        {"read_only": ["/a"], "read_write": ["/a"]},
        {"scratch": {"/dev/shm": 4096}},
        {"scratch": {"/tmp": 0}},
        {"devices": ["/etc/passwd"]},
        {"user": 0},
        {"user": "root"},
        {"groups": [0]},
        {"umask": "777777"},
        {"umask": 18},
        {"hostname": "a\nb"},
        {"network": "bridge"},
        {"sockets": ["packet"]},
        {"environment": {"A": "\0"}},
        {"environment": {"A=B": "x"}},
        {"limits": {"memory": "lots"}},
        {"limits": {"wall": 0}},
        {"unknown": 1},
    ],
    ids=str,
)
def test_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        policy(**{"umask": "0077", **changes})


def test_the_innermost_path_decides_and_hidden_ones_win() -> None:
    one = policy(
        read_only=["/usr", "/project/vendor"], read_write=["/project"], scratch={"/usr/tmp": "1M"},
        hide=["/project/key"], protect=["/project/.git/"],
    )  # fmt: skip
    expected = {
        "/usr/bin": Access.READ, "/usr": Access.READ, "/usrx": Access.NONE, "/usr/tmp/x": Access.OWN,
        "/project/a": Access.WRITE, "/project/vendor/a": Access.READ, "/project/key": Access.NONE, "/etc": Access.NONE,
        "/project/.git/config": Access.READ,
    }  # fmt: skip
    assert {path: one.access(path) for path in expected} == expected


def test_root_is_never_inside() -> None:
    one = policy(user="caller")
    assert one.for_account(0, 0).user == "dynamic"
    own = one.for_account(1000, 1000, (0, 4, 1000))
    assert (own.user, own.group, own.groups) == (1000, 1000, (4,))
    assert one.for_account(1000, 0).group is None
    assert policy(user="dynamic").for_account(1000, 1000).user == "dynamic"


PATHS = ["/a", "/a/b", "/a/b/c", "/a/d", "/e", "/e/f", "/e/f/g"]
SIZES = st.integers(1, 8)


def _split(draw: st.DrawFn) -> dict[str, Any]:
    """Each path at most once, as one kind."""
    kinds = {path: draw(st.sampled_from(["no", "no", "ro", "rw", "own", "aro", "arw"])) for path in PATHS}
    found: dict[str, Any] = {}
    for kind, key in (
        ("ro", "read_only"),
        ("rw", "read_write"),
        ("aro", "asked_read_only"),
        ("arw", "asked_read_write"),
    ):
        found[key] = [path for path in PATHS if kinds[path] == kind]
    found["scratch"] = {path: draw(SIZES) for path in PATHS if kinds[path] == "own"}
    return found


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    some = st.lists(st.sampled_from(PATHS), max_size=2, unique=True)
    return policy(
        **_split(draw),
        hide=draw(some),
        protect=draw(some),
        devices=draw(st.lists(st.sampled_from(["/dev/null", "/dev/zero", "/dev/kvm"]), unique=True)),
        proc=draw(st.sampled_from(PROCS)),
        network=draw(st.sampled_from(NETWORKS)),
        seccomp=draw(st.sampled_from(LEVELS)),
        sockets=draw(st.lists(st.sampled_from(["unix", "inet", "inet6"]), unique=True)),
        execute_writable=draw(st.booleans()),
        terminal=draw(st.booleans()),
        shared_memory=draw(st.integers(0, 3)),
        capabilities=draw(st.lists(st.sampled_from(["CAP_NET_RAW", "CAP_KILL"]), unique=True)),
        pass_environment=draw(st.lists(st.sampled_from(["A", "B"]), unique=True)),
        umask=f"{draw(st.integers(0, 0o777)):04o}",
        require=draw(st.lists(st.sampled_from(["landlock", "memory"]), unique=True)),
        limits={
            "memory": draw(st.none() | st.integers(1, 9)),
            "pids": draw(st.none() | st.integers(4, 9)),
            "wall": draw(st.none() | st.integers(1, 9)),
        },
    )


@st.composite
def overlays(draw: st.DrawFn) -> Overlay:
    other = draw(policies())
    values = other.model_dump(by_alias=True, include=set(Overlay.model_fields) - {"limits"})
    kept = {key: value for key, value in values.items() if draw(st.integers(0, 3)) == 0}
    limits = {key: value for key, value in other.limits.model_dump(by_alias=True).items() if draw(st.booleans())}
    return Overlay.model_validate({**kept, "limits": limits})


def rights(one: Policy) -> dict[str, Any]:
    """Everything that a policy gives, in a form in which less is `<=`."""
    probes = [*PATHS, *(f"{path}/x" for path in PATHS), "/", "/z"]
    infinite = float("inf")
    return {
        **{probe: one.access(probe) for probe in probes},
        **{f"size {path}": one.scratch.get(path, 0) for path in PATHS},
        "devices": set(one.devices),
        "proc": PROCS.index(one.proc),
        "network": NETWORKS.index(one.network),
        "seccomp": LEVELS.index(one.seccomp),
        "sockets": set(one.sockets),
        "execute": one.execute_writable,
        "terminal": one.terminal,
        "shared": one.shared_memory,
        "capabilities": set(one.capabilities),
        "environment": set(one.pass_environment),
        "modes": {bit for bit in range(9) if not one.umask >> bit & 1},
        "memory": one.limits.memory or infinite,
        "pids": one.limits.pids or infinite,
        "wall": one.limits.wall or infinite,
        "optional": {"landlock", "memory"} - set(one.require),
    }


@given(policies(), overlays())
def test_a_tightened_policy_never_gives_more(base: Policy, change: Overlay) -> None:
    try:
        result = tighten(base, change)
    except RefusedError:
        return  # nothing runs
    before, after = rights(base), rights(result)
    assert {key: (before[key], after[key]) for key in before if not after[key] <= before[key]} == {}
    for path in (*result.read_only, *result.read_write):  # looked up with root's rights: it was in the base, too
        assert max(entry for entry, _ in base.entries() if is_below(path, entry)) in (*base.read_only, *base.read_write)
    assert set(base.require) <= set(result.require)
    assert (result.user, result.environment, result.directory) == (base.user, base.environment, base.directory)


@given(policies())
def test_an_overlay_that_says_the_same_changes_no_right(base: Policy) -> None:
    same = {
        "read-only": (*base.read_only, *base.asked_read_only),
        "read-write": (*base.read_write, *base.asked_read_write),
    }
    listed = {path for path, _ in base.entries() if base.access(path) < Access.READ}
    hidden = [path for path in same["read-write"] if base.access(path) < Access.WRITE]
    if not listed - set(base.scratch) and not hidden:
        assert rights(tighten(base, Overlay.model_validate(same))) == rights(base)
    assert rights(tighten(base, Overlay())) == rights(base)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"read_write": ["/usr"]}, "read-write = /usr"),
        ({"read_only": ["/etc"]}, "read-only = /etc"),
        ({"read_only": ["/project/key"]}, "read-only = /project/key"),
        ({"read_write": ["/project/vendor"]}, "read-write = /project/vendor"),
        ({"scratch": {"/new": 1}}, "scratch = /new"),
        ({"scratch": {"/tmp": "2M"}}, "scratch = /tmp"),
        ({"network": "host"}, "network"),
        ({"limits": {"memory": "2G"}}, "limits.memory"),
        ({"seccomp": "standard"}, "seccomp"),
        ({"sockets": ["inet6"]}, "sockets"),
        ({"umask": "0000"}, "umask"),
        ({"terminal": True}, "terminal"),
    ],
    ids=str,
)
def test_loosening_is_named(change: dict[str, Any], named: str) -> None:
    base = policy(
        read_only=["/usr", "/project/vendor"], read_write=["/project"], hide=["/project/key"], scratch={"/tmp": "1M"},
        seccomp="strict", limits={"memory": "1G"},
    )  # fmt: skip
    with pytest.raises(RefusedError) as caught:
        tighten(base, overlay(**change))
    assert caught.value.reason == "policy-loosens"
    assert named in caught.value.message


def test_what_is_taken_back_inside_a_writable_path_stays() -> None:
    base = policy(read_only=["/usr", "/project/vendor"], read_write=["/project"])
    assert tighten(base, overlay(read_only=["/usr/lib"])).access("/project/vendor/x") is Access.READ
    narrowed = tighten(base, overlay(read_only=["/project"]))
    assert narrowed.access("/project/a") is Access.READ
    assert narrowed.access("/usr") is Access.NONE


def test_a_narrowed_path_is_still_looked_up_with_the_users_rights() -> None:
    base = policy(asked_read_write=["/home/u"])
    result = tighten(base, overlay(read_write=["/home/u/project"]))
    assert (result.read_write, result.asked_read_write) == ((), ("/home/u/project",))


def test_limits_that_the_base_does_not_have_can_be_set() -> None:
    assert tighten(policy(), overlay(limits={"memory": "1M", "wall": "5s"})).limits.memory == 1 << 20
