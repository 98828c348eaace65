"""Values as people write them in unit files: sizes, durations, counts, signals, addresses, calendar times.

Each type is an `Annotated` one: the text is checked and converted where it is read, so that a mistake is reported with
file, line and column, and the rest of the code sees bytes, seconds and numbers.
"""

from __future__ import annotations

import re
import signal
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, StringConstraints

from common import addresses

_SIZE = re.compile(r"(\d{1,15})([KMGT]?)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|min|m|h|d|w)")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_CALENDAR = re.compile(
    r"(?:(?P<hourly>hourly)(?: at :(?P<only>\d\d))?"
    r"|(?:daily|weekly on (?P<weekday>[a-z]+)|monthly on (?P<day>\d{1,2})) at (?P<hour>\d\d):(?P<minute>\d\d))"
)
MAX_SECONDS = 366 * 86400.0


def size(value: Any) -> int:
    """Bytes: a number, or a text with a binary suffix ("64M" is 64 × 2^20). Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62:
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("a size is expected, such as 512K, 64M or 1G")
    return int(found[1]) << (10 * " KMGT".index(found[2] or " "))


def duration(value: Any) -> float:
    """Seconds: a number, or a text such as "250ms", "10s", "1h30m". Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and value and not _PART.sub("", value):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
    else:
        raise ValueError("a duration is expected, such as 250ms, 10s, 5m or 1h30m")
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError("a duration lies between 0 and 366d")
    return seconds


def signal_number(value: Any) -> int:
    """The number of a signal by its name ("TERM" or "SIGTERM", "RTMIN+1", "RTMAX-1") or number. Raises ValueError."""
    text = str(value).removeprefix("SIG") if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if found := re.fullmatch(r"(RTMIN\+|RTMAX-|)([0-9]{1,2})", text):
        number = {"": 0, "RTMIN+": signal.SIGRTMIN, "RTMAX-": signal.SIGRTMAX}[found[1]]
        number += -int(found[2]) if found[1] == "RTMAX-" else int(found[2])
    else:
        number = int(getattr(signal.Signals, f"SIG{text}", 0))
    if number not in signal.valid_signals() or (found and found[1] and number < signal.SIGRTMIN):
        raise ValueError("a signal is expected, such as TERM, HUP, 9 or RTMIN+1")
    return number


def signal_name(number: int) -> str:
    """The same the other way: "SIGTERM", "SIGRTMIN+1"."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return (
            f"SIGRTMIN+{number - signal.SIGRTMIN}" if signal.SIGRTMIN < number < signal.SIGRTMAX else f"signal {number}"
        )


def mode(value: Any) -> int:
    """Permission bits written in octal ("0660"). Raises ValueError."""
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError('octal permission bits are expected, as text: "0660"')
    return int(value, 8)


class Rlimit(NamedTuple):
    """Soft and hard limit; -1 is "unlimited"."""

    soft: int
    hard: int


def rlimit(value: Any) -> Rlimit:
    """One number for both limits, or "SOFT:HARD", each a number, a size or "unlimited". Raises ValueError."""
    parts = str(value).split(":") if isinstance(value, str | int) and not isinstance(value, bool) else []
    if not 1 <= len(parts) <= 2:
        raise ValueError('a limit is expected, such as 1024, "1024:4096" or "unlimited"')
    numbers = [-1 if part == "unlimited" else size(int(part) if part.isdigit() else part) for part in parts]
    soft, hard = numbers[0], numbers[-1]
    if hard != -1 and not 0 <= soft <= hard:
        raise ValueError("the soft limit is above the hard one")
    return Rlimit(soft, hard)


class Address(NamedTuple):
    """Where TCP is spoken: a numeric address ("127.0.0.1", "::1") and a port."""

    host: str
    port: int


def host_and_port(text: str) -> tuple[str, int]:
    """The two of HOST:PORT or [V6]:PORT; the host is empty when there is only a port. Raises ValueError."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise ValueError(f"{text[:80]!r} does not end in a port, a number from 1 to 65535 such as in 192.0.2.1:80")
    if bracketed != (":" in host):
        raise ValueError(f"{text[:80]!r}: an IPv6 address stands in brackets, and nothing else: [2001:db8::1]:80")
    return host, int(port)


def address(value: Any) -> Address:
    """PORT (this machine only), "ADDRESS:PORT" or "[V6]:PORT"; names are not looked up. Raises ValueError."""
    host, port = host_and_port(str(value) if isinstance(value, str | int) and not isinstance(value, bool) else "")
    return Address(str(addresses.address(host)) if host else "127.0.0.1", port)


class Calendar(NamedTuple):
    """A repeated local time. hour None: every hour; weekday (0 is Monday) and day (of the month) None: every day."""

    minute: int
    hour: int | None = None
    weekday: int | None = None
    day: int | None = None
    text: str = ""


def calendar(value: Any) -> Calendar:
    """One of "hourly", "hourly at :15", "daily at 04:00", "weekly on sunday at 04:00", "monthly on 1 at 04:00"."""
    found = _CALENDAR.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(
            '"hourly", "daily at 04:00", "weekly on sunday at 04:00" or "monthly on 1 at 04:00" is expected'
        )
    minute = int(found["minute"] or found["only"] or 0)
    hour = None if found["hourly"] else int(found["hour"])
    if minute > 59 or (hour or 0) > 23:
        raise ValueError("a time lies between 00:00 and 23:59")
    if found["weekday"] and found["weekday"] not in _DAYS:
        raise ValueError(f"a day of the week is expected: {', '.join(_DAYS)}")
    weekday = _DAYS.index(found["weekday"]) if found["weekday"] else None
    day = int(found["day"]) if found["day"] else None
    if day is not None and not 1 <= day <= 28:
        raise ValueError("the day of a month lies between 1 and 28, which every month has")
    return Calendar(minute, hour, weekday, day, str(value))


NAME = r"[a-z0-9][a-z0-9_-]{0,47}"  # also a folder, a cgroup and part of a socket's path (108 bytes: unix(7))
PATTERNS = {  # in words
    NAME: "up to 48 of a-z, 0-9, - and _ are expected, a letter or digit first",
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}": "up to 64 letters, digits, ., - and _ are expected, a letter or digit first",
    r"CAP_[A-Z_]+": "the name of a capability is expected, such as CAP_NET_BIND_SERVICE",
}


def worded(pattern: str, words: str) -> StringConstraints:
    """Text that the pattern matches as a whole; `words` say in a message what that is."""
    PATTERNS[pattern] = words
    return StringConstraints(pattern=f"^{pattern}$")


Name = Annotated[str, StringConstraints(pattern=rf"^{NAME}$")]
Size = Annotated[int, BeforeValidator(size)]
Duration = Annotated[float, BeforeValidator(duration)]
SignalNumber = Annotated[int, BeforeValidator(signal_number)]
Mode = Annotated[int, BeforeValidator(mode)]
Limit = Annotated[Rlimit, BeforeValidator(rlimit)]
Endpoint = Annotated[Address, BeforeValidator(address)]
CalendarTime = Annotated[Calendar, BeforeValidator(calendar)]
