"""Which QEMU acceleration works on this host.

/dev/kvm existing proves nothing: on nested paravirtual hosts a guest hangs in its first instructions, or QEMU aborts
because a register cannot be set. So a guest of one boot sector is run that goes to long mode with paging, asks CPUID
and ends QEMU through the isa-debug-exit device. The answer is kept until the host reboots or its CPU or QEMU changes;
"no" is kept for an hour, since a busy host is slow, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from buildsys.files import cache_root
from buildsys.run import ANY_STATUS, CommandError, find_tool, run

QEMU = "qemu-system-x86_64"
PROBE_SECONDS = 10.0
_NO_HOLDS = 3600.0  # seconds
_EXIT_VALUE = 0x10
_EXIT_STATUS = _EXIT_VALUE << 1 | 1  # what isa-debug-exit makes of it

# Boot sector at 0x7c00: real mode → page tables at 0x8000 (one 2 MiB page) → long mode → cpuid → out 0xf4.
_PROBE_CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc0070"  # cli; ax = ds = es = ss = 0; sp = 0x7000
    "bf0080b90018f3ab"  # clear 0x8000..0xafff
    "c70600800390c706009003a0c70600a08300"  # PML4[0] → 0x9000, PDPT[0] → 0xa000, PD[0]: 2 MiB page at 0
    "66b8008000000f22d8"  # cr3 = 0x8000
    "66b8200000000f22e0"  # cr4 = PAE
    "66b9800000c00f32660d000100000f30"  # EFER |= LME
    "660f0116807c"  # lgdt
    "0f20c0660d010000800f22c0"  # cr0 |= PG | PE
    "ea5f7c0800"  # far jump to 64-bit code
    "31c00fa2"  # cpuid leaf 0
    "b010e6f4"  # out 0xf4, 0x10
    "f4ebfd"  # halt for ever
    "660f1f440000"
    "000000000000000000000000009a2000"  # GDT: null, 64-bit code
    "0f00707c0000"  # limit and address of the GDT
)


@dataclass(frozen=True)
class Acceleration:
    """name: "kvm" or "tcg"; reason: why it was chosen, in words for people."""

    name: str
    reason: str

    def arguments(self) -> list[str]:
        """The QEMU arguments for it."""
        if self.name == "kvm":
            return ["-accel", "kvm", "-cpu", "host"]
        # A small translation cache: with the default (1 GiB) a guest's warm reboot takes minutes, as the firmware
        # writes over memory for which stale translations are still kept, and each write has to drop some.
        # Without ERMS and FSRM the kernel clears pages eight bytes at a time: these name what a processor does fast and
        # an emulator byte by byte.
        return ["-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max,-erms,-fsrm"]


def choose(wanted: str = "auto", cache: Path | None = None) -> Acceleration:
    """The acceleration to use. wanted: "auto", "kvm" or "tcg"; cache: file for the probe's answer."""
    if wanted != "auto":
        return Acceleration(wanted, "asked for")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Acceleration("tcg", "/dev/kvm is missing or not accessible")
    path = cache or cache_root() / "accel.json"
    key = _host_key()
    known = _remembered(path, key)
    if known is None:
        failed = Acceleration("tcg", "KVM is there but its guests do not run")
        known = Acceleration("kvm", "probed") if probe("kvm") else failed
        with contextlib.suppress(OSError):  # then it is probed again the next time
            _remember(path, key, known)
    return known


def probe(name: str, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a tiny guest runs to its end with this acceleration: it may hang, and QEMU may abort."""
    argv: list[str | Path] = [find_tool(QEMU), "-machine", "q35", "-m", "16", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    argv += Acceleration(name, "probe").arguments()
    with tempfile.TemporaryDirectory(prefix="mixos-probe-") as folder:
        sector = Path(folder, "boot.bin")
        sector.write_bytes(_PROBE_CODE.ljust(510, b"\0") + b"\x55\xaa")
        try:
            done = run(
                [*argv, "-drive", f"file={value(sector)},format=raw,if=floppy,readonly=on"],
                allow=ANY_STATUS,
                timeout=seconds,
            )
        except CommandError as error:
            if error.reason != "command-timeout":
                raise
            return False
    return done.status == _EXIT_STATUS


def value(path: Path) -> str:
    """A path inside a QEMU option list, where a comma is written twice."""
    return str(path.absolute()).replace(",", ",,")


def _host_key() -> str:
    """Changes when the host reboots (modules, nested settings) or its CPU or QEMU is another."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    facts = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    model = next((line for line in facts if line.startswith("model name")), "")
    qemu = find_tool(QEMU).resolve()
    return f"{boot}|{model.partition(':')[2].strip()}|{qemu}|{qemu.stat().st_mtime_ns}"


def _remembered(path: Path, key: str) -> Acceleration | None:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # no answer yet, or a torn one: probe again
        return None
    if not isinstance(record, dict) or record.get("key") != key or record.get("name") not in ("kvm", "tcg"):
        return None
    if record["name"] != "kvm" and not 0 <= time.time() - float(record.get("time", 0)) < _NO_HOLDS:
        return None
    return Acceleration(str(record["name"]), str(record.get("reason", "")))


def _remember(path: Path, key: str, answer: Acceleration) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({"key": key, "time": time.time(), **asdict(answer)}) + "\n")
    fresh.replace(path)
