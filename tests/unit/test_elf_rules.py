"""ELF rules on hand-made files: one flaw each, found and named; sound files pass."""

from __future__ import annotations

import struct

import pytest

from common.errors import CheckError
from packages.mix.elf import Target, Waiver, check_image

LOADER = b"/lib/ld-musl-x86_64.so.1\0"
PT = {"LOAD": 1, "DYNAMIC": 2, "INTERP": 3, "STACK": 0x6474E551, "RELRO": 0x6474E552}
DT = {"NEEDED": 1, "STRTAB": 5, "SYMTAB": 6, "STRSZ": 10, "RPATH": 15, "TEXTREL": 22, "JMPREL": 23, "RUNPATH": 29}
DT |= {"FLAGS": 30, "FLAGS_1": 0x6FFFFFFB}


def elf(
    *,
    kind=3,
    machine=62,
    interpreter=LOADER,
    needed=(b"libc.so",),
    runpath=b"",
    stack=6,
    relro=True,
    now=True,
    textrel=False,
    load=5,
):
    """A minimal x86-64 ELF file: one segment over everything, strings and dynamic section behind the headers."""
    strings = b"\0"
    dynamic = []
    for name in needed:
        dynamic.append((DT["NEEDED"], len(strings)))
        strings += name + b"\0"
    if runpath:
        dynamic.append((DT["RUNPATH"], len(strings)))
        strings += runpath + b"\0"
    dynamic += [(DT["JMPREL"], 0)]
    if now:
        dynamic += [(DT["FLAGS"], 8), (DT["FLAGS_1"], 1)]
    if textrel:
        dynamic += [(DT["TEXTREL"], 0)]
    base = 64 + 56 * 5
    text_at = base + len(interpreter or b"")
    dynamic += [(DT["STRTAB"], text_at), (DT["STRSZ"], len(strings)), (DT["SYMTAB"], text_at), (0, 0)]
    table = b"".join(struct.pack("<QQ", *entry) for entry in dynamic)
    dynamic_at = text_at + len(strings)
    total = dynamic_at + len(table)

    def segment(name, flags, at, size):
        return struct.pack("<IIQQQQQQ", PT[name], flags, at, at, at, size, size, 1)

    segments = [segment("LOAD", load, 0, total), segment("DYNAMIC", 6, dynamic_at, len(table))]
    if interpreter:
        segments.append(segment("INTERP", 4, base, len(interpreter)))
    if stack is not None:
        segments.append(segment("STACK", stack, 0, 0))
    if relro:
        segments.append(segment("RELRO", 4, 0, total))
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    body = header + b"".join(segments)
    return body.ljust(base, b"\0") + (interpreter or b"") + strings + table


def check(tmp_path, data, path="usr/bin/x", others=("usr/lib/ld-musl-x86_64.so.1",), waivers=()):
    source = tmp_path / "x"
    source.write_bytes(data)
    text = tmp_path / "text"
    text.write_bytes(b"#!")
    files = {path: source, **dict.fromkeys(others, text)}
    return check_image(files, {"usr/lib/libz.so.1": "libz.so.1.3"}, Target(), waivers)


@pytest.mark.parametrize(
    "data",
    [
        elf(),
        elf(needed=(b"libz.so.1", b"libc.musl-x86_64.so.1")),
        elf(interpreter=None, needed=(), now=False),  # static-pie
        elf(runpath=b"$ORIGIN/../lib/own:/usr/lib/y"),
    ],
)
def test_sound_files(tmp_path, data):
    assert check(tmp_path, data) == 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (elf(interpreter=b"/lib64/ld-linux-x86-64.so.2\0"), "interpreter"),
        (elf(needed=(b"libgone.so.3",)), "needed"),
        (elf(kind=2), "pie"),
        (elf(kind=1), "pie"),
        (elf(relro=False), "relro"),
        (elf(now=False), "relro"),
        (elf(stack=7), "stack"),
        (elf(stack=None), "stack"),
        (elf(textrel=True), "textrel"),
        (elf(runpath=b"/home/build/lib"), "rpath"),
        (elf(runpath=b"$ORIGIN/../../../tmp"), "rpath"),
        (elf(runpath=b"lib"), "rpath"),
        (elf(machine=183), "machine"),
        (elf(load=7), "wx"),
        (elf()[:70], "damaged"),
        (b"\x7fELF", "damaged"),
    ],
)
def test_flaws(tmp_path, data, problem):
    with pytest.raises(CheckError) as caught:
        check(tmp_path, data)
    assert caught.value.reason == "elf-rules"
    assert f"usr/bin/x: {problem}: " in caught.value.message
    waiver = Waiver("usr/bin/*", problem, "test")
    assert check(tmp_path, data, waivers=[waiver]) == 1


def test_every_problem_is_listed(tmp_path):
    with pytest.raises(CheckError) as caught:
        check(tmp_path, elf(kind=2, stack=7, needed=(b"liba.so", b"libb.so")))
    assert caught.value.message.count("usr/bin/x") == 4


def test_stale_waiver(tmp_path):
    with pytest.raises(CheckError) as caught:
        check(tmp_path, elf(), waivers=[Waiver("**", "pie", "test")])
    assert caught.value.reason == "elf-waiver-stale"


def test_missing_loader(tmp_path):
    with pytest.raises(CheckError):
        check(tmp_path, elf(), others=())
