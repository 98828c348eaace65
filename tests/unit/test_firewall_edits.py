"""What commands write into firewall.toml and the lists; parameters; the operator's connection; what is kept on disk."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import ConfigError, MixosError, NotFoundError, RefusedError
from common.tomlfile import parse
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.parts.firewall import edits, forwarding, lists, requests
from daemon.parts.firewall import verbs as cli
from daemon.parts.firewall.decide import Packet
from daemon.parts.firewall.model import Config
from daemon.parts.firewall.operator import connection
from daemon.parts.firewall.policy import Policy, Source, default_text, resolve
from daemon.parts.firewall.store import Store, digest

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
        (requests.Change, {"confirm": 4}),
        (requests.Change, {"confirm": 3601}),
        (requests.Change, {"confirm": True}),
        (requests.Change, {"force": 1}),
        (requests.Change, {"connection": "x" * 201}),
        (requests.Block, {"addresses": ["192.0.2.1"] * 2001}),
        (requests.ForwardPort, {"zone": "wan", "port": "tcp/1", "to": "0.0.0.0"}),
        (requests.EditZone, {"name": "Lan"}),
        (requests.EditZone, {"name": "lan", "interfaces": ["eth0\n"]}),
    ],
)
def test_parameters_out_of_bounds(model, keys):
    with pytest.raises(ValidationError):
        model.model_validate(keys)


# -- the operator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "text", "packet"),
    [
        ("local (claimed)", None, None),
        ("local (claimed)", "203.0.113.9 50000 127.0.0.1 2222", Packet("203.0.113.9", "tcp", 2222, "lo")),
        ("ssh 203.0.113.9 (claimed)", None, Packet("203.0.113.9", "tcp", 22)),
        ("ssh ::ffff:203.0.113.9 (claimed)", None, Packet("203.0.113.9", "tcp", 22)),
        ("ssh fe80::1%eth3 (claimed)", None, Packet("fe80::1", "tcp", 22, "eth3")),
        ("ssh 203.0.113.9 (claimed)", "garbage", Packet("203.0.113.9", "tcp", 22)),
        ("ssh 203.0.113.9 (claimed)", "a b c d", Packet("203.0.113.9", "tcp", 22)),
        ("ssh 203.0.113.9 (claimed)", "1.1.1.1 1 1.1.1.2 ٢٢", Packet("203.0.113.9", "tcp", 22)),
        ("ssh nonsense (claimed)", None, None),
    ],
)
def test_the_operators_connection(origin, text, packet):
    assert connection(Caller(Role.ADMIN, 1000, 1000, 1, "admin", origin), text) == packet


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_no_connection_text_is_a_crash(origin, text):
    connection(Caller(Role.ADMIN, 1000, 1000, 1, "admin", origin), text)


# -- what is kept ----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    context = Context(*(tmp_path / name for name in ("run", "state", "etc", "lib", "log")))
    store = Store(context)
    store.prepare()
    return store


def test_a_waiting_change_is_found_again_with_the_time_that_is_left(store):
    source = Source("x = 1\n", {"a.txt": "1.1.1.1\n"})
    store.wait_for(source, 60, "admin")
    found = store.pending()
    assert found is not None
    assert found.source == source
    assert 0 < found.left <= 60


def test_a_reboot_leaves_no_time(store):
    store.wait_for(Source("x"), 60, "admin")
    path = store.folder / "pending.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "another"}))
    found = store.pending()
    assert found is not None
    assert found.left == 0


@settings(deadline=None)
@given(data=st.one_of(st.binary(max_size=60), st.recursive(st.none() | st.text() | st.floats(), st.lists).map(repr)))
def test_damaged_files_are_as_good_as_none(tmp_path_factory, data):
    store = Store(Context(*([tmp_path_factory.mktemp("store")] * 5)))
    store.prepare()
    for name in ("good.json", "pending.json", "committed.json", "refused"):
        (store.folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    assert store.good() is None
    assert store.pending() is None
    store.finish_commit()
    assert not store.refused(Source("x"))


def test_files_are_secret_and_the_next_start_is_ready(store):
    source = Source("text\n", {"a.txt": "1.1.1.1\n"})
    store.refuse(source)
    store.wait_for(source, 9, "admin")
    store.commit()
    store.finish_commit()
    store.keep(source, b"{}")
    assert store.config.read_text() == "text\n"
    assert (store.lists / "a.txt").read_text() == "1.1.1.1\n"
    assert store.good() == source
    assert not store.refused(source)
    assert store.pending() is None
    assert {path.stat().st_mode & 0o777 for path in [store.compiled, *store.folder.iterdir()]} == {0o600}
    assert digest(source) != digest(Source("text\n"))


def test_a_deadline_is_on_the_clock_that_nobody_sets(store):
    assert abs(store.wait_for(Source(""), 9, "x").deadline - time.clock_gettime(time.CLOCK_BOOTTIME) - 9) < 5


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
    [(b"203.0.113.1\n\xff\n", "config-unreadable"), (b"203.0.113.1\nnonsense\n", "firewall-list")],
)
def test_a_list_that_is_none_is_refused_with_its_line(data, reason):
    with pytest.raises(ConfigError) as caught:
        lists.entries(data)
    assert caught.value.reason == reason
    assert reason != "firewall-list" or caught.value.message.startswith("line 2:")


def test_a_list_goes_as_a_descriptor(monkeypatch, tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("203.0.113.1 # one\n2001:db8::/32\n")
    sent: list[tuple[str, dict[str, Any], bytes]] = []

    def ask(name: str, params: dict[str, Any], *, descriptors: list[int], **_: object) -> dict[str, Any]:
        sent.append((name, params, os.pread(descriptors[0], 100, 0)))
        return {"applied": False, "diff": ""}

    monkeypatch.setattr(cli, "ask", ask)
    done = CliRunner().invoke(cli.firewall, ["block", "192.0.2.1", "--list", "mine", "--file", str(file), "--dry-run"])
    assert done.exit_code == 0, done.exception
    name, params, data = sent[0]
    params.pop("connection", None)
    assert name == "firewall.block"
    assert {**params} == {
        "addresses": ("192.0.2.1",),
        "content": 0,
        "list": "mine",
        "take": False,
        "dry-run": True,
        "force": False,
    }
    assert lists.entries(data) == ("203.0.113.1", "2001:db8::/32")
