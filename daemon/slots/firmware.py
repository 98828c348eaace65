"""Whether firmware will start a kernel image: asked of its databases before the image is put where the loader looks."""

from __future__ import annotations

from pathlib import Path

from common.efi import siglist
from common.errors import DiskError, RefusedError
from common.files import read_regular

_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # EFI_GLOBAL_VARIABLE (UEFI 2.10, section 3.3)
_ATTRIBUTES = 4  # bytes before the content in efivarfs (Documentation/filesystems/efivarfs.rst)


def check(image: bytes, root: Path) -> None:
    """Raises RefusedError `update-secure-boot` for an image that firmware would not start, now that Secure Boot is on;
    DiskError `slots-firmware` when its databases cannot be read."""
    enforced = _variable(root, "SecureBoot", _GLOBAL)
    if not enforced or enforced[-1] != 1:
        return
    db, dbx = (_variable(root, name, siglist.VARIABLES[name]) or b"" for name in ("db", "dbx"))
    why = siglist.refusal(image, db, dbx)
    if why is not None:
        hint = "sign its kernel image with a key that this machine's db trusts: see docs/secureboot.md"
        raise RefusedError(f"firmware would not start this release: {why}", reason="update-secure-boot", hint=hint)


def _variable(root: Path, name: str, vendor: object) -> bytes | None:
    """Its content; None: there is no such variable."""
    path = root / f"sys/firmware/efi/efivars/{name}-{vendor}"
    try:
        return read_regular(path, siglist.MAX_DATABASE + _ATTRIBUTES)[_ATTRIBUTES:]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}", reason="slots-firmware") from error
