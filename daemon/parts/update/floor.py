"""The downgrade floor in force: the highest of what the data, the image that was called good, and a TPM say.

The TPM is asked in the background, by a program of its own (`daemon.floor`): one that is slow, locked or broken holds
up neither the start nor a commit. Then the floor is what the data and the image say, and that is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common.errors import MixosError
from daemon.core.figures import Finding
from daemon.linux import facts, programs
from daemon.linux.log import log
from daemon.linux.tpm import DEVICE
from daemon.parts.update.record import Records

SECONDS = 60.0  # for one start of the program
WAIT = 15.0  # seconds that the judgement of a release waits for what a TPM keeps


class Floor:
    """records: what is kept in the data, and turn, for who changes it; good: whether what runs was called good;
    program: `daemon.floor`.

    kept: what the TPM keeps, as far as that is known; problem: why the floor is not there; lost: that it kept one, and
    does not any more.
    """

    def __init__(
        self, root: Path, records: Records, turn: asyncio.Lock, good: Callable[[], bool], program: Sequence[str]
    ) -> None:
        self._root, self._records, self._turn, self._good, self._program = root, records, turn, good, program
        self.kept: int | None = None
        self.problem: str | None = None
        self.lost: str | None = None
        self._known, self._wanted = asyncio.Event(), asyncio.Event()

    @property
    def here(self) -> int:
        """What the data say, and the image once it was called good."""
        return self._records.now.lowest(facts.release(self._root), good=self._good())

    @property
    def now(self) -> int:
        """The lowest sequence that may be installed."""
        return max(self.here, self.kept or 0)

    @property
    def in_tpm(self) -> bool:
        """Whether it is kept in the TPM, too."""
        return self.kept is not None and self.kept >= self.now

    async def known(self) -> int:
        """The floor, once the TPM was asked; without it, when it takes too long."""
        try:
            async with asyncio.timeout(WAIT):
                await self._known.wait()
        except TimeoutError:
            log("err", "update: the TPM has not said which downgrade floor it keeps: it counts for nothing now")
        return self.now

    def keep(self) -> None:
        """Have it kept in the TPM, soon."""
        self._wanted.set()

    def findings(self) -> Iterator[Finding]:
        """Of a TPM that is there, or was."""
        for text in filter(None, (self.lost, self.problem)):
            yield Finding("floor-tpm", "warning", f"downgrade floor: {text}")

    # -- the TPM -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask it once, then have it keep what is to be kept, for as long as the daemon runs."""
        try:
            if await self._ask("read") and (self.kept or 0) < self._records.now.in_tpm:
                self.lost = f"the TPM kept {self._records.now.in_tpm}, and does not any more"
                log("err", f"update: downgrade floor: {self.lost}")
        finally:
            self._known.set()
        while True:
            await self._remember()
            await self._wanted.wait()
            self._wanted.clear()
            if self.now and not self.in_tpm:
                await self._ask("raise", str(self.now))

    async def _ask(self, *words: str) -> bool:
        """Whether it is known now what the TPM keeps: nothing, where there is none."""
        if not (self._root / DEVICE).exists():
            return True
        try:
            said = (await programs.ended([*self._program, *words], seconds=SECONDS)).get("floor", -1)
            if said is not None and (type(said) is not int or said < 0):
                raise MixosError("nothing was said of the TPM", reason="program-failed")
        except MixosError as error:
            self.problem = f"the TPM does not keep it: {error}"
            log("err", f"update: downgrade floor: {self.problem}")
            return False
        self.kept, self.problem = said, None
        return True

    async def _remember(self) -> None:
        """What it was last seen to keep, so that it is told once that it does not any more."""
        seen = self.kept or 0
        if self.problem is None and seen != self._records.now.in_tpm:
            async with self._turn:
                try:
                    self._records.change(in_tpm=seen)
                except OSError as error:
                    log("err", f"update: what the TPM keeps is not remembered: {error.strerror}")
