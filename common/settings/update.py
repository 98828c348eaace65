"""How a device takes releases by itself: from which channel, when, over what, how much. Standard library only.

    [update]                                 # [settings.update] in mixos.toml; update.toml has the keys alone
    channel = "https://updates.example/mixos"
    fetch = "any"                            # or "window", "manual": when a release is fetched into the other slot
    apply = "manual"                         # or "window", "reboot": when the device starts it
    when = ["sat,sun 02:00-05:00"]           # maintenance windows, in local time
    metered = ["wwan0"]                      # interfaces over which nothing is fetched
    max-bytes = "64M"                        # of a release that is fetched: not the whole image, say; default: any

What a person asks for is done at once, whatever is said here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from urllib.parse import urlsplit

FETCH = ("any", "window", "manual")
APPLY = ("manual", "window", "reboot")
MAX_WINDOWS = 16
MAX_METERED = 16
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY, _WEEK = 24 * 60, 7 * 24 * 60  # minutes
_TIME = r"([01][0-9]|2[0-3]):([0-5][0-9])"
_WINDOW = re.compile(rf"(?:([a-z,-]{{3,40}}) +)?{_TIME}-(?:{_TIME}|(24):(00))")
_SIZE = re.compile(r"([0-9]{1,15})([KMG]?)")

NotNow = Literal["manual", "window", "metered", "size", "reboot"]


@dataclass(frozen=True)
class Update:
    """The table. channel: URL of a folder, "": none. max_bytes: 0 for any number."""

    channel: str = ""
    fetch: str = "any"
    apply: str = "manual"
    when: tuple[str, ...] = ()
    metered: tuple[str, ...] = ()
    max_bytes: int = 0

    def as_mapping(self) -> dict[str, object]:
        """The table; only what differs from its default."""
        found = {
            "channel": self.channel,
            "fetch": self.fetch,
            "apply": self.apply,
            "when": list(self.when),
            "metered": list(self.metered),
            "max-bytes": self.max_bytes,
        }
        return {key: value for key, value in found.items() if value != _DEFAULTS[key]}

    def toml(self) -> str:
        """The file `update.toml`."""
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.as_mapping().items())

    def no_fetch(self, local: datetime, interface: str, transfer: int) -> NotNow | None:
        """Why so many bytes are not fetched by itself now. local: the time of day here; interface: of the way out."""
        if self.fetch == "manual":
            return "manual"
        if self.max_bytes and transfer > self.max_bytes:
            return "size"
        if interface in self.metered:
            return "metered"
        return "window" if self.fetch == "window" and not is_open(self.when, local) else None

    def no_apply(self, local: datetime) -> NotNow | None:
        """Why the device is not restarted into a release by itself now. `reboot`: whoever restarts it starts that."""
        if self.apply != "window":
            return "reboot" if self.apply == "reboot" else "manual"
        return None if is_open(self.when, local) else "window"


_DEFAULTS: dict[str, object] = {
    "channel": "",
    "fetch": "any",
    "apply": "manual",
    "when": [],
    "metered": [],
    "max-bytes": 0,
}
KEYS = tuple(_DEFAULTS)


def channel_problem(url: str) -> str | None:
    """What is wrong with the address of a channel, or None."""
    if not re.fullmatch(r"[!#-;=?-\[\]^_a-z~]{1,512}", url):
        return "is not an address such as 'https://updates.example/mixos' (other characters are written as %XX)"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"is no web address: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "is not an address such as 'https://updates.example/mixos'"
    if parts.username is not None or parts.password is not None:
        return "holds a name or a password, which everybody here could read"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "is of a file: the address of the folder is needed, without ? and #"
    return None


def window_problem(window: str) -> str | None:
    """What is wrong with a maintenance window, or None."""
    found = _WINDOW.fullmatch(window)
    if found is None:
        return f"{window!r} is not a window such as 'sat,sun 02:00-05:00' or 'mon-fri 22:00-04:00'"
    days, begin, end = _parts(found)
    if not days:
        return f"{window!r}: days are {', '.join(DAYS)}, one, several, or from-to"
    return f"{window!r} begins when it ends; for all day: 00:00-24:00" if begin == end else None


def is_open(windows: Iterable[str], local: datetime) -> bool:
    """Whether a maintenance window is open. One that ends earlier in the day than it begins ends on the next."""
    return _closed_for(windows, local) == 0


def opens_in(windows: Iterable[str], local: datetime) -> int | None:
    """Seconds until one is open, 0 while one is; None: there are no windows."""
    minutes = _closed_for(windows, local)
    return None if minutes is None else max(0, minutes * 60 - local.second) if minutes else 0


def _closed_for(windows: Iterable[str], local: datetime) -> int | None:
    """Minutes until a window is open, counted from the beginning of this minute; None: never."""
    now = local.weekday() * _DAY + local.hour * 60 + local.minute
    waits = []
    for window in windows:
        found = _WINDOW.fullmatch(window)
        if found is None:
            continue
        days, begin, end = _parts(found)
        for day in days:
            start = day * _DAY + begin
            length = end - begin if end > begin else end - begin + _DAY
            waits.append(0 if (now - start) % _WEEK < length else (start - now) % _WEEK)
    return min(waits, default=None)


def _parts(found: re.Match[str]) -> tuple[list[int], int, int]:
    """Days (0 is Monday; none when one is misspelt), begin and end in minutes of the day."""
    begin = int(found[2]) * 60 + int(found[3])
    end = int(found[4] or found[6]) * 60 + int(found[5] or found[7])
    days: list[int] = []
    for word in (found[1] or "mon-sun").split(","):
        first, dash, last = word.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            return [], begin, end
        span = (DAYS.index(last) - DAYS.index(first)) % 7 if dash else 0
        days += [(DAYS.index(first) + step) % 7 for step in range(span + 1)]
    return days, begin, end


def size(value: object) -> int | None:
    """Bytes of a number, or of text such as "64M"; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < 1 << 53 else None
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    count = int(found[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[found[2]]
    return count if count < 1 << 53 else None
