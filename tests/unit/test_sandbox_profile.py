"""Profiles: what is shipped, what local files may change, and what happens when they are broken."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from common.errors import ConfigError, NotFoundError, RefusedError
from daemon.core.part import Context
from daemon.core.profiles import SHIPPED, ProfileFile, load_profile, names, read_profile
from daemon.linux.sandbox.compile import compile_policy
from daemon.linux.sandbox.policy import Access, Limits

SHIPPED_NAMES = ["build", "minimal", "network", "package-script", "service", "strict", "tool", "update-hook"]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "etc" / "profiles").mkdir(parents=True)
    return Context(run=tmp_path / "run", state=tmp_path / "state", etc=tmp_path / "etc", lib=tmp_path / "lib")


def write(context: Context, name: str, text: str) -> None:
    (context.etc / "profiles" / f"{name}.toml").write_text(text)


def test_what_is_shipped(context: Context) -> None:
    assert names(context) == SHIPPED_NAMES == sorted(path.stem for path in SHIPPED.glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_each_shipped_profile_compiles_and_shows_no_secret(context: Context, name: str) -> None:
    policy = load_profile(context, name).for_account(1000, 1000)
    if policy.network == "proxy":
        policy = policy.model_copy(update={"proxy_socket": "/run/proxy.sock"})
    assert compile_policy(policy, architecture="aarch64") != compile_policy(policy, architecture="x86_64")
    secrets = (
        "/etc/shadow",
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssl/private/key",
        "/root/.ssh",
        "/run/mixos/mixosd.sock",
    )
    assert {policy.access(path) for path in secrets} == {Access.NONE}
    assert not policy.capabilities
    assert not policy.read_write
    assert (name == "service") == (policy.limits == Limits())  # a service's are its unit's


def test_strict_refuses_what_cannot_be_enforced(context: Context) -> None:
    assert set(load_profile(context, "strict").require) == {"landlock", "memory", "pids", "account"}


def test_a_local_profile_extends(context: Context) -> None:
    write(context, "mine", 'extends = "tool"\nread-only = ["/opt"]\nnetwork = "host"\n[limits]\npids = 10\n')
    mine, tool = read_profile(context, "mine"), load_profile(context, "tool")
    assert set(mine.policy.read_only) == {*tool.read_only, "/opt"}
    assert (mine.policy.network, mine.policy.limits.pids) == ("host", 10)
    assert mine.policy.limits.memory == tool.limits.memory
    assert [Path(path).name for path in mine.origin] == ["mine.toml", "tool.toml", "minimal.toml"]


def test_a_local_file_of_a_shipped_name_only_takes_away(context: Context) -> None:
    write(context, "tool", "[limits]\nmemory = '64M'\n")
    assert load_profile(context, "tool").limits.memory == 64 << 20
    assert load_profile(context, "build").limits.memory == 1536 << 20  # it says so itself, as a shipped file may
    write(context, "package-script", 'network = "host"\n')
    with pytest.raises(RefusedError) as caught:
        load_profile(context, "package-script")
    assert caught.value.reason == "policy-loosens"


def test_a_broken_file_leaves_the_last_good_policy_in_force(context: Context) -> None:
    write(context, "tool", 'network = "none"\nsockets = ["unix"]\n')
    good = load_profile(context, "tool")
    for broken in ("sockets = [", 'sockets = ["packet"]', "socket = []", 'network = "host"', "\0"):
        write(context, "tool", broken)
        profile = read_profile(context, "tool")
        assert profile.policy == good
        assert profile.broken is not None
    write(context, "tool", 'seccomp = "strict"\n')
    assert read_profile(context, "tool").broken is None
    assert load_profile(context, "tool").seccomp == "strict"


def test_a_broken_file_without_a_good_one_before_it_stops_everything(context: Context) -> None:
    write(context, "tool", "sockets = [")
    with pytest.raises(ConfigError) as caught:
        load_profile(context, "tool")
    assert caught.value.reason == "config-syntax"
    with pytest.raises(ConfigError):
        load_profile(context, "build")  # which extends it


def test_a_broken_store_of_last_good_ones_is_no_policy(context: Context) -> None:
    write(context, "tool", 'sockets = ["unix"]\n')
    load_profile(context, "tool")
    kept = context.state / "sandbox" / "profiles" / "tool.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    for broken in (b"", b"{", json.dumps({"network": "everything"}).encode(), b"\xff"):
        kept.write_bytes(broken)
        write(context, "tool", "sockets = [")
        with pytest.raises(ConfigError):
            load_profile(context, "tool")


def test_removing_the_local_file_removes_what_it_said(context: Context) -> None:
    write(context, "tool", 'sockets = ["unix"]\n')
    load_profile(context, "tool")
    (context.etc / "profiles" / "tool.toml").unlink()
    assert "inet" in load_profile(context, "tool").sockets
    write(context, "tool", "sockets = [")
    with pytest.raises(ConfigError):
        load_profile(context, "tool")


def test_cycles_and_strangers(context: Context) -> None:
    write(context, "one", 'extends = "two"\n')
    write(context, "two", 'extends = "one"\n')
    with pytest.raises(ConfigError) as caught:
        load_profile(context, "one")
    assert caught.value.reason == "profile-cycle"
    write(context, "three", 'extends = "nobody"\n')
    with pytest.raises(ConfigError) as caught:
        load_profile(context, "three")
    assert caught.value.reason == "profile-missing"
    for name in ("tol", "../tool", "", "tool.toml"):
        with pytest.raises(NotFoundError):
            load_profile(context, name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('asked-read-write = ["/home"]', "config-value"),
        ('proxy-socket = "/tmp/x"', "config-value"),
        ('netwrok = "host"', "config-unknown-key"),
        ('extends = "tool"\nread-write = ["/usr"]', "config-value"),
    ],
)
def test_what_a_file_may_not_say(context: Context, text: str, reason: str) -> None:
    write(context, "mine", text)
    with pytest.raises(ConfigError) as caught:
        load_profile(context, "mine")
    assert caught.value.reason == reason
    assert "mine.toml" in caught.value.message


# -- the documentation -------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sandbox.md").read_text("utf-8")


def test_every_key_is_documented_and_no_other() -> None:
    keys = {(field.alias or name) for name, field in ProfileFile.model_fields.items()}
    keys |= {f"limits.{field.alias or name}" for name, field in Limits.model_fields.items()}
    keys -= {"limits", "asked-read-only", "asked-read-write", "proxy-socket"}
    table = PAGE.partition("## Keys of a profile")[2].partition("\n## ")[0]
    assert {
        key for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`(.*?)`", row)
    } == keys


def test_the_examples_are_read(context: Context) -> None:
    found = dict(re.findall(r"```toml\n# (\w+)\.toml\n(.*?)```", PAGE, re.DOTALL))
    assert set(found) == {"profile", "overlay"}
    write(context, "mine", found["profile"])
    assert load_profile(context, "mine").access("/var/cache/linter/.git/hooks/x") is Access.READ
    write(context, "tool", found["overlay"])
    assert load_profile(context, "tool").sockets == ("unix",)


def test_every_shipped_profile_is_documented() -> None:
    table = PAGE.partition("## Profiles")[2].partition("\n\nA profile of your own")[0]
    assert sorted(re.findall(r"^\| `([a-z-]+)`", table, re.MULTILINE)) == SHIPPED_NAMES
