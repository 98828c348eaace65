"""Encrypted payloads: what comes out by ranges is what went in, for devices that were named, and for nobody else."""

import base64
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from buildsys import bundle
from common.bundle import sealing
from common.bundle.sealing import PIECE, TAG, Reader, encrypted, seal, stored, unseal
from common.errors import BundleError, UsageError

KEY = bytes(range(32))


def pair(number):
    private = X25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 777])
@given(data=st.data())
def test_ranges_of_what_was_encrypted(size, data):
    plain = os.urandom(size)
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=4)))
    parts = [plain[start:end] for start, end in zip([0, *cuts], [*cuts, size], strict=True)]
    whole = b"front" + b"".join(encrypted(KEY, parts))
    assert len(whole) == 5 + stored(size)
    reader = Reader(KEY, 5, lambda offset, length: whole[offset : offset + length])
    for _ in range(4):
        start, length = data.draw(st.integers(0, size + 10)), data.draw(st.integers(0, 2 * PIECE))
        assert reader.read(start, length) == plain[start : start + length]


def test_frames_back_to_back_are_fetched_once():
    plain, asked = os.urandom(10 * PIECE), []
    whole = b"".join(encrypted(KEY, [plain]))

    def read(offset, length):
        asked.append(len(whole[offset : offset + length]))
        return whole[offset : offset + length]

    reader = Reader(KEY, 0, read)
    assert b"".join(reader.read(at, 1000) for at in range(0, len(plain), 1000)) == plain
    assert sum(asked) == len(whole)
    asked.clear()
    assert Reader(KEY, 0, read).read(100, 5 * PIECE) == plain[100 : 100 + 5 * PIECE]
    assert asked == [6 * (PIECE + TAG)]  # one question, however many pieces


@given(at=st.integers(0, 2 * PIECE + 2 * TAG + 99), bit=st.integers(0, 7))
def test_a_bit_that_was_turned(at, bit):
    whole = bytearray(b"".join(encrypted(KEY, [bytes(2 * PIECE + 100)])))
    whole[at % len(whole)] ^= 1 << bit
    with pytest.raises(BundleError) as caught:
        Reader(KEY, 0, lambda offset, length: bytes(whole[offset : offset + length])).read(0, len(whole))
    assert caught.value.reason == "bundle-damaged"


def test_a_payload_that_ends_within_a_piece():
    whole = b"".join(encrypted(KEY, [bytes(2 * PIECE)]))[:-5]
    with pytest.raises(BundleError):
        Reader(KEY, 0, lambda offset, length: whole[offset : offset + length]).read(PIECE, 10)


def test_pieces_cannot_change_places():
    whole = b"".join(encrypted(KEY, [bytes(2 * PIECE)]))
    swapped = whole[PIECE + TAG :] + whole[: PIECE + TAG]
    with pytest.raises(BundleError):
        Reader(KEY, 0, lambda offset, length: swapped[offset : offset + length]).read(0, 10)


def test_a_key_is_for_one_device():
    (private, public), (other, _) = pair(1), pair(2)
    sealed = seal(KEY, public)
    assert len(sealed) == sealing.SEALED
    assert unseal(sealed, private) == KEY
    assert unseal(sealed, other) is None
    assert seal(KEY, public) != sealed
    for at in range(len(sealed)):
        assert unseal(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], private) is None
    assert all(unseal(wrong, private) is None for wrong in (b"", sealed[:-1], bytes(sealing.SEALED)))
    assert unseal(seal(b"short", public), private) is None


def test_what_was_sealed_once_opens_for_ever():
    """By which another implementation can be checked: HPKE, base mode, X25519, HKDF-SHA256, ChaCha20-Poly1305."""
    private, _ = pair(7)
    sealed = bytes.fromhex(
        "d7f1e54a87692399fc6e2dba429b7d21942038be5534d8cb681abf5224599007726a51a76f67dcad"
        "da13934bae894223c5dfb36abc800998d755e1dbc487e39bf62f71a1027881add74dc0c4bf761a4f"
    )
    assert unseal(sealed, private) == KEY
    assert next(encrypted(KEY, [b"a payload"])).hex() == "79983250d48ac9b077913825f13c4e80230800726bd8599f99"


def test_keys_as_people_copy_them():
    _, public = pair(3)
    text = sealing.write_public(public)
    assert sealing.read_public(f" {text}\n") == public
    wrong = ["", "mixos-device:", text[:-2], text.removeprefix("mixos-device:"), text + "A", text.replace("=", ""), "ä"]
    for one in wrong:
        with pytest.raises(UsageError) as caught:
            sealing.read_public(one)
        assert caught.value.reason == "device-key"


def test_files_of_keys(tmp_path):
    keys = [sealing.write_public(pair(number)[1]) for number in range(1, 5)]
    path = tmp_path / "devices"
    path.write_text(f"# ours\n{keys[0]} kitchen\n\n  {keys[1]}\n{keys[0]} again\n")
    wanted = [pair(number)[1] for number in (1, 2, 4)]
    assert bundle.read_devices([str(path), keys[3]]) == tuple(wanted)
    path.write_text(f"{keys[0]}\nssh-ed25519 AAAA\n")
    with pytest.raises(UsageError, match=r"devices:2: ssh-ed25519 is no public key"):
        bundle.read_devices([str(path)])
    private = base64.b64encode(pair(1)[0]).decode()  # somebody has taken the wrong file
    path.write_text(private)
    with pytest.raises(UsageError) as caught:
        bundle.read_devices([str(path)])
    assert private[:20] not in str(caught.value)
    for text in ("", "# nobody\n", "x" * (2 << 20)):
        path.write_text(text)
        with pytest.raises(UsageError):
            bundle.read_devices([str(path)])
    for name in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError):
            bundle.read_devices([str(name)])
    path.write_text("\n".join(sealing.write_public(number.to_bytes(32, "big")) for number in range(4097)))
    with pytest.raises(UsageError, match="more than 4096 devices"):
        bundle.read_devices([str(path)])


def test_a_key_that_belongs_to_nobody():
    with pytest.raises(UsageError) as caught:
        seal(KEY, bytes(32))
    assert caught.value.reason == "device-key"
