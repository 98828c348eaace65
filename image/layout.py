"""The partitions of a MixOS disk: sizes from layout.toml, places and identities from there and the image's seed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common import toml
from common.disk import gpt, verity
from common.errors import ConfigError, ImageError

MIB = 1 << 20
DEFAULT = Path(__file__).with_name("layout.toml")
ESP, ROOT_A, VERITY_A, ROOT_B, VERITY_B, ESP_B, DATA = range(1, 8)  # partition numbers; the last one grows
ESP_B_SIZE = 64  # MiB: the loader, the rescue entry, and a kernel image or two
NAMES = {
    ESP: "mixos-esp",
    ROOT_A: "mixos-root-a",
    VERITY_A: "mixos-verity-a",
    ROOT_B: "mixos-root-b",
    VERITY_B: "mixos-verity-b",
    ESP_B: "mixos-esp-b",
    DATA: "mixos-data",
}
_TYPES = {
    ESP: gpt.TYPE_ESP,
    ROOT_A: gpt.TYPE_ROOT_X86_64,
    VERITY_A: gpt.TYPE_ROOT_VERITY_X86_64,
    ROOT_B: gpt.TYPE_ROOT_X86_64,
    VERITY_B: gpt.TYPE_ROOT_VERITY_X86_64,
    ESP_B: gpt.TYPE_ESP,
    DATA: gpt.TYPE_LINUX_DATA,
}


LIMITS = {"esp": (129, 4096), "slot": (16, 65536), "data": (16, 1 << 20)}  # MiB: the least and the most


class Layout(BaseModel):
    """Sizes in MiB; see layout.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    esp: int = Field(ge=LIMITS["esp"][0], le=LIMITS["esp"][1])
    slot: int = Field(ge=LIMITS["slot"][0], le=LIMITS["slot"][1])
    data: int = Field(ge=LIMITS["data"][0], le=LIMITS["data"][1])

    @property
    def verity(self) -> int:
        """MiB of a verity partition: the tree over a full slot, rounded up."""
        blocks = self.slot * MIB // verity.BLOCK
        return -(-verity.tree_blocks(blocks) * verity.BLOCK // MIB)

    def sizes(self) -> dict[int, int]:
        """Partition number → size in MiB, in disk order."""
        return {
            ESP: self.esp,
            ROOT_A: self.slot,
            VERITY_A: self.verity,
            ROOT_B: self.slot,
            VERITY_B: self.verity,
            ESP_B: ESP_B_SIZE,
            DATA: self.data,
        }

    @property
    def disk_sectors(self) -> int:
        """Size of the image: the partitions and one MiB at each end for the tables."""
        return (sum(self.sizes().values()) + 2) * MIB // gpt.SECTOR


def load(path: Path = DEFAULT) -> Layout:
    """Read a layout file. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}", reason="layout-unreadable") from error
    try:
        values = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ConfigError(toml.explained(error, path, text), reason="layout-unreadable") from error
    return parse(values, str(path))


def parse(values: object, where: str = "layout") -> Layout:
    """Check the values of a layout. Raises ConfigError naming each bad key, its value and what was expected."""
    try:
        return Layout.model_validate(values)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']} (is {one['input']!r})" for one in error.errors()]
        raise ConfigError(
            f"{where}: {'; '.join(faults)}",
            reason="layout-invalid",
            hint=f"known keys: {', '.join(Layout.model_fields)}; sizes are whole MiB",
        ) from error


def derive(seed: str, purpose: str) -> bytes:
    """32 bytes that follow from the image's seed and a purpose, framed so that no two pairs collide."""
    return hashlib.sha256(f"mixos-id-v1\0{len(seed)}\0{seed}\0{purpose}".encode()).digest()


def derive_uuid(seed: str, purpose: str) -> UUID:
    """A version 4 shaped UUID from the seed."""
    return UUID(bytes=derive(seed, purpose)[:16], version=4)


def check_fits(layout: Layout, root_size: int) -> None:
    """Raise ImageError when a root file system of so many bytes is larger than a slot."""
    if root_size > layout.slot * MIB:
        raise ImageError(
            f"the root file system has {root_size / MIB:.1f} MiB and a slot only {layout.slot} MiB",
            reason="root-too-large",
            hint="leave packages out, or raise `slot` in the image's layout",
        )


def table(layout: Layout, seed: str, root_hash: bytes) -> gpt.Table:
    """The partition table of a fresh image: slot A carries the identities of the root hash, slot B neutral ones.

    The kernel finds a slot by PARTUUID, so an empty slot must not carry the identities of a real one.
    """
    root_id, verity_id = verity.partition_ids(root_hash)
    parts: list[gpt.Partition] = []
    first = gpt.ALIGN // gpt.SECTOR
    for number, size in layout.sizes().items():
        ident = {ROOT_A: root_id, VERITY_A: verity_id}.get(number) or derive_uuid(seed, f"partition:{NAMES[number]}")
        last = first + size * MIB // gpt.SECTOR - 1
        read_only = gpt.ATTRIBUTE_READ_ONLY if number in (ROOT_A, VERITY_A, ROOT_B, VERITY_B) else 0
        parts.append(gpt.Partition(number, _TYPES[number], ident, first, last, NAMES[number], read_only))
        first = last + 1
    return gpt.checked(gpt.Table(derive_uuid(seed, "disk"), layout.disk_sectors, tuple(parts)))
