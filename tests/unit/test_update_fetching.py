"""The daemon's side of `mixos-fetch`: a socket that somebody answers on, and a release that is taken from there."""

import asyncio
import json
import os
import random
import sys
from functools import partial
from pathlib import Path

import pytest

from common.bundle.ranges import Files, Ranges
from common.errors import ConfigError, MixosError
from daemon.parts.update import fetching as module
from daemon.parts.update import taking
from daemon.parts.update.fetching import check_certificates, fetching, settings
from tests import updatepart, webserver
from tests.fetching import program
from tests.hostpackages import ROOT
from tests.offers import offer, order_for, root_of
from tests.slots import Device
from tests.updatepart import ask
from tests.webserver import Web

FILE = "/mixos-1.1.mixb"
PEM = """\
# ours
-----BEGIN CERTIFICATE-----
MIIBszCCAVmgAwIBAgIUYzAA
-----END CERTIFICATE-----
"""


def asked(kind, told, ask):
    """What `ask` finds when it is given the socket."""

    async def life():
        async with asyncio.timeout(60), fetching(kind, told, program()) as channel:
            return await asyncio.to_thread(ask, channel)

    return asyncio.run(life())


def test_ranges_and_files_are_had_through_it(monkeypatch):
    data = random.Random(1).randbytes(300_000)
    web, heard = Web({FILE: data}), []
    monkeypatch.setattr(module, "log", lambda level, words: heard.append((level, words)))
    with web.serving() as url:
        web.faults = [webserver.faults(random.Random(1))["busy"]]
        told = {"url": url + FILE, "headers": {"Authorization": "Bearer x"}, "rate": 10_000_000}
        assert asked("ranges", told, lambda one: Ranges(one, one).read(5, 200_000)) == data[5:200_005]
        assert [level for level, _ in heard] == ["notice"]
        assert web.asked[-1].fields["authorization"] == "Bearer x"
        assert asked("files", {"url": url}, lambda one: Files(one, one).get(FILE[1:], 300_000)) == data


def test_what_it_refuses_is_told_at_once():
    with pytest.raises(MixosError) as caught:
        asked("ranges", {"url": "ftp://example.org/"}, lambda one: None)
    assert caught.value.reason == "source-order"


def test_who_asks_sees_that_it_has_ended():
    def ask(one):
        os.write(one, bytes(12))  # for no byte
        Ranges(one, one).read(0, 1)

    with pytest.raises(MixosError) as caught:
        asked("ranges", {"url": "http://127.0.0.1:9/"}, ask)
    assert caught.value.reason == "source-gone"


@pytest.mark.parametrize(("script", "reason"), [("exit 0", "program-failed"), ("echo nonsense", "program-failed")])
def test_one_that_is_not_ready_is_no_source(script, reason):
    async def life():
        async with fetching("ranges", {"url": "http://127.0.0.1:9/"}, ("/bin/sh", "-c", script)):
            pass

    with pytest.raises(MixosError) as caught:
        asyncio.run(life())
    assert caught.value.reason == reason


def test_one_that_talks_without_end_is_ended(monkeypatch):
    heard = []
    monkeypatch.setattr(module, "log", lambda level, words: heard.append(level))
    script = "while echo '{\"odd\": 1}'; do :; done"

    async def life():
        async with asyncio.timeout(60), fetching("files", {}, ("/bin/sh", "-c", script)) as channel:
            await asyncio.to_thread(os.read, channel, 1)  # the end

    asyncio.run(life())
    assert heard == ["notice"] * module._MAX_FAILURES + ["err"]


def test_it_ends_with_who_needed_it():
    web = Web({FILE: bytes(100)})
    with web.serving() as url:

        def children():
            return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

        def ask(one):
            assert Ranges(one, one).read(0, 10) == bytes(10)
            return children()

        others = children()  # of other tests
        needed = asked("ranges", {"url": url + FILE}, ask) - others
    assert needed
    for pid in map(int, needed):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_certificates_of_the_device_go_with_every_fetch(tmp_path):
    assert settings(tmp_path) == {}
    (tmp_path / "update.pem").write_text(PEM)
    assert settings(tmp_path) == {"ca": PEM}
    (tmp_path / "update.pem").unlink()
    (tmp_path / "update.pem").mkdir()
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path)
    assert caught.value.reason == "update-certificates"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        PEM.replace("MII", "abc"),
        PEM.replace("MII", "M"),
        PEM.replace("-----END", ""),
        PEM + "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
    ],
)
def test_what_is_no_certificate_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        check_certificates(text, Path("update.pem"))
    assert caught.value.reason == "update-certificates"


# -- the part --------------------------------------------------------------------------------------------------------


def stands_in(code):
    """A program in the place of those that judge and write, which are tested elsewhere."""
    text = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from common.bundle.ranges import Ranges
from common.errors import MixosError
try:
    data = Ranges(0, 0).read(0, 1 << 20)
except MixosError as error:
    print(json.dumps({{"error": error.as_json()}}))
    sys.exit(error.exit_code)
{code}
"""
    return (sys.executable, "-c", text)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return offer(tmp_path_factory.mktemp("offer"), "1.1.0")


@pytest.fixture
def taken(tmp_path, bundle, monkeypatch):
    """What a call of `update.fetch` yields."""
    monkeypatch.setattr(taking, "ACCOUNT", "root")  # this host has no account of its own for it
    device = Device(tmp_path, "1.0.0", root_of("1.0.0"))
    device.boot()
    order = tmp_path / "order"
    order.write_text(order_for(bundle[1], bundle[2], bytes(32)).dump())
    base = device.tree
    context = updatepart.context_of(base)
    context.etc.mkdir(parents=True, exist_ok=True)
    release = stands_in(f"print(json.dumps({{'order': open({str(order)!r}).read()}}))")
    slots = stands_in(
        "print(json.dumps({'step': 'root', 'done': 1, 'of': 1, 'fetched': len(data)}), '{\"slot\": \"b\"}', sep='\\n')"
    )

    def call(**params):
        scenario = partial(ask, name="fetch", **params)
        return updatepart.run(base, scenario, context, slots=slots, release=release, fetch=program())

    call.etc = context.etc
    return call


def test_a_release_is_taken_from_a_web_server(taken, bundle):
    data = bundle[0].read_bytes()
    web = Web({FILE: data})
    with web.serving() as url:
        steps = taken(url=url + FILE, rate=100_000_000)
    assert [step["step"] for step in steps] == ["start", "root", "staged"]
    assert steps[1]["fetched"] == len(data[: 1 << 20])
    assert (steps[-1]["version"], steps[-1]["slot"]) == ("1.1.0", "b")


def test_it_goes_through_the_devices_proxy(taken, bundle):
    web = Web({FILE: bundle[0].read_bytes()})
    with web.serving() as url:
        (taken.etc / "proxy.toml").write_text(f"http = {json.dumps(url)}\n")
        taken(url="http://example.invalid" + FILE)
    assert web.asked[0].target == "http://example.invalid" + FILE


def test_what_a_server_says_reaches_who_asked(taken):
    web = Web({})
    with web.serving() as url, pytest.raises(MixosError) as caught:
        taken(url=url + FILE)
    assert caught.value.reason == "source-missing"


@pytest.mark.parametrize("url", ["ftp://a/", "http://me:word@a/", "http://a b/", "http://"])
def test_addresses_that_are_none_are_refused_before_anything_happens(taken, url):
    with pytest.raises(ValueError):
        taken(url=url)
