"""The prompt: lines become commands, and nothing that happens in one ends the session."""

from __future__ import annotations

import json
import os
import pty
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from common.accounts import ACCOUNTS
from common.errors import UnreachableError
from daemon.client.cli import cli
from daemon.client.console import complete as completion
from daemon.client.console import names, repl
from daemon.client.console.banner import describe
from daemon.client.console.repl import Console
from daemon.client.console.watch import parse
from daemon.core import manifest
from tests.terminals import Played

BY_NAME = {account.name: account for account in ACCOUNTS}


class Recorder:
    """Stands for mixctl: remembers the command lines, and does what the first word says."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, arguments: Sequence[str]) -> int:
        self.calls.append(tuple(arguments))
        if arguments[0] == "interrupt":
            raise KeyboardInterrupt
        if arguments[0] == "defect":
            raise ValueError("broken \x1b]0;x\x07")
        if arguments[0] == "leave":
            raise SystemExit(5)
        if arguments[0] == "long":
            click.echo("line\n" * 50)
        return int(arguments[1]) if arguments[0] == "code" else 0


@pytest.fixture
def mixctl(monkeypatch, tmp_path):
    monkeypatch.setattr("daemon.client.connection.SOCKET", str(tmp_path / "none.sock"))
    monkeypatch.setattr("daemon.client.console.banner.banner", lambda role: f"role {role}\n")
    return Recorder()


def console(mixctl: Recorder, tmp_path, keys: Sequence[str | None] = (), account: str = "operator") -> Console:
    played: list[str | None] = []
    for key in keys:
        played += [key] if key is None or not key.endswith("\n") else [*key[:-1], "enter"]
    return Console(BY_NAME[account], mixctl, Played(played), tmp_path)


def test_lines_with_and_without_the_word(mixctl, tmp_path):
    session = console(mixctl, tmp_path, ["status\n", "mixctl service list --json\n", "log 'two words'  # why\n", "\n"])
    assert session.session() == 0
    assert mixctl.calls == [("status",), ("service", "list", "--json"), ("log", "two words")]
    assert (tmp_path / repl.HISTORY).read_text().splitlines()[0] == "status"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("code 7", 7),
        ("interrupt", 130),
        ("defect", 1),
        ("leave", 5),
        ("'open quote", 2),
        ("shell", 7),
        ("console", 2),
        ("watch", 2),
        ("watch 0 status", 2),
        ("help", 0),
        ("long", 0),
    ],
)
def test_status_of_a_line(mixctl, tmp_path, capfd, line, status):
    session = console(mixctl, tmp_path, [f"{line}\n", *("q" if line == "long" else ""), "code 0\n"])
    codes = []
    real = session.line

    def line_of(text: str) -> None:
        real(text)
        codes.append(session.status)

    session.line = line_of  # type: ignore[method-assign]
    session.session()
    assert codes == [status, 0]
    assert "\x07" not in capfd.readouterr().err


@pytest.mark.parametrize("line", ["!sh", "!! status", "status; sh", "status | sh", "$(sh)", "status > /tmp/x", "`sh`"])
def test_no_line_is_for_a_shell(mixctl, tmp_path, line):
    console(mixctl, tmp_path, [f"{line}\n"]).session()
    assert mixctl.calls == [tuple(line.split())]  # words for mixctl, which knows no such command


def test_help_of_a_command(mixctl, tmp_path):
    console(mixctl, tmp_path, ["help service start\n", "? status\n", "help watch\n"]).session()
    assert mixctl.calls == [("service", "start", "--help"), ("status", "--help"), ("--help",)]


@pytest.mark.parametrize("word", ["exit\n", "quit\n", "logout\n", "ctrl-d", "mixctl exit\n"])
def test_the_end(mixctl, tmp_path, word):
    assert console(mixctl, tmp_path, ["code 3\n", word, "status\n"]).session() == 3
    assert mixctl.calls == [("code", "3")]


def test_ctrl_c_drops_the_line(mixctl, tmp_path):
    console(mixctl, tmp_path, [*"reboot", "ctrl-c", "ping\n"]).session()
    assert mixctl.calls == [("ping",)]


def test_an_unattended_session_ends(mixctl, tmp_path):
    session = console(mixctl, tmp_path, [*"sta", None, "ping\n"])
    session.session()
    assert mixctl.calls == []
    assert "the session ends" in session.terminal.written


def test_shell_is_for_the_administrator(mixctl, tmp_path, monkeypatch):
    gone: list[Sequence[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, argv: gone.append([path, *argv]))
    console(mixctl, tmp_path, ["shell\n"], "operator").session()
    console(mixctl, tmp_path, ["shell -c id\n"], "admin").session()
    assert gone == []
    console(mixctl, tmp_path, ["shell\n"], "admin").session()
    assert gone == [["/bin/sh", "sh", "-c", "MIXOS_CONSOLE=1 /bin/sh -l; exec /usr/libexec/mixos-console"]]


def test_a_script_has_no_prompt_and_the_last_code(mixctl, tmp_path, capfd):
    reading, writing = os.pipe()
    os.write(writing, b"status\ncode 4\n\xff\xfe\nshell\ncode 6")
    os.close(writing)
    session = Console(BY_NAME["admin"], mixctl, repl.Terminal(reading, 1), tmp_path)
    assert session.session() == 6
    os.close(reading)
    assert mixctl.calls[:2] == [("status",), ("code", "4")]
    assert "mixos admin@" not in capfd.readouterr().out
    assert not (tmp_path / repl.HISTORY).exists()


def test_a_script_with_an_endless_line_is_left(mixctl, tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"x" * 20_000)
    os.close(writing)
    assert Console(BY_NAME["viewer"], mixctl, repl.Terminal(reading, 1), tmp_path).session() == 2
    os.close(reading)
    assert mixctl.calls == []


@pytest.mark.parametrize(
    ("line", "paged"), [("long", True), ("top", False), ("log x -f", False), ("events", False), ("log x", True)]
)
def test_only_what_ends_is_paged(mixctl, tmp_path, monkeypatch, line, paged):
    used = []
    real = repl.paged
    monkeypatch.setattr(repl, "paged", lambda *arguments: used.append(line) or real(*arguments))
    console(mixctl, tmp_path, [f"{line}\n", "q"]).session()
    assert bool(used) is paged


def test_watch_shows_again_and_again_until_q(mixctl, tmp_path):
    session = console(mixctl, tmp_path, ["watch 1 long\n", None, "x", "q", "exit\n"])
    session.session()
    assert mixctl.calls == [("long",)] * 3
    assert session.terminal.written.count("line\n") == 3 * 8  # of 10 rows: one is the head's, one the cursor's


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["status"], (2.0, ["status"])),
        (["5", "mixctl", "service", "list"], (5.0, ["service", "list"])),
        (["0.5", "ping"], (0.5, ["ping"])),
    ],
)
def test_watch_words(words, expected):
    assert parse(words) == expected


@pytest.mark.parametrize("words", [[], ["3"], ["nan", "ping"], ["inf", "ping"], ["0.1", "ping"], ["watch", "ping"]])
def test_watch_words_that_are_wrong(words):
    assert isinstance(parse(words), str)


# -- completion ------------------------------------------------------------------------------------------------------


@pytest.fixture
def verbs(monkeypatch):
    """Two verbs of our own behind the real table's name."""

    @click.group()
    def cli() -> None: ...

    @cli.group()
    def service() -> None: ...

    @service.command()
    @click.argument("unit", shell_complete=names.names("unit"))
    @click.option("--signal", type=click.Choice(["TERM", "HUP"]))
    def stop(unit: str, signal: str) -> None: ...

    cli.command("status")(click.pass_context(lambda context: None))
    monkeypatch.setattr("daemon.client.cli.cli", cli)
    monkeypatch.setattr(
        "daemon.client.connection.call", lambda *_, **__: {"units": [{"name": "hello"}, {"name": "help-desk"}]}
    )


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("", ["service", "status", "help", "exit"]),
        ("s", ["service", "status"]),
        ("mixctl s", ["service", "status"]),
        ("help s", ["service", "status"]),
        ("watch service ", ["stop"]),
        ("service stop hel", ["hello", "help-desk"]),
        ("service stop --s", ["--signal"]),
        ("service stop --signal ", ["TERM", "HUP"]),
        ("service stop --signal=H", ["HUP"]),
        ("service stop 'he", []),
    ],
)
def test_completion(verbs, before, words):
    start, found = completion.Completer(("help", "exit"))(before)
    assert set(words) == {word for word in found if word not in ("--help",)}
    if words:
        assert all(word.startswith(before[start:]) for word in found)


def test_a_defect_in_completion_is_no_news(monkeypatch):
    monkeypatch.setattr("daemon.client.cli.cli", None)
    assert completion.Completer(())("sta") == (3, [])


def test_names_of_a_daemon_that_does_not_answer(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise UnreachableError("gone", reason="daemon-unreachable")

    monkeypatch.setattr("daemon.client.connection.call", refuse)
    assert names.complete_names("unit") == []


@pytest.mark.parametrize(
    ("answer", "path", "expected"),
    [
        ([{"name": "a"}, {"name": 5}, {}, "b", None], (), {"a", "5", "b"}),
        ({"lists": {"blocked": 3}}, ("lists",), {"blocked"}),
        ({"units": [{"name": "a"}], "dns": ["192.0.2.1"]}, ("units",), {"a"}),
        ({"i": [{"name": "wg0", "peers": [{"name": "p"}]}, {"peers": None}, 5]}, ("i", "peers"), {"p"}),
        ({"units": "text"}, ("units",), set()),
        ("text", (), set()),
        (None, ("x",), set()),
    ],
)
def test_names_in_answers(answer, path, expected):
    assert names.names_in(answer, path) == expected


def test_names_come_from_methods_that_there_are():
    root = Path(__file__).resolve().parents[2] / "daemon"
    code = "".join(path.read_text() for path in root.rglob("*.py") if path.parent.name != "console")
    assert [source.method for source in manifest.names().values() if f'"{source.method}"' not in code] == []


# Parameters that take a name which only the daemon knows; what makes a new thing, or names none, is not among them.
KNOWN = {
    "service": {"names", "name"},
    "sandbox": {"profile"},
    "net": {"interface"},
    "vpn": {"interface", "name"},
    "firewall": {"service", "zone", "name", "source", "to", "interface", "interfaces", "allow"},
    "storage": {"unit"},
    "backup": {"state"},
    "config": {"old", "new", "revision"},
    "audit": {"method"},
    "update": {"version", "file"},
}
NEW = {("init", "name"), ("add-peer", "name"), ("import", "name")}
NEW |= {(name, "name") for name in ("allow", "deny", "forward", "nat")}
NEW |= {(name, "source") for name in ("allow", "deny", "forward", "test")} | {("forward", "to")}  # addresses


def test_every_name_can_be_completed():
    missing = set()
    for verb, wanted in KNOWN.items():
        group = cli.get_command(click.Context(cli), verb)
        assert isinstance(group, click.Group)
        for name, command in group.commands.items():
            for one in command.params:
                if one.name in wanted and (name, one.name) not in NEW and one._custom_shell_complete is None:
                    missing.add((verb, name, one.name))
    assert not missing


# -- banner ----------------------------------------------------------------------------------------------------------


def test_banner_tells_what_matters():
    facts = {
        "version": "0.1.0",
        "hostname": "box\x1b[31m",
        "slot": "a",
        "data": {"persistent": False},
        "parts": {
            "metrics": {"state": "running", "health": {"state": "warning", "findings": [{"text": "hot"}]}},
            "net": {"state": "failed"},
            "agents": {"state": "running", "approvals": 2},
        },
    }
    text = describe(facts, "admin")
    assert "\x1b" not in text
    for word in ("0.1.0", "slot a", "role admin", "hot", "net", "2 approvals", "NOT PERSISTENT"):
        assert word in text


@pytest.mark.parametrize("facts", [{}, {"parts": 5}, {"parts": {"metrics": {"health": 7}, "x": None}}, {"data": []}])
def test_banner_of_little(facts):
    assert describe(json.loads(json.dumps(facts)), "viewer").startswith("MixOS ?")


def test_a_terminal_that_can_only_print_is_read_line_by_line(mixctl, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    master, slave = pty.openpty()
    try:
        os.write(master, b"ping\nmixctl code 4\n\x04")  # Ctrl-D
        session = Console(BY_NAME["viewer"], mixctl, repl.Terminal(slave, slave), tmp_path)
        assert session.session() == 4
        assert mixctl.calls == [("ping",), ("code", "4")]
        assert b"\x1b" not in os.read(master, 4096)
    finally:
        os.close(master)
        os.close(slave)
