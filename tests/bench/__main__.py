"""`python -m tests.bench`: measure, print a table, write out/bench.json. Nothing here passes or fails on a time."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from buildsys.files import atomic_write
from buildsys.project import Project
from common.errors import HostError, MixosError
from tests import hostpackages
from tests.bench import api, boots, builds, filesystems, guest, peer, sandbox_spawn, scale, supervision
from tests.bench.figures import Figure, document, table

GROUPS = ("cold", "warm", "sizes", "supervision", "scale", "sandbox", "api", "boot", "guest")


def main() -> int:
    """Measure what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", choices=GROUPS, action="append", help="measure only this (may be repeated)")
    parser.add_argument("--boots", type=int, default=3, metavar="N", help="boots of each system (default: 3)")
    parser.add_argument("--no-peer", action="store_true", help="leave the distribution's minimal system out")
    parser.add_argument("--fresh-peer", action="store_true", help="build that system again")
    parser.add_argument("--filesystems", action="store_true", help="also compare squashfs and EROFS")
    parser.add_argument("--save", action="store_true", help="also keep the figures below tests/bench/results")
    options = parser.parse_args()
    try:
        return bench(Project.at(hostpackages.ROOT), options)
    except MixosError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code


def bench(project: Project, options: argparse.Namespace) -> int:
    """Measure, print, write."""
    if not project.image_file.is_file():
        raise HostError(f"there is no image {project.image_file}", reason="image-missing", hint="make image")
    groups = [*(options.only or GROUPS), *(["filesystems"] if options.filesystems else [])]
    hostpackages.ensure(hostpackages.ROOT / "ci" / "bench-packages", groups)
    measure: dict[str, Callable[[], list[Figure]]] = {
        "cold": lambda: builds.cold(project),
        "warm": lambda: builds.warm(project),
        "sizes": lambda: builds.sizes(project),
        "supervision": supervision.figures,
        "scale": scale.figures,
        "sandbox": sandbox_spawn.figures,
        "api": api.figures,
        "boot": lambda: boot(project, options),
        "guest": guest.figures,
        "filesystems": lambda: filesystems.compare(project, options.boots),
    }
    figures: list[Figure] = []
    for group in groups:
        say(group)
        figures += measure[group]()
    now = datetime.now(UTC)
    results = document(figures, now.isoformat(timespec="seconds"))
    data = json.dumps(results, indent=1, ensure_ascii=False).encode() + b"\n"
    places = [project.out / "bench.json"]
    if options.save:
        places.append(hostpackages.ROOT / "tests" / "bench" / "results" / f"{now:%Y-%m-%d-%H%M}.json")
    for path in places:
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, data)
    print(table(figures))
    return 0


def boot(project: Project, options: argparse.Namespace) -> list[Figure]:
    """Boots of MixOS and of the peer."""
    group = f"boot, {options.boots} boots, median"
    other = None if options.no_peer else peer.make(project, fresh=options.fresh_peer)
    peers = boots.direct(project, other.disk, other.arguments, options.boots, other.key) if other else []
    first, *later = boots.mixos(project, options.boots)
    found = boots.figures(group, "MixOS", later, peers)
    found.append(Figure(group, "MixOS: first boot, power-on → SSH banner", round(first.power_on, 2), "s"))
    found += boots.figures(group, other.name, peers) if other else []
    return found


def say(what: str) -> None:
    """Progress for people."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
