"""One build from start to end: kernel decision, plan, scheduler, results; `plan`, `why` and `shell` use parts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from buildsys import schedule
from buildsys.events import Note, Sink
from buildsys.execute import DamagedInput, Executor
from buildsys.fetch import Fetcher
from buildsys.graph import Plan
from buildsys.jobserver import Jobserver
from buildsys.kernelsource import Chooser, KernelChoice
from buildsys.plan import KernelInput, image_plan, notices
from buildsys.project import Project
from buildsys.standin import available
from buildsys.store import Result, Store
from common.errors import HostError, StoreError

MIN_FREE = 2 << 30  # bytes; below this a build is not even begun


@dataclass(frozen=True)
class Options:
    """How a build is run; none of it changes what comes out, except the kernel source."""

    kernel_source: str | None = None
    offline: bool = False
    jobs: int | None = None


@dataclass(frozen=True)
class Session:
    """A plan and the machinery to execute it. instead: source → file that stands in for it (`buildsys.standin`)."""

    project: Project
    plan: Plan
    kernel: KernelChoice
    instead: Mapping[str, str]
    executor: Executor

    def build(self, targets: Iterable[str]) -> dict[str, Result]:
        """Bring targets up to date; results by action name."""
        _check_space(self.executor.store)
        return schedule.build(self.plan, targets, self.executor)

    def sound(self, targets: Iterable[str]) -> dict[str, Result]:
        """Hash the outputs of built targets again, before they leave the store; damaged ones are named and built anew.

        `build` looks only at the inputs of what it runs. Raises StoreError when the disk damages what it is given
        again and again.
        """
        names = list(targets)
        for _ in range(schedule.MAX_REPAIRS):
            damaged = False
            for name in names:
                try:
                    self.executor.verified(name)
                except DamagedInput as damage:
                    self.executor.sink(Note("warning", damage.message))
                    damaged = True
            if not damaged:
                return self.executor.results
            self.build(names)
        raise StoreError(
            "what was built is damaged each time it is read back",
            reason="store-damaged",
            hint="check the disk: 'mixos cache verify'",
        )


@contextmanager
def open_session(project: Project, options: Options, sink: Sink, store: Store | None = None) -> Iterator[Session]:
    """Decide on the kernel, make the plan, and hold the store while the caller works with both."""
    store = store or Store(project.cache / "store")
    fetcher = Fetcher(project.distfiles, sink, project.config.fetch.mirrors, options.offline)
    requested = options.kernel_source or project.config.kernel.source
    choice, source, lock = Chooser.at(project, fetcher).choose(requested)
    lock, instead = available(lock, fetcher)
    plan = image_plan(project, KernelInput(choice, source))
    for text in notices(project, datetime.now(UTC).date()):
        sink(Note("warning", text))
    jobserver = Jobserver(options.jobs or len(os.sched_getaffinity(0)))
    executor = Executor(store, fetcher, lock, project.config.image.epoch, jobserver, sink)
    try:
        with store.session():
            yield Session(project, plan, choice, instead, executor)
    finally:
        jobserver.close()


def _check_space(store: Store) -> None:
    disk = os.statvfs(store.root)
    free = disk.f_bavail * disk.f_frsize
    if free < MIN_FREE:
        raise HostError(
            f"only {free >> 20} MiB are free on the disk of {store.root}; a build needs {MIN_FREE >> 20}",
            reason="disk-full",
            hint="free some space, run 'mixos cache gc', or set MIXOS_CACHE to another disk",
        )
