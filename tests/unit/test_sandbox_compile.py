"""The compiled policy: its records, its order, and what is never compiled."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import daemon
from common.errors import RefusedError
from daemon.core.method import Caller, Role
from daemon.linux.sandbox.compile import DEVICES, MAX_BYTES, REQUIREMENTS, Tag, compile_policy
from daemon.linux.sandbox.policy import Overlay, Policy
from daemon.parts.sandbox.explain import rows
from daemon.parts.sandbox.part import Command, command_policy

HEADER = Path(daemon.__file__).parent / "native" / "sandbox" / "format.h"
CALLER = Caller(Role.OPERATOR, 1001, 1001, 1, "operator", "local")


class Record(NamedTuple):
    tag: int
    flags: int
    value: int
    data: bytes


def records(data: bytes) -> Iterator[Record]:
    magic, version, size = struct.unpack_from("<8sII", data)
    assert (magic, version, size) == (b"MIXOSBX\0", 1, len(data))
    at = 16
    while at < size:
        tag, flags, value, length, zero = struct.unpack_from("<IIQII", data, at)
        assert zero == 0
        yield Record(tag, flags, value, data[at + 24 : at + 24 + length])
        at += 24 + (length + 7) // 8 * 8
    assert at == size


def compiled(**changes: Any) -> list[Record]:
    policy = Policy.model_validate({key.replace("_", "-"): value for key, value in changes.items()})
    return list(records(compile_policy(policy, architecture="x86_64")))


def texts(found: list[Record], tag: Tag) -> list[str]:
    return [record.data[:-1].decode() for record in found if record.tag == tag]


def value(found: list[Record], tag: Tag) -> int:
    (one,) = [record.value for record in found if record.tag == tag]
    return one


def test_tags_are_those_of_the_header() -> None:
    """Both sides count the same: the enumeration of format.h, read as the compiler does."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    found = re.search(r"enum tag \{(.*?)\};", text, re.DOTALL)
    assert found is not None
    number, numbers = -1, {}
    for item in found[1].replace("\n", " ").split(","):
        name, _, given = item.strip().partition(" = ")
        number = int(given) if given else number + 1
        numbers[name] = number
    assert {tag.name: tag.value for tag in Tag}.items() <= numbers.items()
    assert set(numbers) - {tag.name for tag in Tag} == {"SCALARS", "TAGS", ""}


def test_every_scalar_is_there_once() -> None:
    found = [record.tag for record in compiled() if record.tag < 64]
    assert found == list(range(15))


def test_outer_paths_come_before_inner_ones() -> None:
    found = compiled(
        read_only=["/a/b/c", "?/a-b", "/z"], read_write=["/a"], scratch={"/a/b": 4096}, asked_read_only=["/a/b/d"]
    )
    listed = [(record.tag, record.flags, record.data[:-1].decode()) for record in found if 64 <= record.tag <= 66]
    assert listed == [
        (Tag.READ_WRITE, 0, "/a"),
        (Tag.TMPFS, 0, "/a/b"),
        (Tag.READ_ONLY, 0, "/a/b/c"),
        (Tag.READ_ONLY, 2, "/a/b/d"),
        (Tag.READ_ONLY, 1, "/a-b"),
        (Tag.READ_ONLY, 0, "/z"),
    ]


def test_protection_knows_folders_and_secrets() -> None:
    found = compiled(read_write=["/w"], protect=["/w/.git/hooks/", "/w/.envrc"], hide=["/w/key"])
    listed = {record.data[:-1]: record.flags for record in found if record.tag == Tag.PROTECT}
    assert listed == {b"/w/.git/hooks": 1, b"/w/.envrc": 0, b"/w/key": 2}


def test_all_of_proc_hides_what_is_about_the_machine() -> None:
    hidden = texts(compiled(proc="full"), Tag.PROTECT)
    assert {"/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/sysrq-trigger"} <= set(hidden)
    assert texts(compiled(proc="processes"), Tag.PROTECT) == []


def test_values() -> None:
    found = compiled(
        user=1000, network="none", require=["memory", "account"], umask="0027",
        limits={"wall": "1500ms", "memory": "1M", "pids": 9}, capabilities=["CAP_NET_BIND_SERVICE"],
    )  # fmt: skip
    assert [value(found, tag) for tag in (Tag.UID_FIRST, Tag.UID_LAST, Tag.GID)] == [1000, 1000, 0xFFFFFFFF]
    assert value(found, Tag.WALL_MS) == 1500
    assert value(found, Tag.CAPABILITIES) == 1 << 10
    assert value(found, Tag.REQUIRE) == 1 << REQUIREMENTS.index("memory") | 1 << REQUIREMENTS.index("account")
    assert value(found, Tag.UMASK) == 0o027
    assert [record.flags for record in found if record.tag == Tag.RLIMIT and record.value == 1] == [4]  # RLIMIT_CORE
    assert len(texts(found, Tag.DEVICE)) == len(DEVICES)


def test_the_environment_is_what_is_listed() -> None:
    given = {"environment": {"HOME": "/tmp"}, "pass_environment": ["TERM", "HOME", "USER"]}
    found = compiled(user=1000, **given)
    assert texts(found, Tag.ENV_SET) == ["HOME=/tmp", "LC_ALL=C.UTF-8", "PATH=/usr/bin:/usr/sbin:/bin:/sbin"]
    assert texts(found, Tag.ENV_PASS) == ["TERM", "USER"]
    assert texts(found, Tag.ACCOUNT) == []


@pytest.mark.parametrize(
    ("environment", "home"),
    [({}, "/"), ({"HOME": "/tmp"}, "/tmp"), ({"HOME": "x"}, "/"), ({"HOME": "/a\nroot::0:0::/:"}, "/")],
)
def test_a_dynamic_account_has_a_name_and_a_home(environment: dict[str, str], home: str) -> None:
    found = compiled(environment=environment, pass_environment=["TERM", "HOME", "USER"])
    assert texts(found, Tag.ACCOUNT) == [home]
    assert {"USER=sandbox", "LOGNAME=sandbox"} < set(texts(found, Tag.ENV_SET))
    assert texts(found, Tag.ENV_PASS) == ["TERM"]


def test_a_proxy_brings_its_bridge() -> None:
    found = compiled(network="proxy", proxy_socket="/run/x", proxy_port=8080)
    assert value(found, Tag.PROXY_PORT) == 8080
    assert texts(found, Tag.PROXY_SOCKET) == ["/run/x"]
    assert "http_proxy=http://127.0.0.1:8080" in texts(found, Tag.ENV_SET)
    assert len([record for record in found if record.tag == Tag.BRIDGE_FILTER]) == 1
    assert not [record for record in compiled() if record.tag in (Tag.BRIDGE_FILTER, Tag.PROXY_SOCKET)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user": "caller"}, "policy-account"),
        ({"network": "proxy"}, "policy-proxy"),
        ({"capabilities": ["CAP_SYS_ADMIN"]}, "policy-capability"),
        ({"capabilities": ["CAP_FLY"]}, "policy-capability"),
        ({"read_only": [f"/{'x' * 200}/{number}" for number in range(600)]}, "policy-size"),
        ({"environment": {"A": "x" * MAX_BYTES}}, "policy-size"),
        ({"environment": {"A": "x" * 1024}}, "policy-size"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else one,
)
def test_never_compiled(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RefusedError) as caught:
        compiled(**changes)
    assert caught.value.reason == reason


def test_same_policy_same_bytes() -> None:
    one = Policy.model_validate({"read-only": ["/a", "/b"], "sockets": ["inet", "unix"], "protect": ["/x", "/y"]})
    two = Policy.model_validate({"read-only": ["/b", "/a"], "sockets": ["unix", "inet"], "protect": ["/y", "/x"]})
    assert compile_policy(one, architecture="aarch64") == compile_policy(two, architecture="aarch64")


# -- policies for a command ------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(Role))
# case: H9
def test_the_devices_network_is_for_units_and_administrators(role: Role) -> None:
    """Its loopback has what listens there for the device alone."""
    caller = CALLER._replace(role=role)
    profile = Policy.model_validate({"network": "host", "user": "caller"})
    command = {"command": ["id"]}
    assert command_policy(profile, caller, Command.model_validate({**command, "network": "none"})).network == "none"
    if role is Role.ADMIN:
        assert command_policy(profile, caller, Command.model_validate(command)).network == "host"
        return
    with pytest.raises(RefusedError) as caught:
        command_policy(profile, caller, Command.model_validate(command))
    assert caught.value.reason == "sandbox-host-network"


def test_a_commands_paths_are_its_callers() -> None:
    profile = Policy.model_validate({"read-only": ["/usr"], "user": "caller"})
    wanted = Command.model_validate({"command": ["id"], "read-write": ["/home/me"], "directory": "/home/me"})
    policy = command_policy(profile, CALLER, wanted)
    assert (policy.asked_read_write, policy.read_write) == (("/home/me",), ())
    assert (policy.user, policy.group, policy.directory) == (1001, 1001, "/home/me")


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"network": "host"}, "policy-loosens"),
        ({"overlay": {"limits": {"memory": "2G"}}}, "policy-loosens"),
        ({"read-only": ["/usr"]}, "sandbox-paths"),
        ({"directory": "relative"}, "sandbox-paths"),
    ],
    ids=str,
)
def test_a_command_gets_no_more_than_the_profile(wanted: dict[str, Any], reason: str) -> None:
    profile = Policy.model_validate({"read-only": ["/usr"], "limits": {"memory": "1G"}})
    with pytest.raises(RefusedError) as caught:
        command_policy(profile, CALLER, Command.model_validate({"command": ["id"], **wanted}))
    assert caught.value.reason == reason


# -- explain -----------------------------------------------------------------------------------------------------------

FACTS = {
    "keyring": "new", "memory": "cgroup", "pids": "cgroup", "account": 61000, "capabilities": "0" * 16, "seccomp": 2,
    "user-namespace": False, "landlock": {"abi": 7, "used": 6}, "network": "none", "proc": "pids", "protected": 0,
    "placeholders": 0, "absent": [], "missing": [],
}  # fmt: skip


def verdicts(policy: Policy, **changes: Any) -> dict[str, str]:
    return {row.what: row.enforced for row in rows(policy, {**FACTS, **changes})}


def test_explain_says_yes_only_to_what_is_enforced() -> None:
    policy = Policy.model_validate({"limits": {"memory": "1M", "pids": 9, "cpu": 50, "wall": 5}})
    assert set(verdicts(policy).values()) == {"yes"}
    weaker = verdicts(
        policy, memory="process", pids="none", seccomp=0, landlock={"abi": 0, "used": 0}, missing=["cpu.max"],
        **{"user-namespace": True},
    )  # fmt: skip
    assert weaker["memory"] == weaker["account"] == "partly"
    assert weaker["pids"] == weaker["system calls"] == weaker["files, second wall"] == weaker["cpu"] == "no"
    assert verdicts(policy, landlock={"abi": 3, "used": 3})["files, second wall"] == "yes"
    assert verdicts(policy, network="host", landlock={"abi": 3, "used": 3})["abstract sockets of the host"] == "no"
    assert verdicts(policy, network="host")["abstract sockets of the host"] == "yes"


def test_explain_names_hidden_paths_that_may_appear() -> None:
    policy = Policy.model_validate({"read-only": ["/etc"], "hide": ["/etc/a/", "/etc/b"], "protect": ["/etc/c"]})
    assert verdicts(policy)["hidden and protected paths"] == "yes"
    row = next(row for row in rows(policy, {**FACTS, "absent": ["/etc/a", "/etc/c"]}) if row.what.startswith("hidden"))
    assert row.enforced == "partly"
    assert "/etc/a/" in row.how
    assert "/etc/b" not in row.how


def test_explain_admits_that_writable_paths_have_no_quota() -> None:
    open_ended = Policy.model_validate({"read-write": ["/work"]})
    assert verdicts(open_ended)["disk, writable paths"] == "no"
    assert verdicts(open_ended)["time"] == "no"
    bounded = Policy.model_validate({"read-write": ["/work"], "limits": {"file-size": "1M"}})
    assert verdicts(bounded)["disk, writable paths"] == "partly"


def test_an_overlay_of_a_command_is_strict() -> None:
    with pytest.raises(ValueError):
        Overlay.model_validate({"user": 1000})
