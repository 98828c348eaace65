"""`mixctl audit` and `mixctl events`, and how errors of the daemon end a command."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildsys.run import run, spawn
from common.errors import MixosError
from daemon.client import connection as client
from daemon.client import mixctl
from daemon.client.cli.common import columns
from daemon.client.console.terminal import width_of
from daemon.core.manifest import manifests
from daemon.core.part import Context
from daemon.core.parts import source
from tests.daemons import Running, running
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with running(tmp_path) as found:
        for name in ("call", "stream"):
            real = getattr(client, name)
            monkeypatch.setattr(
                client, name, lambda method, params, real=real, **options: real(method, params, found.path, **options)
            )
        yield found


def test_audit_list(device, capsys):
    device.call("sample.set", {"text": "a"})
    device.reason("sample.fail", {"text": "b"})
    assert mixctl.main(["audit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NO", "TIME", "KIND", "WHO", "FROM", "WHAT"]
    assert lines[2].endswith("sample.set text=a")
    assert lines[-1].endswith("4: sample-unknown")
    assert mixctl.main(["audit", "list", "--method", "sample.set", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["params"] == {"text": "a"}


def test_audit_verify(device, capsys):
    assert mixctl.main(["audit", "verify"]) == 0
    anchor = capsys.readouterr().out.split("anchor ")[1].strip()
    assert mixctl.main(["audit", "verify", "--anchor", anchor, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["anchored"] is True
    assert mixctl.main(["audit", "verify", "--anchor", f"1:{'0' * 64}"]) == 8
    assert mixctl.main(["audit", "verify", "--anchor", "nonsense"]) == 2
    assert mixctl.main(["audit", "verify", "--anchor", "1:xyz"]) == 2
    (path,) = (device.daemon.context.log / "audit").glob("*")
    path.write_bytes(path.read_bytes().replace(b"started", b"stopped"))
    assert mixctl.main(["audit", "verify"]) == 8
    assert "BROKEN" in capsys.readouterr().out


def test_errors_of_the_daemon_end_with_its_exit_code(device, capsys):
    assert mixctl.main(["audit", "list", "--method", "x" * 65, "--json"]) == 2
    error = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (error["reason"], error["exit_code"]) == ("rpc-params", 2)


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(
    "words",
    [
        *("config put mdns.toml FILE", "config remove mdns.toml", "config undo", "backup restore FILE --plain"),
        *("confirm", "change confirm", "firewall confirm", "net confirm"),
    ],
)
def test_what_is_written_and_not_in_force_is_no_success(tmp_path, monkeypatch, words, form):
    answer: dict[str, Any] = {
        "changed": True, "applied": True, "diff": "", "files": "", "steps": [], "cuts-off": False, "confirm": None,
        "confirmed": True, "change": "00000001", "changed-files": ["mdns.toml"], "stays": [], "apply": ["mdns.apply"],
        "revision": 1, "dry-run": False, "removed": [], "restart": [], "reboot": False, "problems": [],
    }  # fmt: skip
    monkeypatch.setattr(client, "call", lambda *given, **options: answer)
    (tmp_path / "file").touch()
    argv = [str(tmp_path / "file") if word == "FILE" else word for word in words.split()] + form
    assert mixctl.main(argv) == 0
    answer["problems"] = [{"method": "mdns.apply", "reason": "mdns-no", "message": "no"}]
    assert mixctl.main(argv) == 1


# case: wanted import -
def test_an_import_from_standard_input_needs_a_name(monkeypatch):
    given: list[Any] = []

    def call(method: str, params: Any, *_: object, **__: object) -> Any:
        given.append(params)
        raise MixosError("enough", reason="enough")

    monkeypatch.setattr(client, "call", call)
    for words, codes in (([], [2]), (["--name", "wg7"], [1])):
        read, write = os.pipe()
        os.write(write, b"[Interface]\n")
        os.close(write)
        with os.fdopen(read) as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stream)
            assert [mixctl.main(["vpn", "import", "-", *words])] == codes
    assert [(one["name"], one["file"], one["text"]) for one in given] == [("wg7", "standard input", "[Interface]\n")]


def test_an_import_whose_file_has_too_long_a_name_says_what_to_do(tmp_path, capsys):
    (tmp_path / "a-name-of-many-letters.conf").write_text("[Interface]\n")
    assert mixctl.main(["vpn", "import", str(tmp_path / "a-name-of-many-letters.conf")]) == 2
    assert "--name" in capsys.readouterr().err


def test_what_nobody_is_there_to_confirm_is_not_done(monkeypatch, capsys):
    with Path(os.devnull).open() as nobody, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", nobody)
        assert mixctl.main(["vpn", "delete", "wg1", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["reason"] == "not-confirmed"


def test_an_import_of_what_is_no_text_is_a_mistake_of_the_file(tmp_path, capsys):
    (tmp_path / "a.conf").write_text("[Interface]\n", encoding="utf-16")
    assert mixctl.main(["vpn", "import", str(tmp_path / "a.conf")]) == 3
    assert "UTF-16" in capsys.readouterr().err


# case: N20
@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize("words", ["init", "import FILE --name wg0", "add-peer a", "rotate", "rotate a --key", "apply"])
def test_a_tunnel_that_is_not_up_is_no_success(tmp_path, monkeypatch, words, form):
    answer: dict[str, Any] = {
        "changed": True, "applied": True, "diff": "", "files": "", "steps": [], "cuts-off": False, "confirm": None,
        "interface": "wg0", "state": "up", "problem": None, "warnings": [], "public-key": "x",
        "addresses": [], "peers": [],
        "peer": "a", "config": "", "configs": {}, "up": ["wg0"], "down": {}, "problems": [],
    }  # fmt: skip
    monkeypatch.setattr(client, "call", lambda *given, **options: answer)
    (tmp_path / "file").touch()
    argv = ["vpn", *(str(tmp_path / "file") if word == "FILE" else word for word in words.split()), *form]
    assert mixctl.main(argv) == 0
    answer |= {"state": "down", "problem": "no route", "up": [], "down": {"wg0": "no route"}}
    assert mixctl.main(argv) == 1
    answer["applied"] = False
    assert mixctl.main([*argv, "--dry-run"]) == 0


@pytest.mark.parametrize("words", ["config put mdns.toml FILE --dry-run", "config remove mdns.toml --dry-run"])
def test_a_difference_is_printed_as_it_is(tmp_path, monkeypatch, capsys, words):
    answer = {"applied": False, "files": "--- a/x\n+++ b/x", "diff": "", "steps": [], "cuts-off": False, "problems": []}
    monkeypatch.setattr(client, "call", lambda *given, **options: answer)
    (tmp_path / "file").touch()
    assert mixctl.main([str(tmp_path / "file") if word == "FILE" else word for word in words.split()]) == 0
    assert capsys.readouterr().out == "--- a/x\n+++ b/x\n"


@pytest.mark.parametrize("verb", ["show", "verify", "restore", "create"])
def test_who_names_no_file_is_not_asked_for_the_passphrase(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setattr("daemon.parts.backup.verbs._passphrase", None)
    assert mixctl.main(["backup", verb, str(tmp_path / "none/x"), "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["reason"] in ("backup-file", "file-unreadable")


def test_events(device, monkeypatch, capsys):
    event: dict[str, Any] = {"topic": "service.exited", "subject": "hello", "at": 0.0, "data": {"code": 1}}
    monkeypatch.setattr(client, "stream", lambda *given, **options: iter([event, {**event, "subject": "", "data": {}}]))
    assert mixctl.main(["events"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("  service.exited  hello  code=1")
    assert second.endswith("  service.exited")
    assert mixctl.main(["events", "service.", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == event


def test_nothing_in_an_event_reaches_the_terminal_as_it_is(device, monkeypatch, capsys):
    """Subjects and details come from units, sandboxes and the network: no escapes, and no lines of their own."""
    hostile = {"topic": "t", "subject": "\x1b]0;x\x07\x9b31m", "at": 0.0, "data": {"host": "a\nb \udce9\u202e"}}
    monkeypatch.setattr(client, "stream", lambda *given, **options: iter([hostile]))
    assert mixctl.main(["events"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert mixctl.main(["events", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert json.loads(line) == hostile


def test_a_cell_of_a_table_stays_in_its_row():
    text = columns(("a", "b"), [("x\n9999  forged", "y"), ("東京\x1b[2J", "z")])
    assert len(text.splitlines()) == 3
    assert len({width_of(line.rpartition(" ")[0]) for line in text.splitlines()}) == 1
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "argv", [["audit", "--help"], ["audit", "list", "--help"], ["audit", "verify", "--help"], ["events", "--help"]]
)
def test_help_has_an_example(device, capsys, argv):
    assert mixctl.main(argv) == 0
    assert "Example:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff", "config-encoding"),
        (b"#" * 70_000, "config-too-large"),
        ("# é".encode() + "é".encode() * 40_000, "config-too-large"),  # the limit is within a character
        (b"\x01" * 20_000, "config-too-large"),  # each is six bytes of JSON
        (b'"\n' * 16_000, "rpc-method"),
        (None, "config-unreadable"),
    ],
)
def test_what_cannot_be_put_is_told_with_its_name_and_class(
    device: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, reason: str
):
    file = tmp_path / "odd.toml" if content is not None else Path("/proc/self/mem")
    if content is not None:
        file.write_bytes(content)
    code = mixctl.main(["config", "put", "firewall.toml", str(file), "--json"])
    error = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (error["reason"], error["exit_code"]) == (reason, code)
    assert code == (11 if reason == "rpc-method" else 3)
    assert reason == "rpc-method" or error["error"].startswith(f"{file}: ")


# case: D6
@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_a_stream_whose_reader_has_gone_ends_without_an_item(device: Running, kind: str):
    """As of an ssh that was killed: nothing is written that could fail."""
    code = "import sys; from daemon.client.mixctl import main; sys.exit(main())"
    pair = {"pipe": os.pipe, "socket": lambda: [one.detach() for one in socket.socketpair()], "terminal": os.openpty}
    ours, theirs = pair[kind]()
    with os.fdopen(theirs, "wb", buffering=0) as log:
        process = spawn(
            [sys.executable, "-c", code, "events", "api."], env={"MIXOS_SOCKET": str(device.path)}, cwd=ROOT, log=log
        )
    try:
        while not select.select([ours], [], [], 0.05)[0]:
            device.call("sample.set", {"text": "a"})
        os.close(ours)
        assert process.wait(PATIENCE) == 141
    finally:
        process.kill()


# case: D13
@pytest.mark.parametrize("verb", ["ping", "status", "events --help", "completion bash", "audit"])
def test_a_full_disk_behind_the_output_is_no_traceback(device: Running, verb: str):
    code = "import sys; from daemon.client.mixctl import main; sys.exit(main())"
    line = f'"{sys.executable}" -c "{code}" {verb} >/dev/full'
    done = run(["/bin/sh", "-c", line], env={"MIXOS_SOCKET": str(device.path)}, cwd=ROOT, split=True, allow=(1,))
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"mixctl: standard output: ")


@pytest.mark.parametrize(
    ("verb", "code"),
    [("config put firewall.toml", 11), ("vpn import - --name wg0", 11), ("backup verify - --plain", 8), ("ping", 0)],
)
def test_streams_that_were_closed_are_empty(device: Running, verb: str, code: int):
    program = "import sys; from daemon.client.mixctl import main; sys.exit(main())"
    line = f'"{sys.executable}" -c "{program}" {verb} <&- >&-'
    run(["/bin/sh", "-c", line], env={"MIXOS_SOCKET": str(device.path)}, cwd=ROOT, split=True, allow=(code,))


# case: D12
@pytest.mark.parametrize("line", ["# a\x85b\u202ec\x1b[2J\r\n# end", "# end\n\n\n"])
def test_a_file_goes_out_and_in_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str):
    """Except on a terminal, which it must not steer."""
    (tmp_path / "units").mkdir()
    path = tmp_path / "units/x.toml"
    path.write_bytes(line.encode())
    context = Context(tmp_path, tmp_path / "state", tmp_path, tmp_path, tmp_path / "log", shared=False)
    with running(tmp_path, more=[source(one, context) for one in manifests() if one.name == "config"]) as device:
        monkeypatch.setenv("MIXOS_SOCKET", str(device.path))
        code = "import sys; from daemon.client.mixctl import main; sys.exit(main())"
        argv = [sys.executable, "-c", code, "config", "get", "units/x.toml"]
        assert run(argv, env={"MIXOS_SOCKET": str(device.path)}, cwd=ROOT, split=True).stdout == line.encode()
        path.write_bytes(b"# another\n")
        text = line.replace("\x1b", "").encode()  # which no TOML may have
        put = [*argv[:3], "config", "put", "units/x.toml"]  # ends with 1: nobody puts units in force here
        run(put, stdin=text, env={"MIXOS_SOCKET": str(device.path)}, cwd=ROOT, split=True, allow=(1,))
        assert path.read_bytes() == text
        path.write_bytes(line.encode())
        main, terminal = os.openpty()
        with os.fdopen(terminal, "wb", buffering=0) as log:
            assert spawn(argv, env={"MIXOS_SOCKET": str(device.path)}, cwd=ROOT, log=log).wait(PATIENCE) == 0
        shown = os.read(main, 4096)
        os.close(main)
        assert b"\x1b" not in shown
        assert "\u202e".encode() not in shown
