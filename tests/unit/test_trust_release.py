"""A release is taken only when everything about it holds; every refusal has a reason of its own."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from common.bundle import container
from common.bundle.container import Front
from common.errors import BundleError, TrustError
from common.trust import openpgp
from common.trust.release import Anchors, Running, verify
from tests.releases import NOW, RUNNING, Repository, Signer, anchors, front, text

SIGNER, OTHER, STRANGER = Signer("one"), Signer("two"), Signer("three")


@pytest.fixture(scope="module")
def released() -> Repository:
    repository = Repository()
    repository.release(text())
    return repository


def refused(reason: str, found: Front, trust: Anchors, folder: Path, running: Running = RUNNING, now=NOW) -> None:
    with pytest.raises(TrustError) as caught:
        verify(found, trust, folder, running, now)
    assert caught.value.reason == reason
    assert caught.value.exit_code == 12


def test_a_release_is_taken(released: Repository, tmp_path: Path):
    found = verify(front(released, text(), SIGNER), anchors(released, SIGNER), tmp_path, RUNNING, NOW)
    assert found.manifest.version == "1.2.3"
    assert found.signers == {SIGNER.fingerprint.lower()}


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("release-product", {"product": "other"}),
        ("release-machine", {"machine": "aarch64"}),
        ("release-variant", {"variant": "debug"}),
        ("release-downgrade", {"sequence": 2}),
        ("release-minimum", {"minimum-sequence": 5}),
    ],
)
def test_a_release_of_something_else_is_refused(tmp_path: Path, reason: str, change: dict[str, object]):
    repository, message = Repository(), text(**change)
    repository.release(message)
    refused(reason, front(repository, message, SIGNER), anchors(repository, SIGNER), tmp_path)


def test_the_floor_itself_may_be_taken_again(released: Repository, tmp_path: Path):
    running = replace(RUNNING, floor=5)
    assert verify(front(released, text(), SIGNER), anchors(released, SIGNER), tmp_path, running, NOW)
    refused(
        "release-downgrade",
        front(released, text(), SIGNER),
        anchors(released, SIGNER),
        tmp_path,
        replace(running, floor=6),
    )


def test_another_manifest_than_the_listed_one_is_refused(released: Repository, tmp_path: Path):
    refused("release-unlisted", front(released, text(sequence=6), SIGNER), anchors(released, SIGNER), tmp_path)


def test_a_manifest_that_is_listed_as_another_version_is_refused(tmp_path: Path):
    repository = Repository()
    repository.release(text(), "1.2.4")
    refused("release-unlisted", front(repository, text(), SIGNER), anchors(repository, SIGNER), tmp_path)


def test_a_manifest_is_not_parsed_before_it_is_trusted(released: Repository, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("common.bundle.manifest.parse", lambda _: pytest.fail("parsed"))
    refused("release-unlisted", front(released, "{", SIGNER), anchors(released, SIGNER), tmp_path)
    refused("release-openpgp", front(released, text(), STRANGER), anchors(released, SIGNER), tmp_path)


def test_a_manifest_that_is_trusted_and_malformed_is_refused(tmp_path: Path):
    repository = Repository()
    repository.release("{}")
    with pytest.raises(BundleError) as caught:
        verify(front(repository, "{}", SIGNER), anchors(repository, SIGNER), tmp_path, RUNNING, NOW)
    assert caught.value.reason == "bundle-manifest"


# -- OpenPGP -----------------------------------------------------------------------------------------------------------


def test_strangers_do_not_spoil_it_and_do_not_count(released: Repository, tmp_path: Path):
    trust = anchors(released, SIGNER, OTHER, threshold=2)
    for signers in ((SIGNER,), (SIGNER, STRANGER), (SIGNER, SIGNER, SIGNER), (STRANGER, STRANGER)):
        refused("release-openpgp", front(released, text(), *signers), trust, tmp_path)
    found = verify(front(released, text(), STRANGER, OTHER, STRANGER, SIGNER), trust, tmp_path, RUNNING, NOW)
    assert len(found.signers) == 2


def test_a_certificate_that_is_pinned_twice_counts_once(released: Repository, tmp_path: Path):
    trust = anchors(released, SIGNER)
    subkey = next(key for key in openpgp.certificates(trust.certificates, [SIGNER.fingerprint])[0].keys)
    both = (SIGNER.fingerprint, subkey.upper())
    policy = trust.policy.model_copy(
        update={"openpgp": trust.policy.openpgp.model_copy(update={"signers": both, "threshold": 2})}
    )
    refused("release-anchors", front(released, text(), SIGNER), replace(trust, policy=policy), tmp_path)


def test_any_of_its_keys_names_a_certificate():
    ring = str(SIGNER.cert).encode()
    (by_primary,) = openpgp.certificates(ring, [SIGNER.fingerprint])
    assert len(by_primary.keys) == 3
    for name in by_primary.keys:
        spaced = " ".join(name.upper()[n : n + 4] for n in range(0, 40, 4))
        assert openpgp.certificates(ring, [spaced])[0].fingerprint == by_primary.fingerprint


def test_a_pin_without_its_certificate_or_a_ring_that_is_none_is_said():
    for ring, names in ((str(SIGNER.cert).encode(), [OTHER.fingerprint]), (b"nothing", [OTHER.fingerprint])):
        with pytest.raises(TrustError) as caught:
            openpgp.certificates(ring, names)
        assert caught.value.reason == "release-anchors"


def test_a_clock_that_is_behind_is_told_from_a_wrong_signature(released: Repository, tmp_path: Path):
    found, trust = front(released, text(), SIGNER), anchors(released, SIGNER)
    refused("release-clock", found, trust, tmp_path, now=NOW - timedelta(days=2))


def test_damaged_armor_holds_no_signature():
    whole = SIGNER.sign("text")
    assert len(list(openpgp.packets(whole))) == 1
    assert len(list(openpgp.packets(whole.replace("\n", "\r\n")))) == 1
    assert len(list(openpgp.packets(whole.replace("-----\n\n", "-----\nComment: hello\n\n")))) == 1
    for bad in (
        "",
        whole[:-3],
        "x" + whole,
        whole + "x",
        whole.replace("SIGNATURE", "MESSAGE"),
        whole.replace("-----\n\n", "-----\n\n!"),
        str(SIGNER.cert),
    ):
        assert list(openpgp.packets(bad)) == []


def test_only_signature_packets_reach_the_library():
    """A compressed packet, say, could be a bomb."""
    for raw in (
        b"\xc8\x05hello",
        b"\xa3\x01hello",
        b"\x88",
        b"\xc2",
        b"\xc2\xff\xff\xff\xff\xff",
        b"\x8b\x01",
        b"\x00",
    ):
        assert list(openpgp.packets(armored(raw))) == []


def test_algorithms_that_nobody_knows_make_no_signature():
    pinned = openpgp.certificates(str(SIGNER.cert).encode(), [SIGNER.fingerprint])
    (packet,) = openpgp.packets(SIGNER.sign("text"))
    begin = 3 if packet[1] >= 192 else 2  # behind the header: version, type, algorithms of key and hash
    for place in range(4):
        for value in range(256):
            changed = bytearray(packet)
            changed[begin + place] = value
            judged = openpgp.judge(pinned, b"text", [armored(bytes(changed))], NOW)
            assert bool(judged.certificates) == (bytes(changed) == packet)


def armored(packet: bytes) -> str:
    body = base64.b64encode(packet).decode()
    return f"-----BEGIN PGP SIGNATURE-----\n\n{body}\n-----END PGP SIGNATURE-----\n"


def test_more_signatures_than_anybody_makes_are_not_looked_at():
    pinned = openpgp.certificates(str(SIGNER.cert).encode(), [SIGNER.fingerprint])
    many = [STRANGER.sign("text")] * openpgp.MAX_SIGNATURES
    assert not openpgp.judge(pinned, b"text", [*many, SIGNER.sign("text")], NOW).certificates
    assert openpgp.judge(pinned, b"text", [*many[1:], SIGNER.sign("text")], NOW).certificates


# -- damage and forgery ------------------------------------------------------------------------------------------------


def test_a_thousand_flipped_bits_are_all_refused(released: Repository, tmp_path: Path):
    trust = anchors(released, SIGNER)
    data = container.dump(front(released, text(), SIGNER))
    drawn = random.Random(7)
    for bit in drawn.sample(range(len(data) * 8), 1000):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((BundleError, TrustError)):
            verify(container.read(io.BytesIO(bytes(flipped)).read)[0], trust, tmp_path, RUNNING, NOW)


def test_flipped_bits_under_a_right_hash_are_refused_or_change_nothing(released: Repository, tmp_path: Path):
    """Whoever forges also hashes. What is not signed (a checksum of an armor, what is written around signatures) may
    differ; then the release is the same to the letter."""
    trust, whole = anchors(released, SIGNER), front(released, text(), SIGNER)
    drawn = random.Random(8)
    outcomes = {"refused": 0, "same": 0}
    for number in range(400):
        forged = flipped_front(whole, drawn)
        found = None
        with contextlib.suppress(BundleError, TrustError):
            found = verify(forged, trust, tmp_path / str(number), RUNNING, NOW)
        outcomes["same" if found else "refused"] += 1
        assert found is None or found.text == whole.manifest
    assert outcomes["refused"] > 300


def flipped_front(whole: Front, drawn: random.Random) -> Front:
    """One bit of one of its texts flipped, weighted by their lengths."""
    files = {name: whole.tuf[name] for name in ("timestamp.json", "2.snapshot.json", "2.targets.json")}
    places = [("manifest", len(whole.manifest)), ("signature", len(whole.signatures[0]))]
    places += [(name, len(content)) for name, content in files.items()]
    (name,) = drawn.choices([place[0] for place in places], [place[1] for place in places])
    if name == "manifest":
        return Front(flipped(whole.manifest, drawn), whole.signatures, files)
    if name == "signature":
        return Front(whole.manifest, (flipped(whole.signatures[0], drawn),), files)
    return Front(whole.manifest, whole.signatures, files | {name: flipped(files[name], drawn)})


def flipped(content: str, drawn: random.Random) -> str:
    place = drawn.randrange(len(content))
    return content[:place] + chr(ord(content[place]) ^ 1 << drawn.randrange(7)) + content[place + 1 :]


# -- anchors -----------------------------------------------------------------------------------------------------------


def test_anchors_are_read_from_the_image(released: Repository, tmp_path: Path):
    trust = anchors(released, SIGNER)
    (tmp_path / "root.json").write_bytes(trust.root)
    (tmp_path / "openpgp.asc").write_bytes(trust.certificates)
    good = json.loads(trust.policy.model_dump_json(by_alias=True))
    (tmp_path / "trust.json").write_text(json.dumps(good))
    assert Anchors.load(tmp_path) == trust
    for path, value in (
        (("format",), 2),
        (("openpgp", "threshold"), 0),
        (("openpgp", "threshold"), True),
        (("openpgp", "signers"), []),
        (("openpgp", "signers"), ["AB"]),
        (("more",), 1),
    ):
        changed = copy.deepcopy(good)
        inner = changed
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value
        (tmp_path / "trust.json").write_text(json.dumps(changed))
        with pytest.raises(TrustError) as caught:
            Anchors.load(tmp_path)
        assert caught.value.reason == "release-anchors"


def test_an_image_that_was_built_without_keys_takes_nothing(tmp_path: Path):
    with pytest.raises(TrustError) as caught:
        Anchors.load(tmp_path)
    assert caught.value.reason == "release-anchors"
