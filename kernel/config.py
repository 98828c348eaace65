"""Makes the kernel's configuration out of the fragments, and refuses one that is not what was asked for.

Steps: read and check the data, unpack the source as far as Kconfig reads it, resolve renames for its version, run
`allnoconfig` on the requests and `olddefconfig`, compare requested with final, hold the result against the hardening
rules.
Kconfig asks the compiler what it can do, so this runs in the sandbox in which the kernel is compiled.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from buildsys.job import Job
from buildsys.run import run
from common.errors import CheckError, ConfigError
from kernel.cmdline import read_cmdline
from kernel.hardening import Rule, Verdict, judge, read_rules, require
from kernel.kconfig import Request, defined_symbols, parse_final, read_fragments, read_symbols, render
from kernel.patches import Patch, read_series, stage
from kernel.source import source_version
from kernel.version import Version
from kernel.waivers import Resolution, Waiver, check_known, check_waivers, compare, read_waivers, resolve

SYMBOLS = "symbols-6.6-x86.txt"
KCONFIG_TIMEOUT = 600.0  # seconds; it takes 5 on an idle machine
# Said on make's command line, here and in build.sh, which no assignment in a tree's Makefile overrides (GNU make
# manual, 9.5): for what and with what it is built, whatever the tree's vendor builds it for. Programs whose mere
# presence changes the configuration are kept out of sight.
MAKE_VARIABLES = (
    *("ARCH=x86_64", "CROSS_COMPILE=", "LLVM=", "CC=gcc", "LD=ld", "HOSTCC=gcc"),
    *("PAHOLE=/nonexistent", "RUSTC=/nonexistent"),
)


@dataclass(frozen=True)
class Data:
    """What lies in the kernel/ folder, read and checked as far as it can be without a source."""

    requests: Mapping[str, Request]
    waivers: Sequence[Waiver]
    rules: Sequence[Rule]
    parameters: Sequence[str]
    patches: Sequence[Patch]


def read_data(folder: Path, today: datetime.date) -> Data:
    """Read the kernel/ folder: fragments, waivers, hardening rules, boot parameters, patches.

    today: the date that waivers expire against. Raises ConfigError or CheckError for the first thing that is wrong.
    """
    requests = read_fragments(folder / "fragments")
    waivers = read_waivers(folder / "waivers.toml")
    check_waivers(waivers, requests, today)
    check_known(requests, read_symbols(folder / SYMBOLS), waivers)
    return Data(
        requests,
        waivers,
        read_rules(folder / "hardening.toml"),
        read_cmdline(folder / "cmdline.txt"),
        read_series(folder / "patches"),
    )


def configure(job: Job) -> None:
    """The action. inputs: `linux` (tree, tarball or linux-source .deb), `kernel` (the kernel/ folder of the project).

    params: `today` (ISO date). Output: `config` (the whole .config), `report.json`, `cmdline` (one line), `patches/`
    (those for this version; build.sh applies them).
    Raises what `read_data`, `kernel.source`, `resolve`, `compare` and `require` raise.
    """
    folder = job.inputs["kernel"]
    data = read_data(folder, _today(job))
    script = run(
        ["sh", folder / "unpack.sh", job.inputs["linux"], job.work / "linux", "kconfig"],
        env={"JOBS": str(job.jobs)},
        split=True,
    )
    tree = Path(script.text)
    version = source_version(tree)
    resolution = resolve(data.requests, data.waivers, version, defined_symbols(tree))
    text = run_kconfig(tree, job.work / "out", resolution)
    final = parse_final(text)
    waived = compare(resolution, final, version)
    verdicts = judge(data.rules, final, data.parameters, resolution)
    print(f"Linux {version}: {len(resolution.effective)} requests, {len(resolution.absent) + len(waived)} waived")
    print(require(verdicts))
    (job.out / "config").write_text(text, encoding="utf-8")
    (job.out / "cmdline").write_text(" ".join(data.parameters) + "\n", encoding="utf-8")
    chosen = stage(data.patches, version, job.out / "patches")
    report = make_report(version, resolution, final, waived, verdicts)
    report["patches"] = {patch.path.name: patch.reason for patch in chosen}
    (job.out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _today(job: Job) -> datetime.date:
    """The plan's date."""
    try:
        return datetime.date.fromisoformat(str(job.params["today"]))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            "the kernel's configuration needs the parameter 'today' as YYYY-MM-DD", reason="kernel-today"
        ) from error


def run_kconfig(tree: Path, out: Path, resolution: Resolution) -> str:
    """Run the tree's own Kconfig on the requests, out of tree; the text of the final .config.

    `allnoconfig` switches off whatever KCONFIG_ALLCONFIG does not name; `olddefconfig` is then run to prove that the
    result is complete: a .config that it changes would change again in the compile. Raises CommandError when make fails
    and CheckError (kconfig-unstable).
    """
    out.mkdir(parents=True)
    wanted = out / "requests.config"
    wanted.write_text(
        render({symbol: request.value for symbol, request in resolution.effective.items()}), encoding="utf-8"
    )
    base: list[str | Path] = ["make", "-s", "-C", tree, f"O={out}", *MAKE_VARIABLES]
    run([*base, f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"], timeout=KCONFIG_TIMEOUT)
    first = (out / ".config").read_text(encoding="utf-8")
    run([*base, "olddefconfig"], timeout=KCONFIG_TIMEOUT)
    text = (out / ".config").read_text(encoding="utf-8")
    if parse_final(first) != parse_final(text):
        before, after = parse_final(first), parse_final(text)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        raise CheckError(
            f"the kernel's configuration does not settle: {', '.join(changed)}",
            reason="kconfig-unstable",
            hint="ask for these symbols in a fragment",
        )
    return text


def make_report(
    version: Version,
    resolution: Resolution,
    final: Mapping[str, str],
    waived: Mapping[str, str],
    verdicts: Sequence[Verdict],
) -> dict[str, object]:
    """report.json: version, compiler, requested and final values, renames, waivers used, hardening results."""
    used = {**resolution.renamed, **resolution.absent, **resolution.expected}
    return {
        "format": 1,
        "kernel": str(version),
        "release": str(version) + final.get("LOCALVERSION", "").strip('"'),  # what uname -r will say
        "compiler": final.get("CC_VERSION_TEXT", "").strip('"'),
        "requested": {symbol: request.value for symbol, request in resolution.effective.items()},
        "final": dict(final),
        "renamed": {symbol: waiver.instead for symbol, waiver in resolution.renamed.items()},
        "waived": [
            {
                "symbol": symbol,
                "kind": "renamed" if waiver.instead else "absent" if waiver.undefined else "changed",
                "final": waived.get(symbol),
                "reason": waiver.reason,
                "versions": waiver.versions.text,
                "expires": waiver.expires.isoformat(),
            }
            for symbol, waiver in sorted(used.items())
        ],
        "hardening": {
            "met": sum(verdict.state == "met" for verdict in verdicts),
            "waived": sum(verdict.state == "waived" for verdict in verdicts),
            "all": len(verdicts),
            "rules": [asdict(verdict) for verdict in verdicts],
        },
    }
