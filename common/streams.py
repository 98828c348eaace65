"""Standard streams that whoever starts a program may have closed."""

from __future__ import annotations

import os
import sys


def open_missing() -> None:
    """Put /dev/null in the place of each standard stream that is closed, before anything else is opened: that must not
    take its number, since whoever writes a message would write into it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  # for as long as we run
