"""`update.check`: the daemon asks a channel by the programs that fetch and judge."""

import json
import time

import pytest

from common.bundle.ranges import MAX_FILE
from common.errors import MixosError
from common.trust import metadata
from daemon import release
from daemon.parts.update import taking
from daemon.parts.update.record import Blocked
from daemon.parts.update.verbs import _checked
from tests import updatepart
from tests.channels import ROOTS, Channel, waves
from tests.fetching import program
from tests.slots import Device
from tests.updatepart import ask, context_of
from tests.webserver import Web

ALL = waves((-7 * 86_400, 10_000))
JUDGE = """
import os
from daemon import release
release._confine = lambda folder, _: os.chdir(folder)
sys.exit(release.main(sys.argv[1:], Path(%r)))
"""


class Box:
    """A device of the first release, number 4, that asks a shop."""

    def __init__(self, base, shop, url):
        self.device = Device(base)
        self.device.boot()
        self.tree = self.device.tree
        self.context = context_of(self.tree, "var/lib/mixos")
        self.context.etc.mkdir(parents=True)
        self.settings(f'channel = "{url}/c"')
        anchors = self.tree / "usr/lib/mixos/update"
        anchors.mkdir(parents=True)
        (self.tree / "usr/lib/mixos/release").write_text("MIXOS_SEQUENCE=4\nMIXOS_VARIANT=default\n")
        (anchors / "root.json").write_bytes(shop.anchors.root)
        (anchors / "openpgp.asc").write_bytes(shop.anchors.certificates)
        (anchors / "trust.json").write_text(shop.anchors.policy.model_dump_json(by_alias=True))

    def settings(self, text):
        (self.context.etc / "update.toml").write_text(text)

    def check(self, blocked=(), left=()):
        async def scenario(update):
            update.starts.records.change(
                blocked={digest: Blocked(version="x", reason="why", at=1.0) for digest in blocked}, given_up=left
            )
            return await ask(update, "check")

        judge = updatepart.program(JUDGE % str(self.tree))
        return updatepart.run(self.tree, scenario, self.context, release=judge, fetch=program())


@pytest.fixture
def shop():
    return Channel()


@pytest.fixture
def box(tmp_path, shop, monkeypatch):
    monkeypatch.setattr(taking, "ACCOUNT", "root")  # this host has no account of its own for it
    web = Web({})
    with web.serving() as url:
        found = Box(tmp_path, shop, url)
        found.web = web
        yield found


def serve(box, shop):
    box.web.files = {f"/c/{name}": data for name, data in shop.repository.files.items()}


def test_a_release_is_offered_with_what_it_costs(box, shop):
    shop.offer("1.2.3", 5, waves=ALL)
    shop.offer("1.3.0", 6, waves=ALL, paused="see ticket 12")
    serve(box, shop)
    found = box.check()
    offer = found["offer"]
    assert (offer["version"], offer["sequence"], offer["transfer"], offer["whole"]) == ("1.2.3", 5, 200, True)
    assert offer["bundle"] == "mixos-1.2.3.mixb"
    assert (found["why"]["version"], found["why"]["reason"]) == ("1.3.0", "paused")
    assert "see ticket 12" in _checked(found)
    assert _checked({**found, "offer": None, "why": None})
    box.settings(f'channel = "{found["channel"]}/"')
    assert box.check()["channel"] == found["channel"]


def test_what_failed_here_is_not_offered_again(box, shop):
    shop.offer("1.2.3", 5, waves=ALL)
    serve(box, shop)
    for how in ({"blocked": (ROOTS["1.2.3"],)}, {"left": (ROOTS["1.2.3"],)}):
        found = box.check(**how)
        assert found["offer"] is None
        assert found["why"]["reason"] == "blocked"


def test_a_clock_that_was_set_back_makes_nothing_valid_again(box, shop):
    shop.offer("1.2.3", 5, waves=ALL)
    serve(box, shop)
    facts = box.tree / "usr/lib/mixos/release"
    facts.write_text(f"{facts.read_text()}MIXOS_EPOCH={int(time.time()) + 400 * 86_400}\n")  # when the image was made
    with pytest.raises(MixosError) as caught:
        box.check()
    assert caught.value.reason in ("release-expired", "release-freeze")


def test_what_was_trusted_is_kept(box, shop):
    shop.offer("1.2.3", 5, waves=ALL)
    serve(box, shop)
    before = dict(box.web.files)
    shop.offer("1.3.0", 6, waves=ALL)
    serve(box, shop)
    assert box.check()["offer"]["version"] == "1.3.0"
    box.web.files = before
    with pytest.raises(MixosError) as caught:
        box.check()
    assert caught.value.reason == "release-rollback"


def test_what_is_missing_or_without_end(box, shop):
    with pytest.raises(MixosError) as caught:
        box.check()
    assert caught.value.reason == "release-missing"
    serve(box, shop)
    box.web.files["/c/timestamp.json"] = bytes(metadata.LIMITS["timestamp"] + 1)
    with pytest.raises(MixosError) as caught:
        box.check()
    assert caught.value.reason == "release-size"


def test_no_channel_is_set(box):
    box.settings("")
    with pytest.raises(MixosError) as caught:
        box.check()
    assert caught.value.reason == "update-no-channel"


def test_no_limit_of_metadata_is_more_than_can_be_asked_for():
    assert max(metadata.LIMITS.values()) <= MAX_FILE


def test_the_program_says_how_it_is_used(capsys):
    assert release.main(["look", "5"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "usage"
