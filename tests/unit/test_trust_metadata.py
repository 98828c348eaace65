"""Attacks on metadata of TUF, each with its refusal, and what is kept of what was trusted."""

from __future__ import annotations

import contextlib
import copy
import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError

from common.errors import TrustError
from common.files import write_atomically
from common.trust import metadata, release
from common.trust.metadata import LIMITS, Kept, Trusted, UnknownKey
from tests.releases import NOW, Repository, anchors, raw, served, signed
from tests.releases import Signer as OpenPgp

LATER = NOW + timedelta(days=1)


def taken(
    repository: Repository, kept: Kept | None = None, files: dict[str, bytes] | None = None, **how: object
) -> Trusted:
    trusted = Trusted(repository.anchor, kept or Kept(), NOW)
    trusted.update(served(repository.files if files is None else files), **how)  # type: ignore[arg-type]
    return trusted


def refused(
    reason: str, repository: Repository, kept: Kept | None = None, files: dict[str, bytes] | None = None
) -> None:
    trusted = Trusted(repository.anchor, kept or Kept(), NOW)
    with pytest.raises(TrustError) as caught:
        trusted.update(served(repository.files if files is None else files))
    assert caught.value.reason == reason


@pytest.fixture
def repository() -> Repository:
    return Repository()


def test_what_is_as_it_should_be_is_taken_and_kept(repository: Repository):
    repository.release("text")
    trusted = taken(repository)
    assert trusted.targets.targets.keys() == {"release/1.2.3.json"}
    assert [name for name, _ in trusted.kept.others] == ["timestamp", "snapshot", "targets"]
    assert Kept.parse(trusted.kept.dump()) == trusted.kept
    assert taken(repository, trusted.kept).kept == trusted.kept
    assert trusted.expires == repository.root.expires


def test_what_is_kept_needs_not_come_again(repository: Repository):
    kept = taken(repository).kept
    repository.timestamp.version += 1
    repository.publish_timestamp()
    asked: list[str] = []

    def fetch(name: str, limit: int) -> bytes | None:
        asked.append(name)
        return repository.files.get(name)

    Trusted(repository.anchor, kept, NOW).update(fetch)
    assert asked == ["2.root.json", "timestamp.json"]


# -- root --------------------------------------------------------------------------------------------------------------


def test_the_chain_of_roots_is_followed_to_its_end(repository: Repository):
    for _ in range(3):
        repository.rotate("timestamp")
    repository.bump()
    trusted = taken(repository)
    assert trusted.root.version == 4
    assert len(trusted.kept.roots) == 3


@pytest.mark.parametrize("signers", [("old",), ("new",)])
def test_a_new_root_is_signed_by_the_keys_of_both(repository: Repository, signers: tuple[str, ...]):
    old, new = repository.keys["root"][0], CryptoSigner.generate_ed25519()
    repository.root.revoke_key(old.public_key.keyid, "root")
    repository.root.add_key(new.public_key, "root")
    repository.root.version = 2
    repository.write_root([{"old": old, "new": new}[name] for name in signers])
    refused("release-signature", repository)
    repository.write_root([old, new])
    assert taken(repository).root.version == 2


def test_a_root_that_leaves_one_out_goes_back_or_stays_is_refused(repository: Repository):
    for version, reason in ((3, "release-rollback"), (1, "release-rollback")):
        repository.root.version = version
        repository.files["2.root.json"] = signed(repository.root, repository.keys["root"])
        refused(reason, repository)


UNKNOWN = {"keytype": "ml-dsa", "scheme": "ml-dsa-99/1", "keyval": {"public": "x"}, "x-note": {"a": [1]}}


@pytest.mark.parametrize(
    "key", [UNKNOWN, {"keytype": "rsa", "scheme": "pgp+rsa-pkcsv1.5", "keyval": {"public": {"key": "x"}}}]
)
def test_a_key_of_an_unknown_kind_that_no_role_needs_stops_no_device(repository: Repository, key: dict[str, object]):
    repository.root.keys["ab" * 32] = UnknownKey.from_dict("ab" * 32, copy.deepcopy(key))
    for role in ("root", "timestamp"):
        repository.root.roles[role].keyids.append("ab" * 32)
    data = repository.next_root()
    trusted = taken(repository)
    assert trusted.root.version == 2
    repository.next_root()
    assert taken(repository, trusted.kept).root.version == 3
    assert Trusted(data, Kept(), NOW).root.keys["ab" * 32].to_dict() == key


def test_the_reference_client_refuses_such_a_root(repository: Repository):
    """Why ours are never given such a key (`mixos keys rotate`)."""
    repository.root.keys["ab" * 32] = UnknownKey.from_dict("ab" * 32, copy.deepcopy(UNKNOWN))
    with pytest.raises(DeserializationError):
        Metadata.from_bytes(repository.next_root())


def test_a_key_of_an_unknown_kind_has_signed_nothing():
    repository = Repository(roots=2, threshold=2)
    keyid = repository.keys["root"][1].public_key.keyid
    repository.root.keys[keyid] = UnknownKey.from_dict(keyid, copy.deepcopy(UNKNOWN))
    repository.root.version = 2
    data = repository.write_root(repository.keys["root"])
    refused("release-signature", repository)
    with pytest.raises(TrustError) as caught:
        Trusted(data, Kept(), NOW)
    assert caught.value.reason == "release-anchors"


@pytest.mark.parametrize(
    "key",
    [None, [], {}, {**UNKNOWN, "keyval": "x"}, {**UNKNOWN, "keytype": None}, {**UNKNOWN, "scheme": ["x"]}, {"x": 1}],
)
def test_what_is_no_key_of_any_kind_is_no_metadata(repository: Repository, key: object):
    keys = {**repository.root.to_dict()["keys"], "ab" * 32: key}
    repository.files["2.root.json"] = raw(repository.root, repository.keys["root"], version=2, keys=keys)
    refused("release-metadata", repository)


def test_keys_below_the_threshold_make_no_root():
    repository = Repository(roots=3, threshold=2)
    repository.root.version = 2
    repository.write_root(repository.keys["root"][:1])
    refused("release-signature", repository)
    repository.write_root(repository.keys["root"][1:])
    assert taken(repository).root.version == 2


def test_one_key_under_two_names_is_one_signature():
    repository = Repository(roots=1)
    key = repository.keys["root"][0]
    twin = CryptoSigner(key._private_key, SSlibKey("ab" * 32, "ed25519", "ed25519", dict(key.public_key.keyval)))
    repository.root.add_key(twin.public_key, "root")
    repository.root.roles["root"].threshold = 2
    repository.root.version = 2
    repository.write_root([key, twin])
    refused("release-signature", repository)


def test_an_anchor_that_is_no_root_or_does_not_sign_itself_is_none(repository: Repository):
    for data in (b"", b"{}", repository.files["timestamp.json"], signed(repository.root, [])):
        with pytest.raises(TrustError) as caught:
            Trusted(data, Kept(), NOW)
        assert caught.value.reason == "release-anchors"


def test_an_expired_root_may_be_replaced_but_not_used(repository: Repository):
    repository.root.expires = NOW - timedelta(days=1)
    repository.next_root()
    refused("release-expired", repository)
    repository.root.expires = LATER
    repository.next_root()
    assert taken(repository).root.version == 3


# -- expired, frozen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "reason"),
    [("timestamp", "release-freeze"), ("snapshot", "release-expired"), ("targets", "release-expired")],
)
def test_what_has_expired_is_refused_by_the_given_clock(repository: Repository, role: str, reason: str):
    getattr(repository, role).expires = NOW  # at that second, no more
    repository.publish()
    refused(reason, repository)
    getattr(repository, role).expires = NOW + timedelta(seconds=1)
    repository.publish()
    taken(repository)


def test_what_is_kept_expires_too(repository: Repository):
    kept = taken(repository).kept
    trusted = Trusted(repository.anchor, kept, repository.timestamp.expires)
    with pytest.raises(TrustError) as caught:
        trusted.update(served(repository.files))
    assert caught.value.reason == "release-expired"  # the root, which expires with it


# -- rollback ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_no_role_goes_back(role: str):
    repository = Repository()
    repository.bump()
    kept = taken(repository).kept
    getattr(repository, role).version -= 1
    if role != "timestamp":
        repository.timestamp.version += 1
    if role == "targets":
        repository.snapshot.version += 1
    repository.publish()
    refused("release-rollback", repository, kept)


def test_the_whole_of_an_earlier_day_is_refused(repository: Repository):
    earlier = repository.copy()
    repository.bump()
    refused("release-rollback", repository, taken(repository).kept, earlier)


def test_a_snapshot_does_not_lose_targets(repository: Repository):
    kept = taken(repository).kept
    repository.snapshot.version += 1
    repository.timestamp.version += 1
    repository.snapshot.meta = {"other.json": repository.snapshot.meta["targets.json"]}
    repository.publish_snapshot()
    refused("release-rollback", repository, kept)
    refused("release-mixed", repository)


def test_another_timestamp_of_the_same_version_changes_nothing(repository: Repository):
    kept = taken(repository).kept
    repository.snapshot.version += 1
    repository.publish_snapshot()
    trusted = taken(repository, kept)
    assert trusted.kept == kept


# -- mix and match, fast-forward ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_roles_of_different_days_do_not_go_together(repository: Repository, role: str):
    repository.bump()
    repository.files[f"2.{role}.json"] = repository.files[f"1.{role}.json"]
    refused("release-mixed", repository)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_another_file_of_the_same_version_is_refused(repository: Repository, role: str):
    one = getattr(repository, role)
    one.expires -= timedelta(days=1)
    repository.files[f"1.{role}.json"] = signed(one, repository.keys[role])
    refused("release-mixed", repository)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_a_version_that_is_not_the_described_one_is_refused_without_hashes_too(repository: Repository, role: str):
    described = repository.timestamp.snapshot_meta if role == "snapshot" else repository.snapshot.meta["targets.json"]
    described.hashes, described.length, described.version = None, None, 7
    repository.files[f"7.{role}.json"] = signed(getattr(repository, role), repository.keys[role])
    repository.publish_snapshot() if role == "targets" else repository.publish_timestamp()
    refused("release-mixed", repository)


def test_a_stolen_timestamp_key_that_was_driven_up_is_overcome_by_new_keys(repository: Repository):
    repository.timestamp.version = metadata.MAX_VERSION - 1
    repository.publish_timestamp()
    kept = taken(repository).kept
    repository.timestamp.version = 2
    repository.publish_timestamp()
    refused("release-rollback", repository, kept)
    repository.rotate("timestamp")
    repository.publish()
    assert taken(repository, kept).root.version == 2


def test_a_stolen_snapshot_key_is_overcome_by_new_keys_for_it_alone(repository: Repository):
    repository.snapshot.version = 1 << 40
    repository.publish_snapshot()
    kept = taken(repository).kept
    repository.snapshot.version, repository.timestamp.version = 2, 2
    repository.publish_snapshot()
    refused("release-rollback", repository, kept)
    repository.rotate("snapshot")
    repository.publish_snapshot()
    taken(repository, kept)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_key_of_another_role_signs_nothing(repository: Repository, role: str):
    repository.keys[role] = repository.keys["root"] if role == "timestamp" else repository.keys["timestamp"]
    repository.publish()
    refused("release-signature", repository)


def test_a_role_does_not_pass_for_another(repository: Repository):
    for role in ("timestamp", "snapshot", "targets"):
        files = repository.copy()
        name = "timestamp.json" if role == "timestamp" else f"1.{role}.json"
        files[name] = repository.anchor
        with pytest.raises(TrustError) as caught:
            taken(repository, files=files)
        assert caught.value.reason in ("release-metadata", "release-mixed", "release-size")


# -- files that are too large, missing, or nothing of the kind ---------------------------------------------------------


@pytest.mark.parametrize(("name", "role"), [("2.root.json", "root"), ("timestamp.json", "timestamp")])
def test_data_without_end_is_not_read(repository: Repository, name: str, role: str):
    repository.files[name] = b" " * (LIMITS[role] + 1)
    refused("release-size", repository)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_more_than_the_described_length_is_not_read(repository: Repository, role: str):
    limits: dict[str, int] = {}
    repository.files[f"1.{role}.json"] += b" "

    def fetch(name: str, limit: int) -> bytes | None:
        limits[name] = limit
        return repository.files.get(name)

    with pytest.raises(TrustError) as caught:
        Trusted(repository.anchor, Kept(), NOW).update(fetch)
    assert caught.value.reason == "release-size"
    assert limits[f"1.{role}.json"] == len(repository.files[f"1.{role}.json"]) - 1


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_a_file_that_is_missing_is_said(repository: Repository, name: str):
    del repository.files[name]
    refused("release-missing", repository)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1.5},
        {"version": True},
        {"version": 0},
        {"version": -1},
        {"version": "2"},
        {"version": 1 << 53},
        {"spec_version": "2.0"},
        {"expires": "tomorrow"},
        {"expires": "2030-01-01T00:00:00+00:00"},
        {"_type": "snapshot"},
        {"meta": {}},
        {"meta": {"snapshot.json": {"version": 1.5}}},
        {"meta": {"snapshot.json": {"version": 1, "length": True}}},
    ],
)
def test_values_of_the_wrong_kind_are_refused(repository: Repository, changes: dict[str, object]):
    try:
        repository.files["timestamp.json"] = raw(repository.timestamp, repository.keys["timestamp"], **changes)
    except Exception:  # noqa: BLE001 # canonical JSON has no such number: then nobody can sign it either
        body = repository.timestamp.to_dict() | changes
        repository.files["timestamp.json"] = json.dumps({"signed": body, "signatures": []}).encode()
    refused("release-metadata", repository)


def test_a_threshold_is_a_number(repository: Repository):
    roles = repository.root.to_dict()["roles"]
    for threshold in (True, 0, "1"):
        roles["timestamp"] = roles["timestamp"] | {"threshold": threshold}
        changed = raw(repository.root, repository.keys["root"], version=2, roles=roles)
        refused("release-metadata", repository, files=repository.files | {"2.root.json": changed})


def test_deeply_nested_metadata_is_refused(repository: Repository):
    repository.files["timestamp.json"] = b'{"signed":' + b"[" * 8000
    refused("release-metadata", repository)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_metadata_raises_nothing_but_its_own_errors(data: st.DataObject):
    repository = FUZZED
    name = data.draw(st.sampled_from(sorted(repository.files)))
    content = bytearray(repository.files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 8))
        content[place : place + length] = data.draw(st.binary(max_size=8))
    with contextlib.suppress(TrustError):
        taken(repository, files=repository.files | {name: bytes(content)})


FUZZED = Repository(roots=2, threshold=1)
FUZZED.next_root()


# -- what is kept ------------------------------------------------------------------------------------------------------


def refreshed(repository: Repository, folder: Path, **how: bool) -> None:
    release.refresh(served(repository.files), anchors(repository, OPENPGP), folder, NOW, **how)


OPENPGP = OpenPgp()


def test_a_refusal_keeps_what_was_good_before_it_and_nothing_else(repository: Repository, tmp_path: Path):
    refreshed(repository, tmp_path)
    repository.rotate("timestamp")
    repository.bump()
    repository.files["2.targets.json"] = b"{}"
    with pytest.raises(TrustError):
        refreshed(repository, tmp_path)
    kept = release.load_kept(tmp_path)
    assert kept.roots == (repository.files["2.root.json"],)
    assert dict(kept.others) == {
        "timestamp": repository.files["timestamp.json"],
        "snapshot": repository.files["2.snapshot.json"],
        "targets": repository.files["1.targets.json"],
    }


def test_nothing_is_written_when_nothing_changed(repository: Repository, tmp_path: Path, monkeypatch):
    refreshed(repository, tmp_path)
    monkeypatch.setattr(release, "write_atomically", lambda *_: pytest.fail("written"))
    refreshed(repository, tmp_path)


def test_who_can_write_what_is_kept_makes_no_root_of_it(repository: Repository, tmp_path: Path):
    other = Repository()
    other.root.version = 2
    forged = Kept((other.write_root(other.keys["root"]),), (("timestamp", other.files["timestamp.json"]),))
    write_atomically(tmp_path / release.KEPT, forged.dump())
    refreshed(repository, tmp_path)
    assert release.load_kept(tmp_path).roots == ()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"format":2}', b'{"format":1,"roots":[1],"others":{}}', b"[" * 99999]
)
def test_damage_to_what_is_kept_is_said_and_not_mended_by_forgetting(
    repository: Repository, tmp_path: Path, content: bytes
):
    (tmp_path / release.KEPT).write_bytes(content)
    with pytest.raises(TrustError) as caught:
        refreshed(repository, tmp_path)
    assert caught.value.reason == "release-state"
    assert (tmp_path / release.KEPT).read_bytes() == content


def test_an_older_image_that_runs_again_knows_what_the_newer_one_learned(repository: Repository):
    repository.rotate("timestamp")
    repository.rotate("targets")
    repository.bump()
    kept = taken(repository).kept
    newer = Trusted(repository.files["2.root.json"], kept, NOW)  # an image with a newer anchor
    newer.update(served(repository.files))
    assert newer.root.version == 3
    assert newer.kept == kept
    assert Trusted(repository.anchor, newer.kept, NOW).root.version == 3


def test_a_bundle_older_than_the_channel_goes_by_the_list_that_is_kept(repository: Repository):
    repository.release("text")
    bundle = repository.copy()
    repository.timestamp.version += 5
    repository.publish_timestamp()
    kept = taken(repository).kept
    assert "release/1.2.3.json" in taken(repository, kept, bundle, carried=True).targets.targets
    repository.targets.targets.clear()  # withdrawn
    repository.bump()
    kept = taken(repository).kept
    assert not taken(repository, kept, bundle, carried=True).targets.targets
    refused("release-rollback", repository, kept, bundle)  # a channel must not go back


def test_what_cannot_be_kept_is_not_trusted(repository: Repository, tmp_path: Path):
    with pytest.raises(TrustError) as caught:
        release.refresh(served(repository.files), anchors(repository, OPENPGP), tmp_path / "no" / "folder", NOW)
    assert caught.value.reason == "release-state"


def test_a_folder_is_a_channel(repository: Repository, tmp_path: Path):
    for name, data in repository.files.items():
        (tmp_path / name).write_bytes(data)
    Trusted(repository.anchor, Kept(), NOW).update(release.of_folder(tmp_path))
    (tmp_path / "timestamp.json").unlink()
    (tmp_path / "timestamp.json").mkdir()
    with pytest.raises(TrustError) as caught:
        Trusted(repository.anchor, Kept(), NOW).update(release.of_folder(tmp_path))
    assert caught.value.reason == "release-missing"
