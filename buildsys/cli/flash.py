"""mixos flash"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import click

from buildsys.cli.context import Context, emit, json_option, pass_context
from common.disk import gpt
from common.errors import UsageError
from common.units import size
from image import flash as flashing
from image.blockdev import Device

NAMED = click.Path(readable=False, path_type=Path)  # who opens it says what is missing: root's rights, for a disk


@click.command()
@click.argument("image", type=NAMED)
@click.argument("device", type=NAMED)
@click.option("--preseed", type=NAMED, help="First-boot settings to put on the ESP; checked first.")
@click.option("--file", "to_file", is_flag=True, help="DEVICE is a regular file.")
@click.option(
    "--sector-size",
    type=click.Choice([str(size) for size in gpt.SECTORS]),
    help="With --file: of the disk that the file is for (default: 512).",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_context
def flash(
    context: Context,
    image: Path,
    device: Path,
    preseed: Path | None,
    to_file: bool,
    sector_size: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Write IMAGE to the disk DEVICE and verify every byte. All data on DEVICE is lost.

    IMAGE may be packed (.xz, .zst, .gz, .bz2), or - for standard input.

    Example: mixos flash out/mixos-0.1.0-x86_64.img /dev/sdX --preseed mixos-preseed.toml
    """
    if sector_size and not to_file:
        raise UsageError("--sector-size goes with --file: a disk says itself what it has", reason="usage")

    def confirm(found: Device) -> bool:
        print(f"{found.describe()}\nEverything on it will be lost.", file=sys.stderr)
        if yes:
            return True
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to confirm", reason="not-confirmed", hint="pass --yes if you are sure")
        return click.confirm("Write to it?", err=True)

    warnings: list[str] = []

    def warn(text: str) -> None:
        print(f"WARNING: {text}; --preseed FILE can bring a key", file=sys.stderr)
        warnings.append(text)

    shown = ""

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal shown
        line = f"{phase}: {100 * done // total} % of {size(total)}" if total else f"{phase}: {size(done)}"
        if line != shown and sys.stderr.isatty():
            with suppress(OSError):  # a terminal that went away does not leave half a system on the disk
                print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
        shown = line

    result = flashing.flash(
        image,
        device,
        confirm,
        file=to_file,
        sector=int(sector_size or gpt.SECTOR),
        preseed=preseed,
        progress=progress,
        warn=warn,
    )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    data = {
        "device": str(device),
        "bytes": result.written,
        "seconds": round(result.seconds, 1),
        "verified": True,
        "warnings": warnings,
    }
    emit(
        data,
        as_json,
        f"wrote and verified {size(result.written)} in {result.seconds:.1f} s; it can be booted now",
    )
