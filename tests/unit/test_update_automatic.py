"""What a device does by itself about releases: when it asks, fetches, applies, and what holds it back."""

import asyncio
from itertools import pairwise
from types import SimpleNamespace

import pytest

from common.efi.entries import GOOD, Entry
from common.errors import MixosError
from common.settings.update import Update as Settings
from daemon.parts.update import automatic as module
from daemon.parts.update.automatic import AGAIN, EVERY, FRESH, Automatic
from daemon.parts.update.identity import FILE, identity
from daemon.parts.update.starts import way_out

OFFER = {"version": "1.1", "root-hash": "bb", "transfer": 100, "bundle": "mixos-1.1.mixb"}


def row(version="1.1", reason=None):
    return {"version": version, "reason": reason, "why": reason}


class Part:
    """Stands in for what it asks: remembers what it is asked to do."""

    def __init__(self, base, settings):
        self.starts = self
        self.root, self.context = base, SimpleNamespace(state=base / "state")
        self.wanted, self.well, self.checked = settings, True, None
        running = SimpleNamespace(digest="aa", entry=Entry("aaaaa", GOOD))
        self.boot = SimpleNamespace(images=[running], running=running)
        self.records = SimpleNamespace(now=SimpleNamespace(staged=None))
        self.answer = {"channel": "http://a", "offer": OFFER, "candidates": [row()]}
        self.failing = None
        self.done = []

    def settings(self):
        return self.wanted

    async def check(self):
        self.done.append("check")
        if self.failing == "check":
            raise MixosError("no", reason="source-unreachable")
        self.checked = self.answer

    async def fetch(self, url, again=False):
        self.done.append(f"fetch {url}")
        assert again
        if self.failing == "fetch":
            raise MixosError("no", reason="source-slow")
        yield {}
        self.stage()

    def stage(self):
        self.records.now.staged = SimpleNamespace(version="1.1", root_hash="bb")

    async def apply(self, who, restart):
        self.done.append(f"apply {restart}")
        self.records.now.staged = None
        self.boot.images.append(SimpleNamespace(digest="bb"))

    def taken(self):
        found, self.done = self.done, []
        return found


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(now=10_000.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: found.now)
    return found


@pytest.fixture
def begun(tmp_path, clock, monkeypatch):
    """Settings → the part and what turns it, after the first minutes."""
    monkeypatch.setattr(Automatic, "_share", lambda self: 0.5)  # one device in 256 does not wait

    def begin(**settings):
        part = Part(tmp_path, Settings("http://a", **settings))
        one = Automatic(part)
        turn(one)
        assert part.taken() == []
        clock.now += 600
        return part, one

    return begin


def turn(one):
    asyncio.run(one._turn())


def test_an_offer_is_fetched_and_waits_for_a_person(begun, clock):
    part, one = begun()
    turn(one)
    assert part.taken() == ["check", "fetch http://a/mixos-1.1.mixb"]
    for _ in range(3):
        clock.now += 60
        turn(one)
    assert part.taken() == []
    clock.now += 1.1 * EVERY
    turn(one)
    assert part.taken() == ["check"]


def test_after_somebody_has_gone_back_nothing_is_fetched_before_the_restart(begun):
    """It would replace the version that the next boot is to start."""
    part, one = begun()
    part.boot.running.entry = part.boot.running.entry.given_up()
    turn(one)
    assert part.taken() == ["check"]


@pytest.mark.parametrize(("apply", "restart"), [("reboot", False), ("window", True)])
def test_it_is_applied_once(begun, clock, apply, restart):
    part, one = begun(apply=apply, when=("00:00-24:00",))
    turn(one)
    assert part.taken() == ["check", "fetch http://a/mixos-1.1.mixb", f"apply {restart}"]
    clock.now += 60
    turn(one)
    assert part.taken() == []


@pytest.mark.parametrize("candidates", [[], [row(reason="paused")], [row("1.0")], [row(reason="wave")]])
def test_what_was_paused_or_withdrawn_meanwhile_is_not_applied(begun, clock, candidates):
    part, one = begun(apply="window", when=("00:00-24:00",))
    part.wanted = Settings("http://a")
    turn(one)
    assert part.taken() == ["check", "fetch http://a/mixos-1.1.mixb"]
    clock.now += FRESH + 1
    part.wanted = Settings("http://a", apply="window", when=("00:00-24:00",))
    part.answer = {**part.answer, "offer": None, "candidates": candidates}
    turn(one)
    assert part.taken() == ["check"]  # asked again, just before
    part.answer = {**part.answer, "candidates": [row()]}
    clock.now += FRESH + 1
    turn(one)
    assert part.taken() == ["check", "apply True"]


def test_what_was_paused_meanwhile_is_not_fetched(begun, clock):
    part, one = begun(max_bytes=99)
    turn(one)
    assert part.taken() == ["check"]
    clock.now += FRESH + 1
    part.wanted = Settings("http://a")
    part.answer = {**part.answer, "offer": None, "candidates": [row(reason="paused")]}
    turn(one)
    assert part.taken() == ["check"]


def test_after_a_failure_it_waits_longer_and_longer(begun, clock):
    for failing in ("check", "fetch"):
        part, one = begun()
        part.failing = failing
        attempts, began = [], clock.now
        for _ in range(24 * 60):
            if clock.now >= one._not_before:
                turn(one)
                attempts += [clock.now - began] if part.taken() else []
            clock.now += 60
        gaps = [later - earlier for earlier, later in pairwise(attempts)]
        assert gaps[:2] == [AGAIN, 2 * AGAIN]
        assert gaps == sorted(gaps)
        assert len(attempts) <= 9
        part.failing = None
        clock.now = one._not_before + EVERY
        turn(one)
        assert part.taken() == ["check", "fetch http://a/mixos-1.1.mixb"]
        part.records.now.staged = None


@pytest.mark.parametrize("settings", [{"fetch": "manual"}, {"max_bytes": 99}, {"metered": ("eth0",)}])
def test_what_holds_an_offer_back(begun, clock, tmp_path, settings):
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/route").write_text(f"{HEAD}eth0\t00000000\t0\t3\t0\t0\t100\t00000000\n")
    part, one = begun(**settings)
    turn(one)
    clock.now += 60
    turn(one)
    assert part.taken() == ["check"]


@pytest.mark.parametrize("what", ["there", "ill", "no channel"])
def test_nothing_is_done(begun, what):
    part, one = begun()
    if what == "there":
        part.boot.images.append(SimpleNamespace(digest="bb"))
    elif what == "ill":
        part.well = False
    else:
        part.wanted = Settings()
    turn(one)
    assert part.taken() == (["check"] if what == "there" else [])


def test_devices_do_not_ask_all_at_once(tmp_path):
    shares = {Automatic(Part(tmp_path / str(number), Settings()))._share() for number in range(40)}
    assert len(shares) > 20


def test_the_identity_is_made_once_and_again_when_it_is_none(tmp_path):
    first = identity(tmp_path / "a")
    assert identity(tmp_path / "a") == first != identity(tmp_path / "b")
    path = tmp_path / "a" / FILE
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("x")
    assert identity(tmp_path / "a") not in ("x", first)


HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n"
FAR, NEAR, LOCAL = (
    "wwan0\t00000000\t0100A8C0\t0003\t0\t0\t700\t00000000\n",
    "eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\n",
    "eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n",
)
NOWHERE = "*\t00000000\t00000000\t0201\t0\t0\t5\t00000000\n"  # ip route add unreachable default metric 5
ANY = "0" * 32


@pytest.mark.parametrize(
    ("four", "six", "expected"),
    [
        ("", "", ""),
        (HEAD + LOCAL + NEAR, "", "eth0"),
        (HEAD + FAR + NEAR, "", "eth0"),
        (HEAD + LOCAL, "", ""),
        (HEAD + NOWHERE + FAR, "", "wwan0"),
        (HEAD + NOWHERE, "", ""),
        ("", f"{ANY} 00 {ANY} 00 {ANY} ffffffff 1 0 00200200 lo\n", ""),
        (HEAD, f"{ANY} 00 {ANY} 00 {'f' * 32} 00000400 1 0 00000003 eth1\n", "eth1"),
    ],
)
def test_the_way_out(tmp_path, four, six, expected):
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/route").write_text(four)
    (tmp_path / "proc/net/ipv6_route").write_text(six)
    assert way_out(tmp_path) == expected
