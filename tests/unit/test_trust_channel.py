"""What a channel offers to which device, when, and why not: waves, pauses, what does not suit, wrong clocks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import TargetFile, Targets

from common.bundle import manifest
from common.errors import MixosError, TrustError
from common.trust import channel
from common.trust.channel import SHARES, Device, Terms, Wave, candidates, check, offered, position
from common.trust.release import Running
from tests.channels import EVERYBODY, HERE, ROOTS, SECONDS, Channel, waves
from tests.releases import NOW, RUNNING, served, text


@pytest.fixture
def shop() -> Channel:
    return Channel()


# -- waves -------------------------------------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_a_position_is_one_of_the_shares(machine, name):
    assert 0 <= position(machine, name) < SHARES


def test_a_share_of_devices_is_that_share():
    """Of 20,000 devices, those below each share are as many, within four standard deviations."""
    places = [position(f"{number:032x}", "release/1.2.3.json") for number in range(20_000)]
    for share in (1, 100, 5000, 9900, SHARES):
        expected = len(places) * share / SHARES
        spread = (expected * (1 - share / SHARES)) ** 0.5
        assert abs(sum(place < share for place in places) - expected) <= 4 * spread + 0.5


def test_the_same_devices_are_not_always_the_first():
    first = [
        {n for n in range(2000) if position(str(n), f"release/{v}.json") < SHARES // 10} for v in ("1.0.0", "1.1.0")
    ]
    assert len(first[0] & first[1]) < len(first[0]) / 3


STEPS = st.lists(st.tuples(st.integers(-1000, 1000), st.integers(0, SHARES)), min_size=1, max_size=6)


@given(STEPS, st.lists(st.integers(-1500, 1500), min_size=2, max_size=5), st.text(min_size=1))
def test_who_is_in_a_wave_stays_in_it(steps, times, machine):
    starts, shares = sorted({start for start, _ in steps}), sorted({share for _, share in steps})
    found = [{"start": SECONDS + a, "share": b} for a, b in zip(starts, shares, strict=False)]
    terms = Terms.of(manifest.parse(text()), tuple(map(Wave.model_validate, found)))
    place = position(machine, "release/1.2.3.json")
    turn = terms.turn(place)
    in_it = [place < terms.share(SECONDS + at) for at in sorted(times)]
    assert in_it == sorted(in_it)
    assert in_it == [turn is not None and turn <= SECONDS + at for at in sorted(times)]
    grown = [one | {"share": (one["share"] + SHARES) // 2} for one in found]
    if len({one["share"] for one in grown}) == len(grown):
        more = Terms.of(manifest.parse(text()), tuple(map(Wave.model_validate, grown)))
        assert all(place < more.share(SECONDS + at) for at, inside in zip(sorted(times), in_it, strict=True) if inside)


def test_a_device_waits_for_its_wave(shop):
    name = "release/1.2.3.json"
    early = next(str(n) for n in range(1000) if position(str(n), name) < 100)
    late = next(str(n) for n in range(1000) if position(str(n), name) >= 5000)
    shop.offer("1.2.3", 5, waves=waves((0, 100), (3600, 5000), (7200, 9000)))
    first, last = (Device(RUNNING, HERE.root_hash, one) for one in (early, late))
    assert shop.judged(first, -1) == {"1.2.3": "wave"}
    assert shop.judged(first) == {"1.2.3": None}
    assert shop.judged(last, 7199) == {"1.2.3": "wave"}
    (found,) = candidates(shop.repository.targets, last, NOW)
    assert found.at == (SECONDS + 7200 if position(late, name) < 9000 else None)


def test_a_device_beyond_all_waves_has_no_turn(shop):
    shop.offer("1.2.3", 5, waves=waves((0, 0)))
    (found,) = candidates(shop.repository.targets, HERE, NOW)
    assert (found.why, found.at) == ("wave", None)


@pytest.mark.parametrize("pairs", [((0, 5), (0, 6)), ((5, 5), (0, 6)), ((0, 5), (1, 5)), ((0, 6), (1, 5)), ()])
def test_waves_only_grow(pairs):
    with pytest.raises(ValueError):
        Terms.of(manifest.parse(text()), waves(*pairs))


# -- which one ---------------------------------------------------------------------------------------------------------


def test_the_newest_that_suits_is_offered(shop):
    shop.offer("1.2.3", 5)
    shop.offer("1.4.0", 7, paused="too many failures")
    shop.offer("1.3.0", 6)
    found = candidates(shop.repository.targets, HERE, NOW)
    assert [(one.version, one.why) for one in found] == [("1.4.0", "paused"), ("1.3.0", None), ("1.2.3", None)]
    best = offered(found)
    assert best is not None
    assert best.version == "1.3.0"


def test_number_decides_not_name(shop):
    shop.offer("9.0.0", 5)
    shop.offer("1.0.0", 6)
    best = offered(candidates(shop.repository.targets, HERE, NOW))
    assert best is not None
    assert best.version == "1.0.0"


CASES: dict[str, tuple[dict[str, Any], Device]] = {
    "machine": ({"machine": "aarch64"}, HERE),
    "variant": ({"variant": "kiosk"}, HERE),
    "runs": ({}, Device(RUNNING, ROOTS["1.2.3"], "x")),
    "floor": ({"sequence": 2}, Device(Running("x86_64", "default", 1, 3), "aa" * 32, "x")),
    "older": ({"sequence": 4}, HERE),
    "blocked": ({}, Device(RUNNING, "aa" * 32, "x", {ROOTS["1.2.3"]: "kernel panic"})),
    "minimum": ({"minimum-sequence": 5}, HERE),
    "paused": ({"paused": "wait"}, HERE),
    "wave": ({"waves": waves((1, SHARES))}, HERE),
    "clock": ({"created": SECONDS + 2 * 86_400}, HERE),
}


@pytest.mark.parametrize("why", CASES)
def test_each_reason(shop, tmp_path, why):
    changes, device = CASES[why]
    shop.offer(
        "1.2.3", changes.get("sequence", 5), **{name: one for name, one in changes.items() if name != "sequence"}
    )
    assert shop.judged(device) == {"1.2.3": why}
    found = check(served(shop.repository.files), shop.anchors, tmp_path / "t", device, NOW)
    assert found.manifest is None
    assert (found.why is None) == (why in ("machine", "variant"))
    assert [one["reason"] for one in found.as_json()["candidates"]] == [why]


FORMS: dict[str, Any] = {
    "later format": {"mixos": {"format": 2}},
    "no table": {"mixos": [1]},
    "text": {"mixos": "x"},
    "deep": {"mixos": {"format": {"a": {"b": 1}}}},
    "empty": {"mixos": {}},
    "long": {"mixos": "x" * 70_000},
    "many": {"mixos": {"format": 1, "waves": [{}] * 4000}},
    "true": {"mixos": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_terms_that_are_not_known_offer_nothing_and_hide_nothing(shop, form):
    shop.offer("1.2.3", 5)
    shop.offer("1.3.0", 6, custom=FORMS[form])
    assert shop.judged() == {"1.3.0": "form", "1.2.3": None}


@pytest.mark.parametrize(
    "change", [{"more": 1}, {"sequence": True}, {"sequence": "6"}, {"paused": "a\nb"}, {"waves": []}]
)
def test_terms_are_exact(shop, change):
    words = shop.offer("1.3.0", 6)
    found = Terms.of(manifest.parse(words), EVERYBODY).model_dump(mode="json", by_alias=True)
    shop.offer("1.3.0", 6, custom={"mixos": found | change})
    assert shop.judged() == {"1.3.0": "form"}


def test_what_is_only_listed_is_not_offered(shop):
    shop.offer("1.2.3", 5, custom={})
    shop.offer("1.3.0", 6, custom=7)
    assert shop.judged() == {}


# -- asking ------------------------------------------------------------------------------------------------------------


def test_an_offer_says_what_this_device_would_fetch(shop, tmp_path):
    blob = {"offset": 0, "size": 100, "sha256": "11" * 32}
    source = {"version": "1.2.2", "root-hash": HERE.root_hash, "uki-sha256": "bb" * 32}
    plans = [
        {"from": None, "root": blob, "uki": blob, "files": [], "transfer": 9000},
        {"from": source, "root": blob, "uki": blob, "files": [], "transfer": 70},
    ]
    shop.offer("1.2.3", 5, plans=plans)
    found = check(served(shop.repository.files), shop.anchors, tmp_path / "t", HERE, NOW)
    assert (found.bundle, found.transfer, found.whole) == ("mixos-1.2.3.mixb", 70, False)
    other = Device(RUNNING, "cc" * 32, "x")
    found = check(served(shop.repository.files), shop.anchors, tmp_path / "t", other, NOW)
    assert (found.transfer, found.whole, found.why) == (9000, True, None)
    offer = found.as_json()["offer"]
    assert (offer["version"], offer["sequence"]) == ("1.2.3", 5)


def test_a_release_that_is_withdrawn_is_offered_no_more(shop, tmp_path):
    shop.offer("1.2.3", 5)
    shop.offer("1.3.0", 6)
    found = check(served(shop.repository.files), shop.anchors, tmp_path / "t", HERE, NOW)
    assert found.manifest is not None
    assert found.manifest.version == "1.3.0"
    before = shop.repository.copy()
    del shop.repository.targets.targets["release/1.3.0.json"]
    shop.repository.bump()
    found = check(served(shop.repository.files), shop.anchors, tmp_path / "t", HERE, NOW)
    assert found.manifest is not None
    assert found.manifest.version == "1.2.3"
    with pytest.raises(TrustError) as caught:  # who shows the device the list of before
        check(served(before), shop.anchors, tmp_path / "t", HERE, NOW)
    assert caught.value.reason == "release-rollback"


def test_a_clock_that_is_wrong(shop, tmp_path):
    """Ahead: the metadata has ended. Behind: the release was made later than now."""
    shop.offer("1.2.3", 5, created=SECONDS - 60)
    with pytest.raises(TrustError) as caught:
        check(served(shop.repository.files), shop.anchors, tmp_path / "a", HERE, NOW + timedelta(days=4000))
    assert caught.value.reason in ("release-expired", "release-freeze")
    found = check(served(shop.repository.files), shop.anchors, tmp_path / "b", HERE, NOW - timedelta(days=4000))
    assert found.why is not None
    assert found.why.why == "clock"


def test_a_manifest_is_the_listed_one(shop, tmp_path):
    shop.offer("1.2.3", 5)
    name = "release/1.2.3.json"
    file = channel.file_of(name, shop.repository.targets.targets[name])
    good = shop.repository.files[file]
    for data, reason in (
        (None, "release-missing"),
        (good[:-1], "release-mixed"),
        (good + b" ", "release-size"),
        (good.replace(b"6.6.8", b"6.6.9"), "release-mixed"),
    ):
        files = shop.repository.copy()
        files.pop(file)
        if data is not None:
            files[file] = data
        with pytest.raises(TrustError) as caught:
            check(served(files), shop.anchors, tmp_path / "t", HERE, NOW)
        assert caught.value.reason == reason


def test_a_store_that_denies_what_is_not_there(shop, tmp_path):
    """As object stores do where nobody may list the files."""

    def get(name: str, _most: int) -> bytes:
        if name not in shop.repository.files:
            raise MixosError("403", reason="source-denied")
        return shop.repository.files[name]

    shop.offer("1.2.3", 5)
    shop.repository.rotate("timestamp")
    shop.repository.bump()
    assert check(channel.of_files(get), shop.anchors, tmp_path, HERE, NOW).bundle == "mixos-1.2.3.mixb"
    shop.repository.files.pop("timestamp.json")
    with pytest.raises(MixosError) as caught:
        check(channel.of_files(get), shop.anchors, tmp_path, HERE, NOW)
    assert caught.value.reason == "source-denied"


@pytest.mark.parametrize(
    ("member", "value"), [("sequence", 9), ("root-hash", "dd" * 32), ("machine", "x86_64"), ("created", 5)]
)
def test_terms_say_what_the_manifest_says(shop, tmp_path, member, value):
    words = shop.offer("1.2.3", 5)
    found = Terms.of(manifest.parse(words), EVERYBODY).model_dump(mode="json", by_alias=True)
    shop.offer("1.2.3", 5, custom={"mixos": found | {member: value}})
    if found[member] == value:
        assert check(served(shop.repository.files), shop.anchors, tmp_path / "t", HERE, NOW).manifest
        return
    with pytest.raises(TrustError) as caught:
        check(served(shop.repository.files), shop.anchors, tmp_path / "t", HERE, NOW)
    assert caught.value.reason == "release-mixed"


def test_a_list_that_names_a_release_without_its_hash(shop, tmp_path):
    shop.offer("1.2.3", 5)
    shop.repository.targets.targets["release/1.2.3.json"].hashes = {"sha512": "aa" * 64}
    shop.repository.bump()
    with pytest.raises(TrustError) as caught:
        check(served(shop.repository.files), shop.anchors, tmp_path / "t", HERE, NOW)
    assert caught.value.reason == "release-metadata"


def test_names_that_are_no_releases_are_passed_over():
    targets = Targets(version=1, expires=NOW)
    for name in ("release/../x.json", "other/1.2.3.json", "release/1.2.3", "release/a/b.json"):
        targets.targets[name] = TargetFile.from_data(name, b"x", ["sha256"])
        targets.targets[name].unrecognized_fields["custom"] = {"mixos": {}}
    assert candidates(targets, HERE, NOW) == []
