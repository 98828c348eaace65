"""Everything that alters the device goes this way: prepare, write down, put in force, perhaps on trial, keep or undo.

A change is new contents of files. The parts that own some of them, and have something to do in the kernel for them
(`Applier`), prepare it from what the files would say and from what is; nothing is touched before all of them have. Then
it is written down with what each of them needs to go back, and put in force part by part. One for good is committed at
once: its files are renamed into their places. One on trial is committed by `confirm`, and undone by `revert`, by its
deadline, or by a start after a reboot. Files are written by the commit alone, so a crash before it leaves the old ones.

While a change of a part is on trial, another one of the same part is refused. `step` is called between any two steps,
where tests stop the world.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import MixosError, RefusedError
from daemon.core.change import files
from daemon.core.change.applier import ETC, Applier, Candidate, Plan, View, Wish
from daemon.core.change.files import Renames, Trees
from daemon.core.change.memory import Memory
from daemon.core.change.record import Contents, Journal, Record, boot_id, boottime
from daemon.core.change.wanted import Wanted, files_failed
from daemon.core.manifest import methods_for
from daemon.core.method import Caller
from daemon.linux.log import log

if TYPE_CHECKING:
    from daemon.core.change.answers import Confirmed, Made, Problem, Reverted, Waiting
    from daemon.core.part import Context

START_SECONDS = 60.0  # that is waited for a part which is starting
_LOOK = 5.0  # seconds after which a deadline is looked at again: the loop's clock stands still during a suspend
_LONGEST = 30.0  # seconds between two tries to undo
_LATE = "nobody confirmed it in time"
_ENDED = "mixctl audit says what became of it; what was undone can be made again"

Result = TypeVar("Result")
Call = Callable[[Caller, str], Awaitable[object]]


async def _nobody(caller: Caller, method: str) -> object:
    raise RefusedError(f"{method}: there is nobody to call", reason="change-nobody")


class Changes:
    """All changes of one daemon."""

    def __init__(self, context: Context, step: files.Step = files.nothing) -> None:
        self.context = context
        self.places = Trees.of(context)
        self.journal = Journal(context.state / "changes")
        self.memory = Memory(context.state / "changes")
        self.call: Call = _nobody  # how methods that put files in force are called; the daemon sets it
        self.step = step
        self.waiting: dict[str, Record] = {}  # on trial, or being undone, by number
        self.guards: list[Callable[[Record], None]] = []  # asked before files are put in place; they raise MixosError
        self.problems: list[str] = []  # what people must know: damaged journals, undos that fail
        self.recovered: list[tuple[str, str]] = []  # (what it was, "finished" or "undone") by `open`
        self._appliers: dict[str, Applier] = {}
        self._left: dict[str, set[str]] = {}  # of an earlier daemon: number → parts to go back
        self._lock = asyncio.Lock()
        self._timers: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opened = False
        self._numbers = itertools.count(1)

    # -- start and stop ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Finish what was committed, drop what never got so far. To be called before any part reads its files."""
        if self._opened:
            return
        self._opened = True
        self._numbers = itertools.count(self.journal.last() + 1)
        for record in self.journal.records():
            if isinstance(record, Path):
                self._problem(f"{record}: the record of a change is damaged; what it was about stays as it is")
                continue
            try:
                if record.state == "committing":
                    self._finish(record)
                else:
                    self.waiting[record.number] = record
                    self._left[record.number] = set(record.parts)
                    self._drop_if_over(record)
            except OSError as error:  # the daemon starts all the same; the record stays for the next start
                self._problem(f"{record.why} can neither be finished nor undone: {error}")
        for folder in files.abandoned(self.places, self.journal.numbers()):
            files.remove(folder)

    def number(self) -> str:
        """For a change whose files its user stages itself (see `files.staging`)."""
        self.open()
        return f"{next(self._numbers):08}"

    def _finish(self, record: Record) -> None:
        """The files of a change that was for good, and of nothing else, are put in their places; or all taken back."""
        try:
            files.do(record.renames, self.step)
            outcome = "finished"
        except OSError as error:
            log("err", f"{record.why}: {error}: it is taken back")
            files.undo(record.renames, self.step)
            outcome = "undone"
        self.recovered.append((record.why, outcome))
        self._over(record)

    def _drop_if_over(self, record: Record) -> None:
        if not self._left.get(record.number):
            self._left.pop(record.number, None)
            self.waiting.pop(record.number, None)
            self._over(record)
            if record.deadline is not None:
                self._tell(record, "reverted", reason=_LATE)

    def _over(self, record: Record) -> None:
        files.clean(record.renames)
        self.journal.remove(record)
        self.step("over")

    async def stop(self) -> None:
        """The daemon ends: what is being made ends first, trials stay recorded and go on with the next one."""
        for timer in self._timers.values():
            timer.cancel()
        await asyncio.gather(*self._timers.values(), return_exceptions=True)
        self._timers.clear()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)

    async def start(self, applier: Applier, default: Contents | None = None) -> MixosError | None:
        """A part is starting: put in force what shall be, the best of what works. Gives why it is not what the files
        say, or None. default: contents to fall back on. Raises what the last one that was tried raises.

        A trial that still has time goes on. One that has not, or was never complete, is undone before.
        """
        self.open()
        self._appliers[applier.name] = applier
        candidates = [*await self._take_up(applier), *self._candidates(applier)]
        if default is not None:
            candidates.append(Candidate(View(self.places, default)))
        problem: MixosError | None = None
        for number, candidate in enumerate(candidates):
            problem = problem or candidate.problem
            try:
                await applier.apply(await applier.prepare(candidate.view, None, False), self.step)
            except MixosError as error:
                problem = problem or error
                log("err", f"{applier.name}: {error.message}")
                if candidate.trial is not None:
                    await self._revert(candidate.trial, error.message)
                if number == len(candidates) - 1:
                    raise
                continue
            if candidate.files:
                await self._keep(applier)
            break
        for record in [one for one in self.waiting.values() if applier.name in self._left.get(one.number, ())]:
            self._arm(record)  # it could not go back
        return problem

    async def _take_up(self, applier: Applier) -> list[Candidate]:
        """What an earlier daemon left: a trial that goes on; everything else goes back now."""
        found = []
        for record in [one for one in self.waiting.values() if applier.name in self._left.get(one.number, ())]:
            if record.state == "trial" and record.left > 0:
                self._left[record.number].discard(applier.name)
                if record.number not in self._timers:
                    self._arm(record)
                found.append(Candidate(View(self.places, record.wanted), trial=record))
            else:
                await self._go_back(record, applier)
        return found

    async def _go_back(self, record: Record, applier: Applier) -> None:
        """An earlier daemon's change ends here, for one of its parts."""
        same_boot = record.boot == boot_id()
        if record.deadline is not None:
            await asyncio.to_thread(self._refuse, applier, record)
        log("warning", f"{applier.name}: {record.why} was not confirmed; it goes back")
        why = await self._undo(record, applier) if same_boot or getattr(applier, "lasts", False) else None
        if why is not None:
            self._problem(f"{applier.name}: {record.why} cannot be undone: {why}")
            self.waiting[record.number] = replace(record, state="undoing")
            return  # the record stays: it is tried again, also by the next start
        self.step(f"back {applier.name}")
        self._left[record.number].discard(applier.name)
        self._drop_if_over(record)

    def _candidates(self, applier: Applier) -> list[Candidate]:
        """The files as they are, unless they were undone; then what was good last."""
        found, problem = [], self.unconfirmed(applier)
        if problem is None:
            found.append(Candidate(View(self.places), files=True))
        good = self.memory.good(applier.name)
        if good is not None:
            found.append(Candidate(View(self.places, good), problem))
        elif problem is not None:
            found.append(Candidate(View(self.places, dict.fromkeys(applier.in_force())), problem))
        return found

    async def _keep(self, applier: Applier) -> None:
        """What a part has in force is so for good."""
        try:
            await applier.kept()
            await asyncio.to_thread(self.memory.keep, applier.name, applier.in_force())
        except (MixosError, OSError) as error:  # it is in force all the same
            self._problem(f"{applier.name}: what the next boot needs could not be written: {error}")

    def unconfirmed(self, applier: Applier) -> MixosError | None:
        """Why what stands in the files of a part now is not in force, if it was tried and not confirmed since."""
        if not self.memory.refused(applier.name, View(self.places)):
            return None
        return MixosError(
            f"what the files of {applier.name} say was tried and not confirmed",
            reason="change-unconfirmed",
            hint=f"mixctl {applier.name} apply",
        )

    def refuse_during_trial(self, applier: Applier) -> None:
        """For what reads the files of a part to change them: while they are on trial they are not what is in force.
        Raises RefusedError `change-pending`."""
        self._refuse_during_trial([applier], ())

    def _refuse(self, applier: Applier, record: Record) -> None:
        """What stands in the files, if it is what was undone, is not taken up at the next start; unless it had been in
        force before the trial as well."""
        view = View(self.places)
        wanted = {name: data for name, data in record.wanted.items() if applier.owns(name)}
        try:
            if any(record.was.get(name) != data for name, data in wanted.items()) and all(
                view.read(name) == data for name, data in wanted.items()
            ):
                self.memory.refuse(applier.name, wanted)
        except OSError as error:
            log("err", f"{applier.name}: {error}")

    # -- making a change ---------------------------------------------------------------------------------------------

    async def make(
        self,
        caller: Caller,
        wish: Wish,
        why: str,
        contents: Contents | Callable[[], Contents] | None = None,
        *,
        parts: Iterable[str] = (),
        staged: tuple[str, Renames] | None = None,
        modes: Mapping[str, int] | None = None,
    ) -> Made:
        """Make a change: `contents` of files by name ("etc/mixos/vpn.toml"; None: it goes), or files that are `staged`
        already (with the number that `number` gave). A function that gives contents is called (in a thread) when no
        other change is being made, so that what it reads is what it changes. modes: of files, otherwise they keep
        theirs. parts: who is to put its files in force though none of them changes.

        Gives {changed, applied, diff, files, steps, cuts-off, confirm (seconds, or None), change (its number, on
        trial), problems}. Raises what the parts raise, RefusedError `change-pending`, `change-conflict`, MixosError
        `change-journal`, `change-files`, `change-stuck`. It is carried through even when the caller goes away.
        """
        given = contents if callable(contents) else lambda: contents or {}
        wanted = Wanted(caller, wish, why, {}, tuple(parts), staged or ("", Renames()), {} if modes is None else modes)
        return await self._carry_through(self._make(wanted, given))

    async def _carry_through(self, work: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _make(self, wanted: Wanted, given: Callable[[], Contents]) -> Made:
        async with self._lock:
            self.open()
            wanted = wanted._replace(contents=await asyncio.to_thread(given))
            wish, view = wanted.wish, View(self.places, wanted.changed)
            appliers = [
                one for one in self._appliers.values() if one.name in wanted.parts or any(map(one.owns, wanted.changed))
            ]
            if not wish.dry_run:
                self._refuse_during_trial(appliers, wanted.names)
            plans = {one.name: await one.prepare(view, wanted.caller, wish.dry_run) for one in appliers}
            seconds = wanted.seconds(plans)
            if wish.dry_run:
                return {**wanted.answer(plans), "files": await asyncio.to_thread(wanted.difference, self.places)}
            record = self._record(wanted, appliers, plans, seconds)
            renames = await asyncio.to_thread(wanted.stage, self.places, record.number)
            record = replace(record, renames=renames)
            self.step("staged")
            try:
                await self._put_in_force(record, plans)
                if record.deadline is None:
                    await self._commit(record, appliers)
            except BaseException:
                if record.number not in self.waiting:
                    self._over(record)
                raise
            if record.deadline is not None:
                self.waiting[record.number] = record
                self._arm(record)
        answer: Made = {**wanted.answer(plans), "applied": True}
        if record.deadline is not None:
            self._tell(record, "trial")
            return {**answer, "confirm": round(record.left), "change": record.number}
        return {**answer, "problems": await self._after(record, wanted.caller, wanted.changed)}

    def _refuse_during_trial(self, appliers: Sequence[Applier], names: Iterable[str]) -> None:
        """Raises RefusedError `change-pending`."""
        wanted, files_ = {one.name for one in appliers}, set(names)
        for record in self.waiting.values():
            if wanted & set(record.parts) or files_ & {one.name for one in record.renames.changes}:
                tried = record.state == "trial"
                state = f"on trial for {record.left:.0f} s more" if tried else "being undone"
                ends = f"mixctl confirm {record.number}, or mixctl revert {record.number}"
                again = f"mixctl revert {record.number} tries again; with --give-up what cannot go back stays as it is"
                hint = ends if tried else again
                what = f"{record.why} is {state}"
                raise RefusedError(what, reason="change-pending", hint=hint)

    def _record(self, wanted: Wanted, appliers: Sequence[Applier], plans: Mapping[str, Plan], seconds: int) -> Record:
        disk = View(self.places)
        was = {name: disk.read(name) for name in wanted.changed if any(one.owns(name) for one in appliers)}
        for one in appliers:
            was |= one.in_force()
        return Record(
            number=wanted.staged[0] or self.number(),
            state="trial" if seconds else "applying",
            who=wanted.caller.name,
            origin=wanted.caller.origin,
            why=wanted.why,
            boot=boot_id(),
            parts=tuple(plans),
            deadline=boottime() + seconds if seconds else None,
            before={name: plan.before for name, plan in plans.items()},
            was=was,
            wanted={name: data for plan in plans.values() for name, data in plan.contents.items()},
        )

    async def _put_in_force(self, record: Record, plans: Mapping[str, Plan]) -> None:
        """All of it; or nothing when this raises."""
        if not plans:
            return
        if record.deadline is not None:  # people will name it
            with contextlib.suppress(OSError):  # a full disk keeps nobody out
                self.journal.given(record.number)
        await asyncio.to_thread(self.journal.write, record)  # there may be megabytes of lists in it
        self.step("recorded")
        begun: list[str] = []
        try:
            for name, plan in plans.items():
                begun.append(name)
                await self._appliers[name].apply(plan, self.step)
                self.step(f"applied {name}")
        except BaseException as error:  # a defect of a part as well must leave everything as it was
            await self._take_back(record, begun, error)
            raise

    async def _take_back(self, record: Record, parts: Sequence[str], why: BaseException) -> None:
        """Raises MixosError `change-stuck` when that fails; it is tried again then, also by the next start."""
        failed = await self._undo_parts(record, parts)
        if failed:
            undoing = replace(record, state="undoing")
            self.waiting[record.number] = undoing
            self._arm(undoing)
            raise _stuck(record, why, failed) from why

    async def _commit(self, record: Record, appliers: Sequence[Applier]) -> None:
        """The files, and what the parts keep; from the record on a crash completes it. Raises MixosError
        `change-files`, `change-journal`; a change for good is undone then, one on trial goes on."""
        try:
            for guard in self.guards:
                guard(record)
            if record.deadline is not None:
                self.journal.keep(record)
            await asyncio.to_thread(self.journal.move, record, "committing")
            self.step("committing")
            try:
                await asyncio.to_thread(files.do, record.renames, self.step)
            except OSError as error:
                await asyncio.to_thread(files.undo, record.renames, self.step)
                raise files_failed(error) from error
        except (MixosError, OSError) as error:
            if record.deadline is None:
                await self._take_back(record, [one.name for one in appliers], error)
            else:
                self.journal.back(record)
            raise
        for one in appliers:
            await self._keep(one)
        self.step("kept")
        self.waiting.pop(record.number, None)
        await asyncio.to_thread(self._over, record)  # what a unit kept may be a million files

    async def _undo_parts(self, record: Record, names: Sequence[str]) -> list[str]:
        """All of them, whatever fails; gives those that are up and could not go back, and why."""
        failed = []
        for name in reversed(names):
            if name in self._appliers:
                why = await self._undo(record, self._appliers[name])
                if why is None:
                    self.step(f"back {name}")
                else:
                    failed.append(f"{name}: {why}")
        return failed

    async def _undo(self, record: Record, applier: Applier) -> str | None:
        """Why a part could not go back, None when it did. A defect of its own is a reason as any other: it must neither
        keep the other parts as they are nor end the tries."""
        try:
            await applier.undo(record.before.get(applier.name, {}), View(self.places, record.was))
        except Exception as error:  # noqa: BLE001
            return _explained(error)
        return None

    async def _after(self, record: Record, caller: Caller, also: Iterable[str] = ()) -> list[Problem]:
        """Have the other parts read changed files again, and those that somebody wants in force though they hold that
        already. What fails is told; the files stay."""
        names = dict.fromkeys([*(one.name for one in record.renames.changes), *also])
        paths = [name.removeprefix(ETC) for name in names if name.startswith(ETC)]
        problems: list[Problem] = []
        for method in methods_for(paths):
            if method.partition(".")[0] in record.parts:
                continue
            found: list[tuple[str, str]] = []
            try:
                answer = await self._call_when_up(caller, method)
                refused = answer.get("refused", {}) if isinstance(answer, Mapping) else {}
                found = [("config-refused", f"{name}: {message}") for name, message in refused.items()]
            except MixosError as error:
                found = [(error.reason, error.message)]
            for reason, message in found:
                log("err", f"{method}: changed files are not in force: {message}")
                self.context.events.publish("config.refused", method, reason=reason, message=message)
                problems.append({"method": method, "reason": reason, "message": message})
            if not found:
                self.context.events.publish("config.applied", method)
        self._tell(record, "made", files=[one.name for one in record.renames.changes])
        return problems

    async def _call_when_up(self, caller: Caller, method: str) -> object:
        """The answer. A part that is starting may have read the files already, or not: it is asked when it is up."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return await self.call(caller, method)
            except MixosError as error:
                if error.reason != "part-starting" or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.5)

    # -- trials ------------------------------------------------------------------------------------------------------

    def find(self, part: str | None = None, number: str | None = None, *, undoing: bool = False) -> Record:
        """The change that is on trial: of a part, by number, or the only one. undoing: one that is being undone will do
        as well, if it is named or nothing is on trial. Raises RefusedError `change-nothing`, `change-which`."""
        waiting = [one for one in self.waiting.values() if part is None or part in one.parts]
        tried = [one for one in waiting if one.state == "trial"]
        if undoing and (number is not None or not tried):
            tried = waiting
        found = [one for one in tried if number is None or int(number) == int(one.number)]
        if not found:
            what = f"change {number} is not on trial" if number is not None else "no change is on trial"
            there = ", ".join(f"{one.number} ({one.why})" for one in tried)
            hint = f"on trial: {there}" if tried else _ENDED
            raise RefusedError(what, reason="change-nothing", hint=hint)
        if len(found) > 1:
            raise RefusedError(
                f"there are several: {', '.join(f'{one.number} ({one.why})' for one in found)}",
                reason="change-which",
                hint="name one by its number",
            )
        return found[0]

    async def confirm(self, caller: Caller, record: Record) -> Confirmed:
        """Keep a change that is on trial. Raises RefusedError `change-nothing` when it ended meanwhile, and MixosError
        `change-files`, `change-journal`: the trial goes on then."""
        return await self._carry_through(self._confirm(caller, record))

    async def _confirm(self, caller: Caller, record: Record) -> Confirmed:
        async with self._lock:
            record = self.find(number=record.number)
            if record.left <= 0:  # before a reboot, or its part has yet to start and to take it back
                raise RefusedError("its time is over: it is being undone", reason="change-nothing", hint=_ENDED)
            await self._commit(record, [self._appliers[name] for name in record.parts if name in self._appliers])
            self._disarm(record)
        self._tell(record, "confirmed")
        return {"confirmed": True, "change": record.number, "problems": await self._after(record, caller)}

    async def revert(self, record: Record, why: str, *, give_up: bool = False) -> Reverted:
        """Undo a change that is on trial or is being undone. give_up: what cannot go back stays as it is, and is not
        tried again. Raises RefusedError `change-nothing`, MixosError `change-stuck`: then it is tried again until it
        succeeds."""
        return await self._carry_through(self._revert(record, why, give_up))

    async def _revert(self, record: Record, why: str, give_up: bool = False) -> Reverted:
        async with self._lock:
            if record.number not in self.waiting:
                raise RefusedError("no change is on trial", reason="change-nothing", hint=_ENDED)
            undoing = replace(record, state="undoing")
            if record.state != "undoing":
                with contextlib.suppress(MixosError):  # a full disk keeps nobody out
                    await asyncio.to_thread(self.journal.write, undoing)
                self.step("undoing")
            self.waiting[record.number] = undoing
            if not (tries := asyncio.current_task() is self._timers.get(record.number)):
                self._disarm(record)
            stays = await self._undo_parts(record, record.parts)
            if stays and not give_up:
                if not tries:
                    self._arm(undoing)
                raise _stuck(record, None, stays)
            missing = set(record.parts) - self._appliers.keys()
            if give_up:
                stays += [f"{name}: it is not up" for name in sorted(missing)]
                missing.clear()
            try:
                await self._undone(record, missing)
            except (MixosError, OSError) as error:  # a full disk keeps nobody out; the next start undoes it once more
                log("err", f"{record.why}: {error}")
        if stays:
            why = f"{why}, who gave up; not undone is {'; '.join(stays)}"
            self._problem(f"{record.why}: reverted {why}")
        self._tell(record, "reverted", reason=why)
        return {"reverted": not stays, "change": record.number, "stays": stays}

    async def _undone(self, record: Record, missing: set[str]) -> None:
        """Its parts have gone back, but those that are missing; they will when they start."""
        for name in record.parts:
            if name in self._appliers:
                await asyncio.to_thread(self._refuse, self._appliers[name], record)
        if missing:
            self._left[record.number] = missing
            self.waiting[record.number] = await asyncio.to_thread(self.journal.move, record, "undoing")
        else:
            self.waiting.pop(record.number)
            await asyncio.to_thread(self._over, record)

    def _arm(self, record: Record) -> None:
        """Undo it when its time is over; one that cannot be undone is tried again and again."""

        async def watch() -> None:
            while record.state == "trial" and record.left > 0:
                await asyncio.sleep(min(record.left, _LOOK))
            pause = 1.0
            while True:
                try:
                    await self._revert(self.waiting.get(record.number, record), _LATE)
                except RefusedError:
                    return  # it was settled meanwhile
                except Exception as error:  # noqa: BLE001  # it may be what keeps everybody out
                    self._problem(_explained(error))
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST)
                else:
                    return

        self._disarm(record)
        self._timers[record.number] = asyncio.create_task(watch(), name=f"change {record.number}")

    def _disarm(self, record: Record) -> None:
        timer = self._timers.pop(record.number, None)
        if timer is not None:
            timer.cancel()

    # -- telling -----------------------------------------------------------------------------------------------------

    def rows(self) -> list[Waiting]:
        """What is on trial or being undone: {change, what, who, parts, state, seconds left}."""
        return [
            {
                "change": one.number,
                "what": one.why,
                "who": one.who,
                "parts": list(one.parts),
                "state": one.state,
                "seconds": round(one.left) if one.state == "trial" else 0,
            }
            for one in self.waiting.values()
        ]

    def waits(self, part: str) -> Record | None:
        """The change of a part that is on trial."""
        return next((one for one in self.waiting.values() if part in one.parts and one.state == "trial"), None)

    def _problem(self, text: str) -> None:
        log("err", text)
        if text not in self.problems:
            self.problems.append(text)
            self.context.events.publish("change.problem", "change", message=text)

    def _tell(self, record: Record, what: str, **data: Any) -> None:
        log("notice", f"change {record.number} ({record.why}, {record.who}): {what}")
        self.context.events.publish(f"change.{what}", record.number, what=record.why, who=record.who, **data)
        for part in record.parts:
            topic = {"made": "changed", "trial": "changed"}.get(what, what)
            self.context.events.publish(f"{part}.{topic}", part, why=record.why, **data)


def _explained(error: Exception) -> str:
    """In one line; of what nobody foresaw the kind as well."""
    return str(error) if isinstance(error, MixosError | OSError) else f"{type(error).__name__}: {error}"


def _stuck(record: Record, first: BaseException | None, failed: Sequence[str]) -> MixosError:
    what = f"{first}; and then " if first else ""
    return MixosError(
        f"{what}{record.why} could not be undone wholly: {'; '.join(failed)}",
        reason="change-stuck",
        hint=f"it is tried again until it succeeds, or mixctl revert --give-up {record.number} leaves it as it is",
    )
