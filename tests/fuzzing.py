"""What readers of outside bytes do with bytes that nobody meant: they read them, or raise the errors they document.

    python -m tests.fuzzing 1000000 [READER...]

gives that many to each reader (`tests/readers.py`), mutations of what is valid, and prints a table: reader, executions,
seconds, how many were refused. Whatever else happens is a finding, printed with its bytes; then the exit code is 1. The
mutations of a reader are the same each time.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

SECONDS = 1.0  # of the processor, for one execution
MEMORY = 256 << 20  # bytes of address space that an execution may add
LONGEST = 64 << 10  # bytes of a mutation; most are far shorter
_SHORT = 4 << 10
# What readers take for numbers, ends, names and structure.
_WORDS = (
    b"0", b"-1", b"255", b"256", b"65536", b"4294967295", b"9223372036854775808", b"9" * 400, b"9" * 5000, b"1e999",
    b"\0", b"\n", b"\r\n", b"\r", b"\t", b" ", b"\xff", b"\xc3\xa9", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xed\xa0\x80",
    b"[", b"]", b"[[", b"{", b"}", b'"', b"'", b'"""', b"\\", b"\\u0000", b"=", b"#", b":", b",", b".", b"/", b"%",
    b"-", b"nan", b"inf", b"true", b"null", b"1979-05-27T07:32:00Z", b"../", b"::", b"\xc2\xb2", b"\xd9\xa1",
)  # fmt: skip


class Reader(NamedTuple):
    """seeds: what is valid; read: raises nothing but `errors`; cost: how many times the executions of the usual reader
    one of this takes, so that of a slow one there are fewer."""

    name: str
    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    cost: int = 1


class Result(NamedTuple):
    """findings: what happened, with the bytes."""

    executions: int
    seconds: float
    refused: int
    findings: list[str]


class TooLongError(BaseException):
    """Not an Exception: readers must not take it for a fault of theirs."""


def mutations(seeds: Sequence[bytes], chance: random.Random) -> Iterator[bytes]:
    """Without end: seeds with bytes changed, cut out, put in, repeated, exchanged with those of others."""
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
            _mutate(data, seeds, chance)
        yield bytes(data[:LONGEST])


def _mutate(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    kind, size = chance.randrange(100), len(data)
    at = chance.randrange(size + 1)
    end = min(size, at + chance.choice((1, 1, 2, 4, 8, 32, size)))
    if kind < 20 and at < size:
        data[at] ^= 1 << chance.randrange(8)
    elif kind < 35 and at < size:
        data[at] = chance.randrange(256)
    elif kind < 50:
        del data[at:end]
    elif kind < 55:
        del data[at:]
    elif kind < 75:
        data[at : chance.choice((at, end))] = chance.choice(_WORDS)
    elif kind < 85:
        other = chance.choice(seeds)
        begin = chance.randrange(len(other) + 1)
        data[at : chance.choice((at, end))] = other[begin : begin + chance.choice((1, 4, 16, 64, len(other)))]
    elif at < end:
        most = LONGEST if kind == 99 else _SHORT  # of these, which are slow, there are few
        times = chance.choice((1, 1, 2, 3, 10, max(1, (most - size) // (end - at))))
        data[at:at] = data[at:end] * times


def fuzz(reader: Reader, times: int, most: int = 5) -> Result:
    """Give a reader its seeds, of which it must refuse none, and so many mutations; the first findings end it."""
    stream = mutations(reader.seeds, random.Random(reader.name))
    findings: list[str] = []
    refused = number = 0
    begin = time.monotonic()
    for seed in reader.seeds:
        try:
            reader.read(seed)
        except Exception as error:  # noqa: BLE001  # whatever it is
            return Result(0, 0.0, 0, [_finding(reader, seed, error)])
    with _guarded():
        for number in range(1, times + 1):  # noqa: B007  # how far it came
            data = next(stream)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                reader.read(data)
            except reader.errors:
                refused += 1
            except (Exception, TooLongError) as error:  # noqa: BLE001  # whatever it is
                signal.setitimer(signal.ITIMER_PROF, 0)
                findings.append(_finding(reader, data, error))
                if len(findings) == most:
                    break
    return Result(number, time.monotonic() - begin, refused, findings)


def _finding(reader: Reader, data: bytes, error: BaseException) -> str:
    place = "".join(traceback.format_exception(error, limit=-3))
    return f"{reader.name}: {data if len(data) < 3000 else data[:3000] + b' ...'!r}\n{place}"


@contextmanager
def _guarded() -> Iterator[None]:
    """Ends what takes too long or too much memory."""

    def ended(number: int, frame: FrameType | None) -> None:
        raise TooLongError(f"more than {SECONDS} s")

    before, limits = signal.signal(signal.SIGPROF, ended), resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _run(name: str, times: int) -> tuple[str, Result]:
    from tests.readers import READERS

    reader = READERS[name]
    return name, fuzz(reader, times // reader.cost)


def main(times: int, names: Sequence[str]) -> int:
    """Of all readers, or of these; the exit code."""
    from tests.readers import READERS

    found: list[str] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for work in as_completed(pool.submit(_run, name, times) for name in names or READERS):
            name, result = work.result()
            words = f"{result.executions:>9} {result.seconds:>7.1f} s {result.refused:>9} refused"
            print(f"{name:<24}{words} {len(result.findings):>3} findings", flush=True)
            print("\n".join(result.findings), end="", flush=True)
            found += result.findings
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
