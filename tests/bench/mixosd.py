"""A mixosd on this host with folders of its own, for what is measured without the image: `begin`, `running`.

Its /run is in memory and all else on a disk, as on the device; shim and launcher are those of the image. It has only
the parts that are asked for, and no limit of calls per second.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from buildsys.project import Project
from buildsys.run import Process, spawn
from buildsys.store import Store
from common.errors import HostError
from daemon.client.connection import call
from daemon.core.limits import Limits
from daemon.core.manifest import Manifest
from daemon.core.part import Context
from daemon.core.parts import source
from daemon.mixosd import Daemon
from daemon.parts.service.part import Manager
from daemon.parts.service.prepare import Places
from daemon.parts.service.shim import load_state
from tests.hostpackages import ROOT
from tests.supervision import cgroup_root, sweep

SUPERVISION = "service=tests.bench.mixosd:Services"  # a part for `begin` and `running`
LOG = "mixosd.log"
PATIENCE = 60.0  # seconds for anything that must come


class Services(Manager):
    """The part `service`, with the programs of the image and a control group of its own."""

    def __init__(self, context: Context) -> None:
        places = Places(shim=program("shim"), launcher=program("sandbox"))
        super().__init__(context, places=places, cgroups=cgroup_root(context))


def program(name: str) -> Path:
    """A helper in C as `mixos build` made it for the image: static, musl. Raises HostError."""
    store = Store(Project.at(ROOT).cache / "store")
    built = store.latest("native")
    if built is None:
        raise HostError(f"the daemon's helper '{name}' is not built", reason="image-missing", hint="make image")
    return store.tree(built.output) / "usr/libexec/mixos" / name


@contextmanager
def folders() -> Iterator[Context]:
    """The folders of one daemon. At the end its services, their shims and control groups are removed, too."""
    memory = Path(tempfile.mkdtemp(prefix="mixos-bench-", dir="/dev/shm"))
    disk = Path(tempfile.mkdtemp(prefix="mixos-bench-", dir="/var/tmp"))
    place = context(memory, disk)
    try:
        for folder in (place.run, place.state, place.etc / "units", place.lib / "units", place.log):
            folder.mkdir(parents=True)
        yield place
    except Exception:
        with suppress(FileNotFoundError):
            print((disk / LOG).read_text()[-2000:], file=sys.stderr)
        raise
    finally:
        sweep(place)
        shutil.rmtree(memory)
        shutil.rmtree(disk)


def context(memory: Path, disk: Path) -> Context:
    """What lies where below the two folders."""
    return Context(memory / "run/mixos", disk / "state", disk / "etc", disk / "lib", disk / "log")


def unit(place: Context, name: str, text: str) -> None:
    """Add a unit that is started with the daemon."""
    (place.etc / "units" / f"{name}.toml").write_text(f"[unit]\nenabled = true\n{text}")


def shims(place: Context) -> list[int]:
    """The processes of the shims that run."""
    states = (load_state(folder) for folder in (place.run / "units").iterdir())
    return [state.shim.pid for state in states if state is not None]


def begin(place: Context, *parts: str) -> Process:
    """Start a daemon with these parts (NAME=MODULE:CLASS) in the background; it does not answer yet."""
    memory, disk = place.run.parents[1], place.state.parent
    argv = [sys.executable, "-m", "tests.bench.mixosd", str(memory), str(disk), *parts]
    with (disk / LOG).open("ab") as log:
        return spawn(argv, cwd=ROOT, log=log)


def end(process: Process) -> None:
    """kill -9: what it supervises goes on."""
    process.kill()
    process.wait()


@contextmanager
def running(place: Context, *parts: str) -> Iterator[Process]:
    """A daemon whose parts are up."""
    process = begin(place, *parts)
    try:
        deadline = time.monotonic() + PATIENCE
        while any(one["state"] in ("waiting", "starting") for one in states(place).values()):
            if time.monotonic() > deadline:
                raise HostError("mixosd does not come up", reason="bench-daemon")
            time.sleep(0.02)
        yield process
    finally:
        end(process)


def states(place: Context) -> dict[str, dict[str, Any]]:
    """What the daemon says about its parts."""
    found: dict[str, dict[str, Any]] = call("status", {}, place.run / "mixosd.sock", patience=PATIENCE)["parts"]
    return found


def serve(memory: Path, disk: Path, parts: list[str]) -> None:
    """The daemon's process, until it is killed."""
    place = context(memory, disk)
    manifests = [Manifest(name, where) for name, _, where in (part.partition("=") for part in parts)]
    sources = [source(manifest, place) for manifest in manifests]
    daemon = Daemon(place, sources, limits=Limits(rate=1e9, burst=1e9), bus=str(memory / "bus"))
    asyncio.run(daemon.run(asyncio.Event()))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
