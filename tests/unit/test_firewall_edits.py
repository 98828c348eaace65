"""What commands write into firewall.toml and the lists; parameters; the operator's connection; what is kept on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import ConfigError, MixosError, NotFoundError, RefusedError
from common.tomlfile import parse
from daemon.client.cli.content import opened
from daemon.core.change.applier import View
from daemon.core.method import Caller, Handler, Role
from daemon.core.part import Context
from daemon.parts.firewall import edits, forwarding, lists, requests
from daemon.parts.firewall import verbs as cli
from daemon.parts.firewall.migrate import migrate
from daemon.parts.firewall.model import Config
from daemon.parts.firewall.part import Firewall
from daemon.parts.firewall.policy import FILE, Policy, Source, default_text, resolve

PATH = Path("firewall.toml")


def edit(how: Any, source: Source, model: Any, **keys: object) -> Source:
    wish = model.model_validate(keys)
    more = [wish.addresses] if model is requests.Block else []
    new: Source = how(source, parse(source.text, PATH, Config), wish, *more)
    resolve(new, PATH)
    return new


def config(source: Source) -> Config:
    return resolve(source, PATH).config


DEFAULT = Source(default_text())


def test_a_rule_is_added_and_removed_without_a_trace():
    added = edit(
        edits.allow, DEFAULT, requests.Allow, service="https", zone="wan", limit="5/second", **{"from": ["::1"]}
    )
    rule = config(added).rules["allow-https-wan"]
    assert (rule.service, rule.zone, rule.sources, rule.limit) == ("https", "wan", ("::1",), "5/second")
    assert added.text.startswith(DEFAULT.text.rstrip("\n"))
    assert edit(edits.remove, added, requests.Remove, name="allow-https-wan").text == DEFAULT.text


def test_names_are_made_and_never_shared():
    once = edit(edits.deny, DEFAULT, requests.Deny, service="tcp/25", reject=True)
    twice = edit(edits.deny, once, requests.Deny, service="tcp/25")
    assert [rule.action for rule in config(twice).rules.values()] == ["reject", "deny"]
    with pytest.raises(RefusedError) as caught:
        edit(edits.deny, once, requests.Deny, service="tcp/25", name=next(iter(config(once).rules)))
    assert caught.value.reason == "firewall-exists"


# case: N19
@pytest.mark.parametrize(
    ("how", "model", "keys"),
    [
        (edits.allow, requests.Allow, {"service": "https", "zone": "wan", "from": ["::1", "192.0.2.0/24"]}),
        (edits.deny, requests.Deny, {"service": "tcp/25", "reject": True}),
        (edits.forward, requests.ForwardPort, {"zone": "wan", "port": "tcp/80", "to": "192.0.2.5", "to-port": 8080}),
        (edits.nat, requests.Translate, {"from": "lan", "to": "wan", "masquerade": False}),
        (edits.zone, requests.EditZone, {"name": "lan", "interfaces": ["eth0"], "allow": ["http"]}),
        (edits.block, requests.Block, {"addresses": ["192.0.2.1"]}),
    ],
)
def test_the_same_again_changes_nothing(how, model, keys):
    once = edit(how, DEFAULT, model, **keys)
    again = dict(keys, **{"from": keys["from"][::-1]} if isinstance(keys.get("from"), list) else {})
    assert edit(how, once, model, **again) == once
    if "name" in model.model_fields and model is not requests.EditZone:
        named = edit(how, once, model, **keys, name="mine")
        assert named != once
        assert edit(how, named, model, **keys, name="mine") == named


def test_forward_and_nat():
    source = edit(edits.zone, DEFAULT, requests.EditZone, name="home", interfaces=["eth1"])
    source = edit(edits.nat, source, requests.Translate, **{"from": "home", "to": "wan"})
    keys = {"zone": "wan", "port": "tcp/8080", "to": "2001:db8::5", "to-port": 80}
    source = edit(edits.forward, source, requests.ForwardPort, **keys)
    found = config(source)
    assert found.nat["home-to-wan"].masquerade
    assert [(one.to, one.to_port) for one in found.forwards.values()] == [("2001:db8::5", 80)]
    assert found.zones["home"].interfaces == ("eth1",)


def test_zones_gain_and_lose():
    source = edit(edits.zone, DEFAULT, requests.EditZone, name="lan", interfaces=["eth0"], allow=["http"], default=True)
    assert config(source).zones["lan"].allow == ("ssh", "mdns", "http")
    source = edit(edits.zone, source, requests.EditZone, name="lan", interfaces=["eth0"], allow=["mdns"], take=True)
    assert config(source).zones["lan"].allow == ("ssh", "http")
    assert config(source).zones["lan"].interfaces == ()
    with pytest.raises(NotFoundError):
        edit(edits.zone, source, requests.EditZone, name="lan", interfaces=["eth7"], take=True)


@pytest.mark.parametrize(
    ("name", "keys", "there"),
    [
        ("allow", {"service": "ssh", "zone": "nosuch"}, "vpn"),
        ("allow", {"service": "nosuch"}, "https"),
        ("deny", {"service": "ssh", "from": ["@nosuch"]}, "mine"),
        ("nat", {"from": "lan", "to": "nosuch"}, "vpn"),
        ("zone", {"name": "home", "interfaces": ["eth7"]}, "guests"),
    ],
)
def test_a_command_that_cannot_be_meant_names_what_there_is_and_no_line(tmp_path, name, keys, there):
    """The line would be one of a file that is never written."""
    (tmp_path / "firewall.toml").write_text(DEFAULT.text + '[zones.guests]\ninterfaces = ["eth7"]\n[lists.mine]\n')
    with pytest.raises(RefusedError) as caught:
        command(tmp_path, name, keys)
    assert caught.value.reason == "firewall-reference"
    assert there in caught.value.message
    assert "firewall.toml" not in caught.value.message


def test_a_mistake_that_the_file_had_before_is_not_the_commands(tmp_path):
    (tmp_path / "firewall.toml").write_text(DEFAULT.text + '[rules.a]\nservice = "ssh"\nzone = "nosuch"\n')
    assert command(tmp_path, "zone", {"name": "home"})["changed"]  # the part would refuse it, and name its line


def command(folder: Path, name: str, keys: Mapping[str, object]) -> Any:
    """Call a method of a part that has not started, which puts nothing in force."""
    part = Firewall(Context(run=folder, state=folder, etc=folder))
    (method,) = (one for one in part.methods() if one.name == f"firewall.{name}")
    handler = cast("Handler[Any, Any]", method.handler)
    return asyncio.run(handler(Caller(Role.ADMIN, 0, 0, 1, "ada", "local"), method.params.model_validate(keys)))


def test_comments_of_the_file_survive_every_command():
    text = DEFAULT.text + "# last words\n"
    source = edit(edits.allow, Source(text), requests.Allow, service="dns")
    source = edit(edits.zone, source, requests.EditZone, name="vpn", allow=["dns"])
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in source.text.splitlines() if line.startswith("#")
    ]


def test_a_layout_that_cannot_be_edited_is_refused():
    source = Source("zones.lan.allow = ['ssh']\nrules = { a = { service = 'ssh' } }\n")
    for how, model, keys in (
        (edits.allow, requests.Allow, {"service": "dns"}),
        (edits.remove, requests.Remove, {"name": "a"}),
    ):
        with pytest.raises(RefusedError) as caught:
            edit(how, source, model, **keys)
        assert caught.value.reason == "config-edit"


def test_what_is_not_there_cannot_be_removed_and_what_is_ambiguous_is_asked():
    with pytest.raises(NotFoundError):
        edit(edits.remove, DEFAULT, requests.Remove, name="nothing")
    both = edit(edits.allow, DEFAULT, requests.Allow, service="dns", name="x")
    both = edit(edits.block, both, requests.Block, list="x", addresses=["192.0.2.1"])
    with pytest.raises(RefusedError) as caught:
        edit(edits.remove, both, requests.Remove, name="x")
    assert caught.value.reason == "firewall-ambiguous"
    assert "x" not in config(edit(edits.remove, both, requests.Remove, name="lists.x")).lists


def test_blocking_writes_the_list_and_keeps_its_comments():
    source = edit(edits.block, DEFAULT, requests.Block, addresses=["192.0.2.1", "2001:db8::/32"])
    assert source.lists == {"blocked.txt": "192.0.2.1\n2001:db8::/32\n"}
    source = Source(source.text, {"blocked.txt": "# why\n" + source.lists["blocked.txt"] + "192.0.2.9 # odd"})
    source = edit(edits.block, source, requests.Block, addresses=["192.0.2.1", "192.0.2.7"])
    assert source.lists["blocked.txt"] == "# why\n192.0.2.1\n2001:db8::/32\n192.0.2.9 # odd\n192.0.2.7\n"
    source = edit(edits.block, source, requests.Block, addresses=["192.0.2.1", "192.0.2.9"], take=True)
    assert source.lists["blocked.txt"] == "# why\n2001:db8::/32\n192.0.2.7\n"
    for address, take, reason in (("x", False, "firewall-address"), ("192.0.2.1", True, "firewall-missing")):
        with pytest.raises(MixosError) as caught:
            edit(edits.block, source, requests.Block, addresses=[address], take=take)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        (requests.Allow, {"service": "ssh; drop"}),
        (requests.Allow, {"service": "ssh", "name": "a]\nx"}),
        (requests.Apply, {"confirm": -1}),
        (requests.Apply, {"confirm": 3601}),
        (requests.Apply, {"confirm": True}),
        (requests.Apply, {"force": 1}),
        (requests.Block, {"addresses": ["192.0.2.1"] * 2001}),
        (requests.ForwardPort, {"zone": "wan", "port": "tcp/1", "to": "0.0.0.0"}),
        (requests.EditZone, {"name": "Lan"}),
        (requests.EditZone, {"name": "lan", "interfaces": ["eth0\n"]}),
    ],
)
def test_parameters_out_of_bounds(model, keys):
    with pytest.raises(ValidationError):
        model.model_validate(keys)


# -- what version 0.1 kept -------------------------------------------------------------------------------------------


def kept(tmp_path: Path, **files: object) -> Context:
    context = Context(*(tmp_path / name for name in ("run", "state", "etc", "lib", "log")))
    (context.state / "firewall").mkdir(parents=True)
    (context.etc / "lists").mkdir(parents=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (context.state / "firewall" / name.replace("_", ".")).write_text(text)
    return context


def memory(context: Context) -> tuple[Any, bool]:
    changes = context.changes
    return changes.memory.good("firewall"), changes.memory.refused("firewall", View(changes.places))


def test_the_last_good_source_is_taken_over(tmp_path):
    context = kept(tmp_path, good_json={"text": "x = 1\n", "lists": {"a.txt": "1.1.1.1\n"}})
    migrate(context)
    assert memory(context) == ({FILE: b"x = 1\n", "etc/mixos/lists/a.txt": b"1.1.1.1\n"}, False)
    assert not (context.state / "firewall").exists()
    migrate(context)  # once is enough
    assert memory(context)[0]


def test_a_confirmed_change_whose_files_are_missing_is_written(tmp_path):
    context = kept(tmp_path, committed_json={"source": {"text": "x = 2\n", "lists": {"a.txt": "1.1.1.1\n"}}})
    migrate(context)
    assert (context.etc / "firewall.toml").read_text() == "x = 2\n"
    assert (context.etc / "lists/a.txt").read_text() == "1.1.1.1\n"


@pytest.mark.parametrize("how", ["pending", "refused"])
def test_what_was_not_confirmed_stays_refused(tmp_path, how):
    text = "[zones.lan]\n"
    source = {"text": text, "lists": {}}
    digest = hashlib.sha256(json.dumps(source).encode()).hexdigest()
    files = (
        {"pending_json": {"source": source, "boot": "x", "deadline": 1.0}} if how == "pending" else {"refused": digest}
    )
    context = kept(tmp_path, **files)
    (context.etc / "firewall.toml").write_text(text)
    migrate(context)
    assert memory(context) == (None, True)
    (context.etc / "firewall.toml").write_text("[zones.wan]\n")
    assert memory(context) == (None, False)


@settings(deadline=None)
@given(data=st.one_of(st.binary(max_size=60), st.recursive(st.none() | st.text() | st.floats(), st.lists).map(repr)))
def test_damaged_files_are_as_good_as_none(tmp_path_factory, data):
    context = kept(tmp_path_factory.mktemp("kept"))
    for name in ("good.json", "pending.json", "committed.json", "refused"):
        (context.state / "firewall" / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    migrate(context)
    assert memory(context) == (None, False)


# -- routing ---------------------------------------------------------------------------------------------------------


def _policy(text: str) -> Policy:
    return resolve(Source("[zones.lan]\n[zones.wan]\ninterfaces=['e']\n" + text), PATH)


def test_the_kernel_routes_only_while_something_needs_it(tmp_path):
    root = tmp_path / "net"
    for name, value in (("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0"), ("ipv6/conf/e/accept_ra", "1")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(value)
    values = [root / name for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/e/accept_ra")]
    forwarding.switch(_policy("[forwards.a]\nzone='wan'\nport='tcp/1'\nto='192.0.2.1'\n"), tmp_path, root)
    assert [path.read_text().strip() for path in values] == ["1", "0", "1"]
    forwarding.switch(_policy("[nat.a]\nfrom='lan'\nto='wan'\n"), tmp_path, root)
    assert [path.read_text().strip() for path in values] == ["1", "1", "2"]
    forwarding.switch(_policy(""), tmp_path, root)
    assert [path.read_text().strip() for path in values] == ["0", "0", "2"]
    values[0].write_text("1")  # by somebody else
    forwarding.switch(_policy(""), tmp_path, root)
    assert values[0].read_text() == "1"


# -- what the command sends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"203.0.113.1\n\xff\n", "config-encoding"),
        (b"203.0.113.1\nnonsense\n", "firewall-list"),
        (b"# \n", "firewall-list"),
        (b"", "firewall-list"),
    ],
)
def test_a_list_that_is_none_is_refused_with_its_line(data, reason):
    with pytest.raises(ConfigError) as caught:
        lists.entries(data)
    assert caught.value.reason == reason
    assert b"nonsense" not in data or caught.value.message.startswith("line 2:")


# case: B7
def test_a_list_with_a_byte_order_mark():
    assert lists.entries(b"\xef\xbb\xbf203.0.113.1\r\n") == ("203.0.113.1",)


@pytest.mark.parametrize("reason", ["firewall-list", "transfer-too-big"])
def test_what_the_daemon_says_of_a_file_has_its_name(tmp_path, reason):
    with pytest.raises(MixosError) as caught, opened(os.fspath(tmp_path)):
        raise RefusedError("it is wrong", reason=reason)
    assert caught.value.message.startswith(f"{tmp_path}: ")


def test_a_list_goes_as_a_descriptor(monkeypatch, tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("203.0.113.1 # one\n2001:db8::/32\n")
    sent: list[tuple[str, dict[str, Any], bytes]] = []

    def ask(name: str, params: dict[str, Any], *, descriptors: list[int], **_: object) -> dict[str, Any]:
        sent.append((name, params, os.pread(descriptors[0], 100, 0)))
        return {"applied": False, "diff": "", "files": "", "steps": [], "cuts-off": False}

    monkeypatch.setattr(cli, "ask", ask)
    done = CliRunner().invoke(cli.firewall, ["block", "192.0.2.1", "--list", "mine", "--file", str(file), "--dry-run"])
    assert done.exit_code == 0, done.exception
    name, params, data = sent[0]
    assert name == "firewall.block"
    assert {**params} == {
        "addresses": ("192.0.2.1",),
        "content": 0,
        "list": "mine",
        "dry-run": True,
    }
    assert lists.entries(data) == ("203.0.113.1", "2001:db8::/32")
