"""What firmware starts of a release is signed, once: the kernel image, the rescue entry and the loader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from buildsys import release
from buildsys.bundle import Content
from common.efi import pe
from common.errors import MixosError
from image import secureboot
from image.secureboot import Signer
from tests.images import pe_image
from tests.secureboot import signer

NAMES = ("", "rescue", "loader")
IMAGES = {name: pe_image([(".text", (name or "kernel").encode() * 300)]) for name in NAMES}
CONF = b"timeout 0\n"
CONTENT = Content(
    "1.0.0",
    "6.6.8",
    b"root",
    IMAGES[""],
    bytes(32),
    bytes(32),
    {"rescue": IMAGES["rescue"], "loader": IMAGES["loader"], "loader-conf": CONF},
)


def db() -> Signer:
    return signer("db")


def locked() -> Signer:
    raise AssertionError("nothing is to be signed")


def signed(content: Content, kept: Path, load: object = db) -> Content:
    return release.signed(content, db().certificate, load, kept)  # type: ignore[arg-type]


def having(content: Content, name: str, image: bytes) -> Content:
    return replace(content, uki=image) if not name else replace(content, files={**content.files, name: image})


def images(content: Content) -> dict[str, bytes]:
    return {"": content.uki, "rescue": content.files["rescue"], "loader": content.files["loader"]}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "mixos-1.0.0-x86_64.efi"


def test_all_that_firmware_starts_is_signed_and_nothing_else(kept: Path) -> None:
    made = signed(CONTENT, kept)
    for name, image in images(made).items():
        secureboot.verify(image, db().certificate)
        assert pe.unsigned(image) == pe.unsigned(IMAGES[name])
    assert made.files["loader-conf"] == CONF
    assert replace(made, uki=CONTENT.uki, files=CONTENT.files) == CONTENT
    release.check_signed(made, db().certificate)


def test_a_release_without_them_has_its_kernel_image_signed(kept: Path) -> None:
    made = signed(replace(CONTENT, files={}), kept)
    assert made.files == {}
    release.check_signed(made, db().certificate)


def test_what_was_signed_is_taken_again_without_the_key(kept: Path) -> None:
    made = signed(CONTENT, kept)
    assert signed(CONTENT, kept, locked) == made
    assert signed(made, kept.with_name("other"), locked) == made


@pytest.mark.parametrize("name", NAMES)
def test_another_image_is_signed_anew_and_the_others_are_not(kept: Path, name: str) -> None:
    made = signed(CONTENT, kept)
    changed = having(CONTENT, name, pe_image([(".text", b"changed" * 300)]))
    found = signed(changed, kept)
    release.check_signed(found, db().certificate)
    assert {one for one in NAMES if images(found)[one] != images(made)[one]} == {name}
    assert signed(changed, kept, locked) == found


def test_what_another_key_signed_before_is_signed_anew(kept: Path) -> None:
    release.signed(CONTENT, signer("old").certificate, lambda: signer("old"), kept)
    release.check_signed(signed(CONTENT, kept), db().certificate)


@pytest.mark.parametrize("name", NAMES)
def test_a_signature_of_somebody_else_is_refused(kept: Path, name: str) -> None:
    foreign = secureboot.sign(IMAGES[name], signer("other"))
    with pytest.raises(MixosError) as caught:
        signed(having(CONTENT, name, foreign), kept)
    assert caught.value.reason == "secureboot-signature"


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_of_which_one_is_not_signed_by_db_is_no_release(kept: Path, name: str) -> None:
    made = signed(CONTENT, kept)
    for image, reason in (
        (IMAGES[name], "release-unsigned"),
        (secureboot.sign(IMAGES[name], signer("other")), "secureboot-signature"),
    ):
        with pytest.raises(MixosError) as caught:
            release.check_signed(having(made, name, image), db().certificate)
        assert caught.value.reason == reason
