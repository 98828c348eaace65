"""Per part: what was good last of its files (PART.good), and what was tried and not confirmed (PART.refused)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from common.errors import MixosError
from common.files import write_atomically
from daemon.core.change.applier import ETC, View
from daemon.core.change.record import Contents


class Memory:
    """Of one device. folder: where the files are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def good(self, part: str) -> Contents | None:
        """Its files below /etc/mixos as they were in force for good last; None when nothing is known of them."""
        try:
            data = json.loads(self._path(part, "good").read_bytes())
            return {str(name): None if text is None else str(text).encode() for name, text in data.items()}
        except (OSError, ValueError, AttributeError, RecursionError):
            return None

    def keep(self, part: str, contents: Contents) -> None:
        """They are good, and nothing is refused any more. Raises MixosError `change-journal`."""
        texts = {
            name: None if data is None else data.decode("utf-8", "replace")
            for name, data in sorted(contents.items())
            if name.startswith(ETC)
        }
        data, path = json.dumps(texts).encode(), self._path(part, "good")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists() or path.read_bytes() != data:
                write_atomically(path, data, 0o600)
            self._path(part, "refused").unlink(missing_ok=True)
        except OSError as error:
            raise MixosError(
                f"{path} cannot be written: {error.strerror}", reason="change-journal", hint="mixctl storage usage"
            ) from error

    def refuse(self, part: str, contents: Contents) -> None:
        """They were undone: the next start does not take them up. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._path(part, "refused"), _digests(contents), 0o600)

    def refused(self, part: str, view: View) -> bool:
        """Whether files say what was undone and was not confirmed since."""
        try:
            refused = json.loads(self._path(part, "refused").read_bytes())
            return bool(refused) and json.loads(_digests({str(one): view.read(one) for one in refused})) == refused
        except (OSError, ValueError, TypeError, RecursionError):
            return False

    def _path(self, part: str, kind: str) -> Path:
        return self.folder / f"{part}.{kind}"


def _digests(contents: Contents) -> bytes:
    digests = {
        name: None if data is None else hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())
    }
    return json.dumps(digests).encode()
