"""Run one action: key, look-up, inputs verified, sandbox, commit. Besides `fetch`, only this touches the world."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from buildsys.digest import scan_tree, tree_digest
from buildsys.events import ActionFailed, ActionFinished, ActionStarted, Event, Note
from buildsys.fetch import Fetcher
from buildsys.graph import Action, Call, FromAction, FromPath, FromSource
from buildsys.jobserver import Jobserver
from buildsys.key import action_key, key_document, own_code, tool_digest
from buildsys.lock import Lock
from buildsys.oserrors import MAKE_ROOM, store_errors
from buildsys.run import Process, kill_group, spawn
from buildsys.sandbox.spec import ENTER, Mount, SandboxSpec
from buildsys.store import Result, Store
from common.errors import BuildError, HostError, StoreError

TAIL_LINES = 30  # of the log, in the error
TAIL_BYTES = 64 << 10  # of the log that are looked at
REFUSED = 125  # the sandbox's own exit status
LOW_SPACE = 64 << 20  # bytes free below which a failure is blamed on the disk

BASE_ENV = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/build",
    "TMPDIR": "/tmp",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
}


@dataclass
class Executor:
    """Everything an action needs from its surroundings. Safe to use from several threads."""

    store: Store
    fetcher: Fetcher
    lock: Lock
    epoch: int
    jobserver: Jobserver
    sink: Callable[[Event], None]
    results: dict[str, Result] = field(default_factory=dict)
    running: dict[str, Process] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    _paths: dict[FromPath, str] = field(default_factory=dict)
    _verified: set[str] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def env(self) -> dict[str, str]:
        """The environment of every action; part of its key. Parallelism is not: it must not change a result."""
        return {**BASE_ENV, "SOURCE_DATE_EPOCH": str(self.epoch)}

    # -- key -----------------------------------------------------------------------------------------------------------

    def document(self, action: Action) -> dict[str, object]:
        """The key document; the results of all dependencies must be known."""
        digests: dict[str, str] = {}
        for name, source in action.inputs.items():
            if isinstance(source, FromAction):
                output = self.results[source.action].output
                digests[name] = self._part_digest(source, output) if source.path else output
            elif isinstance(source, FromSource):
                digests[name] = self.lock[source.source].sha256
            else:
                digests[name] = self._path_digest(source)
        return key_document(action, digests, self.env, {name: tool_digest(name) for name in action.tools})

    def _part_digest(self, source: FromAction, output: str) -> str:
        try:
            return self.store.part_digest(output, source.path)
        except StoreError as error:
            if error.reason != "store-damaged":
                raise
            problem = self.store.remove_damaged(output) or "its listing"
            raise DamagedInput(source.action, output, problem) from error

    def _path_digest(self, source: FromPath) -> str:
        """Digest of a file or folder of this machine, read once per build: a build sees one state of it."""
        if source not in self._paths:
            self._paths[source] = path_digest(source)
        return self._paths[source]

    def lookup(self, action: Action) -> Result | None:
        """The stored result for the action as it is now, or None when it must run."""
        key = action_key(self.document(action))
        result = self.store.result(key)
        if result is not None:
            self.store.touch_latest(action.name, key)
        return result

    # -- running -------------------------------------------------------------------------------------------------------

    def execute(self, action: Action) -> Result:
        """Produce the action's result. Raises BuildError, FetchError, HostError or StoreError."""
        document = self.document(action)
        key = action_key(document)
        previous = self.store.latest(action.name)
        waiting = Note("info", f"{action.name}: another build is at it; waiting")
        with self.store.building(key, lambda: self.sink(waiting), self.check):
            found = self.store.result(key)  # the other build may have finished it
            if found is not None:
                self.sink(ActionFinished(action.name, "cached", 0.0))
                return found
            staged = self.store.stage()
            try:
                with store_errors(f"{action.name}: cannot prepare the build"):
                    hosts = self.inputs(action, staged)
                self.sink(ActionStarted(action.name, previous.seconds if previous else None))
                begin = time.monotonic()
                self._run(action, staged, hosts, self.jobserver)
                self._unchanged(action)
                seconds = time.monotonic() - begin
                result = self.store.commit(staged, action.name, key, dict(document), seconds, self.epoch)
            except BaseException:
                self.store.discard(staged)
                raise
            same = previous is not None and previous.output == result.output
            self.sink(ActionFinished(action.name, "same" if same else "built", round(seconds, 2)))
            return result

    def check(self) -> None:
        """Raise Stopped if the build was stopped from outside."""
        if self.stopped.is_set():
            raise Stopped

    def _unchanged(self, action: Action, copied: Mapping[str, Path] | None = None) -> None:
        """Refuse a result whose files on this machine are no longer what its key says.

        copied: where selected files were copied to; without it, what the action read in place is looked at again.
        """
        for name, source in action.inputs.items():
            if not isinstance(source, FromPath) or bool(source.only) != (copied is not None):
                continue
            now = path_digest(source if copied is None else FromPath(copied[name], source.only))
            if now != self._path_digest(source):
                raise BuildError(
                    f"{action.name}: {source.path} was changed while it was being built",
                    reason="input-changed",
                    hint="build again",
                    retryable=True,
                )

    def inputs(self, action: Action, staged: Path) -> dict[str, Path]:
        """The host path of every input: sources fetched, trees re-hashed, selected files copied out."""
        hosts: dict[str, Path] = {}
        for name, source in action.inputs.items():
            if isinstance(source, FromSource):
                hosts[name] = self.fetcher.get(self.lock[source.source])
            elif isinstance(source, FromAction):
                hosts[name] = self.verified(source.action) / source.path
            elif source.only:
                hosts[name] = staged / "inputs" / name
                _copy_selected(source, hosts[name])
            else:
                hosts[name] = source.path
        self._unchanged(action, hosts)
        return hosts

    def verified(self, name: str) -> Path:
        """The output tree of an action, hashed again once per build. Raises DamagedInput; the tree is dropped then."""
        digest = self.results[name].output
        with self._guard:
            if digest in self._verified:
                return self.store.tree(digest)
        problem = self.store.remove_damaged(digest)
        if problem is not None:
            raise DamagedInput(name, digest, problem)
        with self._guard:
            self._verified.add(digest)
        return self.store.tree(digest)

    def _run(self, action: Action, staged: Path, hosts: Mapping[str, Path], jobserver: Jobserver) -> None:
        log_path = self.store.root / "logs" / f"{action.name}.log"
        with store_errors(f"{action.name}: cannot prepare the build"):
            spec = sandbox_spec(action, staged, hosts, {**self.env, **action.env}, jobserver)
            log_path.unlink(missing_ok=True)  # another build may still write to, and quote from, the one that is there
            log = log_path.open("w+b")
        with log, spec_file(spec, staged) as fd:
            status = self._supervise(action, enter_command(fd), log, (fd, *spec.fds))
            if status != 0:
                self._explain(action, staged, log, status)

    def _supervise(self, action: Action, command: list[str], log: IO[bytes], fds: tuple[int, ...]) -> int:
        """Run the action's process to its end, or to ours; its exit status."""
        self.check()
        process = spawn(command, log=log, pass_fds=fds)
        with self._guard:
            self.running[action.name] = process
        try:
            if self.stopped.is_set():
                kill_group(process, 0)
            process.wait()
        except BaseException:
            kill_group(process, 0)
            raise
        finally:
            with self._guard:
                del self.running[action.name]
        self.check()
        return process.returncode

    def _explain(self, action: Action, staged: Path, log: IO[bytes], status: int) -> None:
        """Raise the error that fits: isolation, disk space, or the action itself with the end of its log."""
        log_path = self.store.root / "logs" / f"{action.name}.log"
        tail = _tail(log)
        if status == REFUSED and "sandbox: cannot isolate" in tail:
            raise HostError(
                f"{action.name}: {tail.strip()}",
                reason="sandbox-refused",
                hint="builds run only in isolation; 'mixos doctor' says what this machine blocks and how to allow it",
            )
        self.sink(ActionFailed(action.name, str(log_path)))
        disk = os.statvfs(staged)
        if disk.f_bavail * disk.f_frsize < LOW_SPACE or "No space left on device" in tail:
            raise BuildError(
                f"{action.name}: the disk is full ({self.store.root})\n{tail}",
                reason="disk-full",
                hint=MAKE_ROOM,
                retryable=True,
            )
        kept = self.store.keep_failed(staged, action.name)
        raise BuildError(
            f"{action.name} failed with status {status}; the end of {log_path}:\n{tail}",
            reason="action-failed",
            hint=f"look around in what it left: mixos shell {action.name}" if kept is not None else None,
        )

    def differs(self, action: Action) -> str | None:
        """Run an up-to-date action once more, elsewhere and with one process; the first path that differs, or None."""
        first = self.results[action.name].output
        staged = self.store.stage()
        single = Jobserver(1)
        try:
            self._run(action, staged, self.inputs(action, staged), single)
            entries = scan_tree(staged / "out")
            return None if tree_digest(entries) == first else self.store.first_difference(first, entries)
        finally:
            single.close()
            self.store.discard(staged)

    def stop(self) -> None:
        """End every running action and download at once; nothing of them is kept."""
        self.stopped.set()
        self.fetcher.stop()
        with self._guard:
            processes = list(self.running.values())
        for process in processes:
            kill_group(process, 0)


@contextmanager
def spec_file(spec: SandboxSpec, staged: Path) -> Iterator[int]:
    """The specification as an open descriptor, for `enter.py`."""
    path = staged / "spec.json"
    with store_errors("cannot prepare the sandbox"):
        path.write_text(spec.to_json())
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def enter_command(descriptor: int) -> list[str]:
    """The command that enters the sandbox described at `descriptor`."""
    return [_base_python(), "-I", "-S", str(ENTER), str(descriptor)]


class DamagedInput(StoreError):
    """A tree in the store is not what its name says; it was dropped. The scheduler builds it again."""

    def __init__(self, action: str, digest: str, problem: str) -> None:
        super().__init__(
            f"the stored output of '{action}' is damaged (tree {digest}, {problem}); it was removed and has to be built"
            " again",
            reason="store-damaged",
            hint=f"mixos build {action}",
            retryable=True,
        )
        self.action = action


class Stopped(Exception):
    """The build was stopped from outside."""


def path_digest(source: FromPath) -> str:
    """The content digest of a file or folder of this machine. Raises BuildError when it is not there."""
    try:
        return tree_digest(scan_tree(source.path, source.only, source.hide))
    except (OSError, ValueError) as error:
        raise BuildError(f"cannot read {source.path}: {error}", reason="input-unreadable") from error


def _tail(log: IO[bytes]) -> str:
    """The last lines of a log."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - TAIL_BYTES))
    return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:])


def _copy_selected(source: FromPath, target: Path) -> None:
    target.mkdir(parents=True)
    for entry in scan_tree(source.path, source.only):
        copy = target / entry.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source.path / entry.path, copy, follow_symlinks=False)


def _hidden(action: Action, staged: Path) -> Iterator[Mount]:
    """Something empty over what an input hides."""
    folder, file = staged / "empty", staged / "empty-file"
    for name, source in action.inputs.items():
        if not isinstance(source, FromPath):
            continue
        for hidden in source.hide:
            if (source.path / hidden).is_dir():
                folder.mkdir(exist_ok=True)
                yield Mount(str(folder), f"/in/{name}/{hidden}")
            elif (source.path / hidden).exists():
                file.touch()
                yield Mount(str(file), f"/in/{name}/{hidden}")


def sandbox_spec(
    action: Action, staged: Path, hosts: Mapping[str, Path], env: Mapping[str, str], jobserver: Jobserver
) -> SandboxSpec:
    """What the sandbox of `action` shows: host tools, its inputs, its scratch and its output; nothing else."""
    mounts = [*host_mounts(staged)]
    mounts += [Mount(str(staged / "build"), "/build", True), Mount(str(staged / "out"), "/out", True)]
    mounts += [Mount(str(path), f"/in/{name}") for name, path in sorted(hosts.items())]
    mounts += _hidden(action, staged)
    environment = {**env, "JOBS": str(jobserver.tokens), "MAKEFLAGS": jobserver.makeflags}
    if isinstance(action.run, Call):
        mounts += python_mounts((action.run.function.partition(":")[0], "buildsys.worker"), staged)
        argv: tuple[str, ...] = (_base_python(), "-I", "-S", "/mixos/src/buildsys/worker.py")
        call = {
            "function": action.run.function,
            "params": dict(action.run.params),
            "inputs": {name: f"/in/{name}" for name in hosts},
            "jobs": jobserver.tokens,
        }
        (staged / "call.json").write_text(json.dumps(call))
        mounts.append(Mount(str(staged / "call.json"), "/mixos/call.json"))
    else:
        if action.run.module:
            mounts += python_mounts((action.run.module,), staged)
            python = f"env PYTHONPATH=/mixos/src:/mixos/site {_base_python()} -PS"
            environment["MODULE"] = f"{python} -m {action.run.module}"
        (staged / "script.sh").write_text(action.run.text)
        mounts.append(Mount(str(staged / "script.sh"), "/mixos/script.sh"))
        argv = ("/bin/sh", "-eu", "/mixos/script.sh")
    return SandboxSpec(
        root=str(staged / "root"),
        argv=argv,
        cwd="/build",
        env=environment,
        mounts=tuple(mounts),
        links={**merged_usr(), **action.links},
        fds=(jobserver.read_fd, jobserver.write_fd),
    )


def host_mounts(staged: Path) -> list[Mount]:
    """The host's tools: /usr without /usr/local, and the alternatives that some of its links go through."""
    empty = staged / "empty"
    empty.mkdir(exist_ok=True)
    mounts = [Mount("/usr", "/usr")]
    if Path("/usr/local").is_dir() and not _base_python().startswith("/usr/local/"):
        mounts.append(Mount(str(empty), "/usr/local"))
    if Path("/etc/alternatives").is_dir():
        mounts.append(Mount("/etc/alternatives", "/etc/alternatives"))
    (staged / "passwd").write_text("root:x:0:0:root:/build:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n")
    (staged / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    return [*mounts, *(Mount(str(staged / name), f"/etc/{name}") for name in ("passwd", "group"))]


def python_mounts(modules: Sequence[str], staged: Path) -> list[Mount]:
    """This interpreter, its third-party packages, and of our own code just what `modules` import."""
    code = staged / "code"
    for name, data in (item for module in modules for item in own_code(module).items()):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_bytes(data)
    mounts = [Mount(sysconfig.get_paths()["purelib"], "/mixos/site"), Mount(str(code), "/mixos/src")]
    base = sys.base_prefix
    return [*mounts, *([Mount(base, base)] if base != "/usr" else [])]


def merged_usr() -> dict[str, str]:
    """/bin, /sbin and /lib64 as links; /lib as a folder of links, so that an action can add a loader of its own."""
    links = {"/bin": "usr/bin", "/sbin": "usr/sbin"}
    if Path("/usr/lib64").is_dir():
        links["/lib64"] = "usr/lib64"
    return {**links, **{f"/lib/{entry.name}": f"/usr/lib/{entry.name}" for entry in os.scandir("/usr/lib")}}


def _base_python() -> str:
    """The interpreter itself, not the virtual environment's link to it."""
    return str(Path(sys.executable).resolve())
