"""The hash tree against a direct, slow statement of the format."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.disk import verity


def slow_root(data: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """(root, tree) by the definition: hash blocks of blocks until one digest is left."""
    tree, level = b"", data
    while True:
        digests = [hashlib.sha256(salt + level[at : at + 4096]).digest() for at in range(0, len(level), 4096)]
        if len(digests) == 1:
            return digests[0], tree
        level = b"".join(digests)
        level += bytes(-len(level) % 4096)
        tree = level + tree


@settings(max_examples=25, deadline=None)
@given(blocks=st.integers(1, 300), salt=st.binary(max_size=64), seed=st.integers(0, 2**32))
def test_matches_the_definition(tmp_path_factory: pytest.TempPathFactory, blocks: int, salt: bytes, seed: int) -> None:
    data = b"".join(hashlib.sha256(f"{seed}:{number}".encode()).digest() * 128 for number in range(blocks))
    path = tmp_path_factory.mktemp("verity") / "data"
    path.write_bytes(b"skipped!" * 512 + data)
    fd = os.open(path, os.O_RDONLY)
    tree = verity.build(fd, len(data), salt, offset=4096)
    os.close(fd)
    assert (tree.root, tree.hashes) == slow_root(data, salt)
    assert len(tree.hashes) == verity.tree_blocks(blocks) * verity.BLOCK
    assert tree.blocks == blocks


@pytest.mark.parametrize(
    ("blocks", "hashes"), [(1, 0), (2, 1), (128, 1), (129, 3), (16384, 129), (16385, 132), (65536, 517)]
)
def test_tree_sizes(blocks: int, hashes: int) -> None:
    assert verity.tree_blocks(blocks) == hashes


@pytest.mark.parametrize(
    ("size", "salt", "reason"),
    [
        (0, b"", "verity-size"),
        (4097, b"", "verity-size"),
        (8192, b"", "verity-short-read"),
        (4096, bytes(257), "verity-salt"),
    ],
)
def test_refusals(tmp_path: Path, size: int, salt: bytes, reason: str) -> None:
    (tmp_path / "data").write_bytes(bytes(4096))
    fd = os.open(tmp_path / "data", os.O_RDONLY)
    with pytest.raises(verity.VerityError) as caught:
        verity.build(fd, size, salt)
    os.close(fd)
    assert caught.value.reason == reason


def test_table_line() -> None:
    tree = verity.Tree(bytes(range(32)), b"", b"\xaa\xbb", 239)
    assert verity.dm_create(tree) == (
        "root,,,ro,0 1912 verity 1 PARTUUID=00010203-0405-0607-0809-0a0b0c0d0e0f "
        "PARTUUID=10111213-1415-1617-1819-1a1b1c1d1e1f 4096 4096 239 0 sha256 "
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f aabb 1 panic_on_corruption"
    )


def test_ids_need_a_whole_digest() -> None:
    with pytest.raises(verity.VerityError) as caught:
        verity.partition_ids(b"short")
    assert caught.value.reason == "verity-root"
