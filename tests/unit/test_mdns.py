"""mdns.toml, what the process is told, and what it makes of damage."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.tomlfile import parse
from daemon.core.part import Context
from daemon.parts.mdns.part import MdnsFile, MdnsPart
from daemon.parts.mdns.process import read
from daemon.parts.mdns.verbs import _found, _status

PATH = Path("mdns.toml")


def test_the_default_announces_ssh_under_the_systems_name(tmp_path):
    part = MdnsPart(Context(run=tmp_path, etc=tmp_path), tmp_path / "nobody")
    asyncio.run(part.refresh())
    told = json.loads((tmp_path / "mdns.json").read_text())
    host = Path("/proc/sys/kernel/hostname").read_text().strip().partition(".")[0]
    assert (told["enabled"], told["hostname"], told["interfaces"]) == (True, host, [])
    assert [(one["type"], one["port"]) for one in told["services"]] == [("_ssh._tcp", 22)]
    assert read(tmp_path / "mdns.json") == told


@pytest.mark.parametrize(
    "text",
    [
        "hostname = 'a.b'",
        "hostname = '-a'",
        "interfaces = ['eth0/x']",
        "[services.a]\ntype = 'http'\nport = 80",
        "[services.a]\ntype = '_http._sctp'\nport = 80",
        "[services.a]\ntype = '_http._tcp'\nport = 0",
        "[services.a]\ntype = '_http._tcp'\nport = 80\nunit = '../x'",
        "[services.a]\ntype = '_http._tcp'\nport = 80\nname = \"a\\nb\"",
        "[services.a]\ntype = '_http._tcp'\nport = 80\ntxt = { 'a=b' = 'c' }",
        "[services.a]\ntype = '_http._tcp'\nport = 80\ntxt = { a = 1 }",
        "enabled = 1",
    ],
)
def test_mistakes(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH, MdnsFile)
    assert caught.value.reason == "config-value"


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=80), st.dictionaries(st.text(), st.none()).map(lambda x: json.dumps(x).encode())))
def test_a_damaged_file_means_the_default(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("mdns") / "mdns.json"
    path.write_bytes(data)
    assert read(path)["services"][0]["type"] == "_ssh._tcp"
    assert read(path.with_name("missing"))["enabled"] is True


def test_strangers_do_not_write_to_the_terminal():
    row = {"name": "\x1b[2Jx", "host": "h\n", "port": 1, "addresses": ["192.0.2.1"], "txt": {"k\x07": "\x9b1m"}}
    shown = _found({"services": [row]})
    assert not any((ord(char) < 32 and char != "\n") or 127 <= ord(char) < 160 for char in shown)
    assert len(shown.splitlines()) == 2


def test_a_new_name_is_told():
    names = {"running": True, "enabled": True, "addresses": [], "services": [], "problem": None}
    same = _status({**names, "wanted": "a.local", "host": "a.local"})
    assert len(_status({**names, "wanted": "a.local", "host": "a-2.local"})) > len(same) + 2
