"""What a release does to data that an earlier one has left: `mNNNN_what.py`, run once each, in order of numbers.

A module has `forward(tree)`, and `backward(tree)` where an older release can be given more than what it had: see
`daemon.core.release.tree.Tree` and docs/updates.md. It imports nothing of the parts, whose code changes: a migration
does not. What is in a folder of this package is in the image; `/usr/lib/mixos/init/stages/52-release.sh` looks for the
last number.
"""

from __future__ import annotations

import os
import re
from importlib import import_module

from daemon.core.release.switch import Migration

_NAME = re.compile(r"m([0-9]{4})_[a-z0-9_]+")


def migrations() -> list[Migration]:
    """All of them, by number."""
    names = sorted({name.partition(".")[0] for folder in __path__ for name in os.listdir(folder)})
    found = []
    for name in names:
        if match := _NAME.fullmatch(name):
            module = import_module(f"{__name__}.{name}")
            found.append(Migration(int(match[1]), name, module.forward, getattr(module, "backward", None)))
    return found
