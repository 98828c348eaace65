"""Waves and shares as people write them; which bundles of the folder a release begins with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from buildsys.channel import Channel, parse_share, parse_waves, too_many
from buildsys.keys.public import Public
from common.bundle import container, manifest
from common.bundle.container import Front
from common.errors import UsageError
from common.trust.channel import Terms
from tests.releases import text

MADE = 1_000_000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["100%"], [(MADE, 10_000)]),
        (["0.01%"], [(MADE, 1)]),
        (["100%@+2d", "5%"], [(MADE, 500), (MADE + 2 * 86_400, 10_000)]),
        (["12.34%@+36h"], [(MADE + 36 * 3600, 1234)]),
        (["1%@2026-12-24T08:00"], [(int(datetime(2026, 12, 24, 8, tzinfo=UTC).timestamp()), 100)]),
        (["1%@2026-12-24T08:00+01:00"], [(int(datetime(2026, 12, 24, 7, tzinfo=UTC).timestamp()), 100)]),
        (["1%@2026-12-24"], [(int(datetime(2026, 12, 24, tzinfo=UTC).timestamp()), 100)]),
        ([], []),
    ],
)
def test_waves(words, expected):
    assert [(wave.start, wave.share) for wave in parse_waves(words, MADE)] == expected


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["5"], "channel-share"),
        (["101%"], "channel-share"),
        (["-1%"], "channel-share"),
        (["5 %"], "channel-share"),
        (["1e2%"], "channel-share"),
        (["5%@"], "channel-wave"),
        (["5%@soon"], "channel-wave"),
        (["5%@+2w"], "channel-wave"),
        (["5%@1969-01-01"], "channel-wave"),
        (["5%@0001-01-01T00:00+23:59"], "channel-wave"),
        (["5%@9999-12-31T23:59-23:59"], "channel-wave"),
        (["5%", "6%"], "channel-wave"),
        (["6%", "5%@+1h"], "channel-wave"),
        (["5%", "5%@+1h"], "channel-wave"),
        ([f"{number}%@+{number}h" for number in range(17)], "channel-wave"),
    ],
)
def test_no_waves(words, reason):
    with pytest.raises(UsageError) as caught:
        parse_waves(words, MADE)
    assert caught.value.reason == reason


def test_shares_of_devices_that_failed():
    terms = Terms.of(manifest.parse(text()), parse_waves(["100%"], MADE), parse_share("2%"))
    assert [too_many(terms, failed, 100) for failed in (0, 2, 3)] == [False, False, True]
    assert not too_many(Terms.of(manifest.parse(text()), terms.waves), 100, 100)


def test_a_release_begins_with_bundles_of_this_project_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {version: text(version=version, sequence=number) for number, version in enumerate(["1.0.0", "1.1.0"], 3)}
    for version, words in {**texts, "1.2.0": text(version="1.2.0", sequence=5)}.items():
        front = Front(words, ("signature",), {"timestamp.json": "{}"})
        (tmp_path / f"mixos-{version}.mixb").write_bytes(container.dump(front))
    public = Public(tmp_path)
    monkeypatch.setattr(Public, "manifests", lambda _: {one: manifest.parse(one) for one in texts.values()})
    found = [path.name for path in Channel(tmp_path).earlier(public, "2.0.0", 9, 5)]
    assert found == ["mixos-1.1.0.mixb", "mixos-1.0.0.mixb"], "the newest was put there by somebody else"
