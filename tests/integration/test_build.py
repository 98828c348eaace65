"""Real actions in the real sandbox: isolation, cut-off, damage, failure, interruption, two builders."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pty
import signal
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from buildsys.events import ActionFinished, Note
from buildsys.execute import enter_command, sandbox_spec, spec_file
from buildsys.graph import Action, FromAction, FromPath, Plan, Script
from buildsys.jobserver import Jobserver
from buildsys.run import Process, spawn
from buildsys.session import Session
from common.bundle import frames
from common.errors import BuildError, HostError, StoreError
from kernel import payload
from tests.integration.builder import Builder, script
from tests.waiting import processes, until

pytestmark = pytest.mark.integration


@pytest.fixture
def build(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def failing(build: Builder, *actions: Action) -> BuildError:
    with pytest.raises(BuildError) as caught:
        build(*actions)
    return caught.value


def test_the_world_of_an_action_is_always_the_same(build: Builder):
    text = """
    { pwd; id -u; hostname; umask; echo $HOME $TZ $LC_ALL $SOURCE_DATE_EPOCH; } >/out/world
    env | cut -d= -f1 | tr '\\n' ' ' >>/out/world
    ls / >/out/root
    echo fine >/dev/stderr; echo fine >>/proc/self/fd/1
    """
    os.environ["SECRET_TOKEN"] = "hunter2"
    try:
        result = build(script("world", text))["world"]
    finally:
        del os.environ["SECRET_TOKEN"]
    lines = build.read(result, "world").splitlines()
    assert lines[:5] == ["/build", "0", "mixos-build", "0022", "/build UTC C.UTF-8 1703030400"]
    assert "SECRET_TOKEN" not in lines[5]
    assert set(build.read(result, "root").split()) <= {
        "bin", "build", "dev", "etc", "lib", "lib64", "mixos", "out", "proc", "sbin", "tmp", "usr",
    }  # fmt: skip


# case: B22
@pytest.mark.parametrize(
    "attempt",
    [
        "touch /usr/bin/x",
        "touch /in/dep/x",
        "echo x >/in/dep/file",
        "touch /etc/x",
        "touch /x",
        "mount -t tmpfs none /tmp",
        "unshare --user true",  # with all capabilities again, in a namespace of its own
        "unshare --user --map-root-user --mount --net true",
        'python3 -c "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000) != 0)"',
        "echo 100 >/proc/sys/user/max_user_namespaces",
        "mknod /out/null c 1 3",
        "chmod 0666 /dev/null",  # of the host, when root builds
        "touch /dev/urandom",
        "chroot /build /bin/true",
        "exec 3<>/dev/tcp/192.0.2.1/80",
        "test -e /root",
        "test -e /home",
        "test -e /usr/local/bin",
        "test -w /proc/sys/kernel/core_pattern",
        "test -w /proc/sysrq-trigger",
        "echo 1 >/proc/1/oom_score_adj",
        "kill -0 2000000 || test $(ls -d /proc/[0-9]* | wc -l) -gt 6",
    ],
)
def test_what_an_action_must_not_be_able_to_do(build: Builder, attempt: str):
    dep = script("dep", "echo fine >/out/file")
    text = f"if bash -c '{attempt}' 2>/dev/null; then echo broke out; exit 1; fi; cp /in/dep/file /out/"
    shell = script("try", text, dep=FromAction("dep"))
    assert build.read(build(dep, shell)["try"], "file") == "fine\n"


def test_the_keys_of_the_builders_session_are_not_there(build: Builder):
    """Of the kernel's keyrings (keyctl(2)): a login's tickets and passwords of file systems are there."""
    add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
    kernel = ctypes.CDLL(None)
    mine = kernel.syscall(add_key, b"user", b"mixos-test", b"secret", 6, -3)  # of the session
    if mine < 0:
        pytest.skip("this host lets nobody keep keys")
    try:
        look = f"import ctypes; print(ctypes.CDLL(None).syscall({keyctl}, 10, -3, b'user', b'mixos-test', 0))"
        assert kernel.syscall(keyctl, 10, -3, b"user", b"mixos-test", 0) == mine
        result = build(script("keys", f'python3 -c "{look}" >/out/key'))
        assert build.read(result["keys"], "key") == "-1\n"
    finally:
        kernel.syscall(keyctl, 9, mine, -3)  # unlinked


def test_what_runs_in_a_shell_cannot_type_into_its_terminal(build: Builder):
    """What it types would be read by the builder's own shell, once this one has ended."""
    text = "import fcntl; print('begun', flush=True); fcntl.ioctl(0, 0x5412, b'x')"  # TIOCSTI
    with build.executor() as executor:
        staged = executor.store.stage()
        spec = sandbox_spec(script("shell", ""), staged, {}, executor.env, executor.jobserver)
        spec = replace(spec, argv=("/usr/bin/python3", "-c", text), interactive=True)
        with spec_file(spec, staged) as descriptor:
            command = enter_command(descriptor)
            pid, terminal = pty.fork()
            if not pid:
                try:
                    for number in (descriptor, *spec.fds):
                        os.set_inheritable(number, True)
                    os.execv(command[0], command)
                finally:
                    os._exit(127)  # our copy must not go on with the tests
            said = b""
            with contextlib.suppress(OSError):  # how the end of a terminal is told
                while piece := os.read(terminal, 4096):
                    said += piece
            os.close(terminal)
            os.waitpid(pid, 0)
    assert said.startswith(b"begun")
    assert b"PermissionError" in said


def test_only_the_declared_network_is_there(build: Builder):
    result = build(script("net", "cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' ' >/out/if"))
    assert build.read(result["net"], "if").split() == ["lo"]


def test_nothing_is_built_twice_and_unchanged_outputs_stop_the_chain(build: Builder, tmp_path: Path):
    source = tmp_path / "source"
    source.write_text("one # comment\n")

    def chain() -> dict[str, str]:
        first = script("first", "sed 's/ #.*//' /in/src >/out/x", src=FromPath(source))
        second = script("second", "cp /in/first/x /out/y", first=FromAction("first"))
        build(first, second)
        return build.how()

    assert chain() == {"first": "built", "second": "built"}
    assert chain() == {"first": "cached", "second": "cached"}
    source.write_text("one # other comment\n")
    assert chain() == {"first": "same", "second": "cached"}
    source.write_text("two\n")
    assert chain() == {"first": "built", "second": "built"}


def test_a_damaged_object_is_named_and_rebuilt(build: Builder):
    first = script("first", "echo x >/out/x")
    output = build(first)["first"].output
    (build.store.tree(output) / "x").write_text("y")
    second = script("second", "cp /in/first/x /out/y", first=FromAction("first"))
    assert build.read(build(first, second)["second"], "y") == "x\n"
    notes = [event.text for event in build.events if isinstance(event, Note)]
    assert any(output in text and "'first'" in text for text in notes)


def test_a_lost_listing_is_no_reason_to_stop(build: Builder):
    first = script("first", "echo x >/out/x; echo y >/out/y")
    output = build(first)["first"].output
    (build.store.root / "trees" / f"{output}.json").unlink()
    second = script("second", "cp /in/first /out/y", first=FromAction("first", "x"))
    assert build.read(build(first, second)["second"], "y") == "x\n"
    (build.store.root / "trees" / f"{output}.json").unlink()
    (build.store.tree(output) / "x").write_text("damaged")
    build(first, second)
    assert build.how() == {"first": "cached", "second": "cached"} | {"first": "built"}
    assert build.store.damage(output) is None


def test_a_repair_starts_nothing_a_second_time(build: Builder):
    first = script("first", "echo x >/out/x")
    old, new = (script(name, "cp /in/first/x /out/x", first=FromAction("first")) for name in ("old", "new"))
    output = build(first, old)["first"].output
    (build.store.tree(output) / "x").write_text("y")
    build(first, old, new)
    finished = [event.action for event in build.events if isinstance(event, ActionFinished)]
    assert sorted(finished) == ["first", "first", "new", "old"]


def test_a_damaged_target_is_built_again_before_it_leaves_the_store(build: Builder):
    first = script("first", "echo x >/out/x")
    output = build(first)["first"].output
    for damage in (lambda tree: (tree / "x").write_text("y"), lambda tree: (tree / "x").unlink()):
        damage(build.store.tree(output))
        with build.executor() as executor:
            session = Session(None, Plan.of([first]), None, {}, executor)  # type: ignore[arg-type]
            assert session.build(["first"])["first"].output == output  # nothing was read
            assert session.sound(["first"])["first"].output == output
        assert build.store.damage(output) is None
    assert any(isinstance(event, Note) and output in event.text for event in build.events)


def test_an_action_that_cannot_start_lets_what_runs_finish(build: Builder):
    slow = script("slow", "sleep 1; echo x >/out/x")
    quick = script("quick", "true")
    lacking = Action("lacking", Script("true"), {"quick": FromAction("quick")}, tools=("no-such-program",))
    with pytest.raises(HostError) as caught:
        build(slow, quick, lacking)
    assert caught.value.reason == "tool-missing"
    assert build.how() == {"quick": "built", "slow": "built"}
    assert not list((build.store.root / "staging").iterdir())


@pytest.mark.parametrize("only", [(), ("x",)])
def test_an_input_that_changes_under_a_build_makes_no_result(build: Builder, tmp_path: Path, only: tuple[str, ...]):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "x").write_text("old")
    action = script("action", "cp /in/src/x /out/x", src=FromPath(folder, only))
    with build.executor() as executor:
        executor.document(action)  # the key is made of what is there now
        (folder / "x").write_text("new")
        with pytest.raises(BuildError) as caught:
            executor.execute(action)
    assert caught.value.reason == "input-changed"
    assert build.store.latest("action") is None
    assert build.read(build(action)["action"], "x") == "new"


@pytest.mark.parametrize("folder", ["logs", "staging"])
def test_a_store_that_cannot_be_written_is_an_error_not_a_defect(build: Builder, folder: str):
    (build.store.root / folder).rmdir()
    (build.store.root / folder).write_text("")
    with pytest.raises(StoreError) as caught:
        build(script("action", "true"))
    assert caught.value.reason == "store-write"


def test_a_failure_shows_the_end_of_its_log_and_keeps_the_rest(build: Builder):
    bad = script("bad", "echo something >/build/left; echo the reason >&2; exit 7")
    error = failing(build, bad)
    assert error.reason == "action-failed"
    assert "the reason" in error.message
    assert (build.store.root / "failed" / "bad" / "build" / "left").exists()
    assert failing(build, bad).reason == "action-failed"  # a failure is never a hit


def test_a_full_disk_is_called_a_full_disk(build: Builder):
    error = failing(build, script("fill", "cat /usr/bin/make >/dev/full"))
    assert error.reason == "disk-full"


def test_special_files_do_not_get_out(build: Builder):
    with pytest.raises(Exception) as caught:
        build(script("pipe", "mkfifo /out/pipe"))
    assert getattr(caught.value, "reason", "") == "output-special-file"


def test_make_shares_the_tokens(build: Builder):
    text = "printf 'all: a b c d\\na b c d:\\n\\t@echo start; sleep 0.2; echo end\\n' >Makefile; make >/out/log"
    log = build.read(build(script("make", text))["make"], "log")
    running = most = 0
    for line in log.splitlines():
        running += {"start": 1, "end": -1}.get(line, 0)
        most = max(most, running)
    assert most == 2


def test_a_script_starts_a_module_of_ours(build: Builder):
    """As the kernel is compressed. Modules that lie where the script stands are not taken for the library's."""
    plain = script("plain", "seq 9999 >/out/plain")
    text = "echo 1/0 >io.py && cp io.py typing.py && $MODULE </in/plain/plain >/out/packed"
    packed = Action("packed", Script(text, "kernel.payload"), {"plain": FromAction("plain")})
    results = build(plain, packed)
    found = (build.store.tree(results["packed"].output) / "packed").read_bytes()
    assert found == frames.pack(build.read(results["plain"], "plain").encode(), payload.LEVEL)


def test_taking_a_token_never_makes_a_child_wait_or_fail():
    """O_NONBLOCK is shared by all who hold the same open file: make sets it, and relies on it."""
    jobserver = Jobserver(1)
    assert os.get_blocking(jobserver.read_fd)
    os.set_blocking(jobserver.read_fd, False)  # as make does
    assert jobserver.try_acquire()
    assert not jobserver.try_acquire()
    assert not os.get_blocking(jobserver.read_fd)
    jobserver.refill()
    assert jobserver.try_acquire()
    jobserver.close()


def test_cycles_are_named(build: Builder):
    error = failing(build, script("a", "", b=FromAction("b")), script("b", "", a=FromAction("a")))
    assert error.reason == "plan-cycle"


DRIVER = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.integration.builder import Builder, script
from buildsys.events import Note
from buildsys.graph import FromAction

class Events(list):
    def append(self, event):
        if isinstance(event, Note): # that it waits for another build
            Path({folder!r}, "note-%d" % os.getpid()).touch()

build = Builder(Path({folder!r}))
build.events = Events()
slow = script("slow", "echo began; sleep {seconds}; echo x >/out/x", quick=FromAction("quick"))
print(build(script("quick", "echo q >/out/q"), slow)["slow"].output)
"""


def driver(folder: Path, seconds: float) -> Process:
    root = str(Path(__file__).parents[2])
    code = textwrap.dedent(DRIVER).format(root=root, folder=str(folder), seconds=seconds)
    return spawn([sys.executable, "-c", code])


def await_log(folder: Path, text: bytes = b"began") -> None:
    log = folder / "store" / "logs" / "slow.log"
    until(lambda: log.exists() and text in log.read_bytes(), 60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupting_stops_every_process_and_leaves_the_store_sound(tmp_path: Path, number: signal.Signals):
    process = driver(tmp_path, 987.25)
    await_log(tmp_path)
    process.send_signal(number)
    process.wait(30)
    until(lambda: not any(processes("987.25")))
    build = Builder(tmp_path)
    assert all(build.store.damage(digest) is None for digest in build.store.digests())
    assert build.store.latest("slow") is None
    build(script("quick", "echo q >/out/q"))
    assert build.how() == {"quick": "cached"}


def test_a_build_that_waits_for_another_one_can_be_interrupted(tmp_path: Path):
    one = driver(tmp_path, 977.75)
    await_log(tmp_path)
    two = driver(tmp_path, 977.75)
    try:
        until((tmp_path / f"note-{two.pid}").exists)
        two.send_signal(signal.SIGINT)
        two.communicate(timeout=8)
        assert one.poll() is None
    finally:
        for process in (one, two):
            process.kill()
            process.wait(30)


def test_two_builds_in_one_store_do_the_work_once(tmp_path: Path):
    one = driver(tmp_path, 2)
    await_log(tmp_path)
    two = driver(tmp_path, 2)
    outputs = [process.communicate(timeout=60)[0] for process in (one, two)]
    assert outputs[0] == outputs[1] != b""
    assert len(list((tmp_path / "store" / "actions").glob("*.json"))) == 2


@pytest.mark.parametrize("worktree", [False, True])
def test_what_an_input_hides_neither_counts_nor_shows(build: Builder, tmp_path: Path, worktree: bool):
    """A kernel tree under git: looking at its status changes .git, not the kernel."""
    tree = tmp_path / "tree"
    (tree / "sub/.git").mkdir(parents=True)
    (tree / "file").write_text("x")
    (tree / "sub/.git/kept").touch()
    index = tree / ".git" if worktree else tree / ".git/index"
    index.parent.mkdir(exist_ok=True)
    index.write_text("1")
    text = (
        "cat /in/tree/.git 2>/dev/null >/out/seen || ls -A /in/tree/.git >/out/seen; ls /in/tree/sub/.git >>/out/seen"
    )
    action = script("look", text, tree=FromPath(tree, hide=(".git",)))
    assert build.read(build(action)["look"], "seen") == "kept\n"
    index.write_text("2")
    build(action)
    assert build.how() == {"look": "cached"}
    (tree / "file").write_text("y")
    build(action)
    assert build.how() == {"look": "built"} or build.how() == {"look": "same"}
