"""The login program: what it lets through, what it refuses, and what it leaves of the environment."""

from __future__ import annotations

import ast
import os
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.accounts import ACCOUNTS, NAMES, of_uid
from common.errors import RefusedError
from daemon.client.console import login

ROOT = Path(__file__).resolve().parents[2]
ETC = ROOT / "rootfs/skeleton/etc"
OPERATOR = ACCOUNTS[1]


def test_a_terminal_has_no_command():
    assert login.requested([], None) is None
    assert login.requested(["-c", login.PROGRAM], None) is None


def test_a_forced_command_means_what_the_client_asked_for():
    assert login.requested(["-c", login.PROGRAM], "mixctl ping") == "mixctl ping"
    assert login.requested(["-c", login.PROGRAM], "internal-sftp") == "internal-sftp"
    assert login.requested(["-c", "mixctl ping"], None) == "mixctl ping"


@pytest.mark.parametrize("arguments", [["-l"], ["-c"], ["-c", "a", "b"], ["-i"], ["/bin/sh"], ["--", "-c"]])
def test_other_ways_to_be_called_are_refused(arguments):
    with pytest.raises(RefusedError) as caught:
        login.requested(arguments, None)
    assert caught.value.reason == "console-usage"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("mixctl status --json", ["status", "--json"]),
        ("mixctl", []),
        ("/usr/bin/mixctl log 'a b' \"c d\" e\\ f", ["log", "a b", "c d", "e f"]),
        ("  mixctl   ping  ", ["ping"]),
        ("mixctl status; /bin/sh", ["status;", "/bin/sh"]),
        ("mixctl $(id) `id` ${HOME} > x | y && z", ["$(id)", "`id`", "${HOME}", ">", "x", "|", "y", "&&", "z"]),
        ("mixctl status\n/bin/sh", ["status", "/bin/sh"]),
    ],
)
def test_words_of_a_command(command, expected):
    assert login.words(command, OPERATOR) == expected


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("", "console-no-shell"),
        ("   ", "console-no-shell"),
        ("/bin/sh", "console-no-shell"),
        ("sh -c mixctl", "console-no-shell"),
        ("internal-sftp", "console-no-shell"),
        ("scp -t /tmp", "console-no-shell"),
        ("rsync --server .", "console-no-shell"),
        ("/tmp/mixctl status", "console-no-shell"),
        ("./mixctl", "console-no-shell"),
        ("mixctl; sh", "console-no-shell"),
        ("X=1 mixctl", "console-no-shell"),
        ("exec mixctl", "console-no-shell"),
        ("mixctl 'open", "console-quotes"),
        ("mixctl " + "x" * 40_000, "console-too-long"),
    ],
)
def test_what_is_refused(command, reason):
    with pytest.raises(RefusedError) as caught:
        login.words(command, OPERATOR)
    assert caught.value.reason == reason
    assert caught.value.exit_code == 7


@given(st.text(max_size=60))
def test_only_mixctl_comes_through(command):
    try:
        words = login.words(command, OPERATOR)
    except RefusedError:
        return
    assert shlex.split(command)[0] in login.MIXCTL
    assert words == shlex.split(command)[1:]


def test_the_environment_is_ours():
    environment = {
        "SSH_CONNECTION": "192.0.2.1 1 192.0.2.2 22", "TERM": "xterm-256color", "HOME": "/elsewhere", "PATH": "/tmp",
        "PAGER": "sh", "EDITOR": "sh", "VISUAL": "sh", "LESSOPEN": "|sh", "INPUTRC": "/tmp/x", "PYTHONSTARTUP": "x",
        "PYTHONPATH": "/tmp", "LD_PRELOAD": "/tmp/x.so", "LANG": "../x", "LC_ALL": "x", "BASH_ENV": "x", "ENV": "x",
        "SSH_ORIGINAL_COMMAND": "mixctl", "TERMINFO": "/tmp", "_MIXCTL_COMPLETE": "bash_source", "COLUMNS": "1",
    }  # fmt: skip
    login.tidy(environment, OPERATOR)
    assert environment == {
        "SSH_CONNECTION": "192.0.2.1 1 192.0.2.2 22", "TERM": "xterm-256color", "HOME": "/home/operator",
        "PATH": "/usr/bin:/usr/sbin", "USER": "operator", "LOGNAME": "operator", "LC_ALL": "C.UTF-8",
    }  # fmt: skip


@pytest.mark.parametrize("term", ["", "../../x", "a b", "x" * 33, "é", "x;y"])
def test_a_terminal_with_an_odd_name_is_a_dumb_one(term):
    environment = {"TERM": term}
    login.tidy(environment, OPERATOR)
    assert environment["TERM"] == "dumb"


def test_a_user_without_role_gets_nothing(monkeypatch, capsys):
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert login.main([]) == 7
    assert login.main(["-c", "mixctl ping"]) == 7


def test_the_administrator_gets_a_shell_for_a_command(monkeypatch):
    gone: list[tuple[str, list[str]]] = []

    def execv(path: str, argv: list[str]) -> None:
        gone.append((path, argv))
        raise SystemExit

    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(SystemExit):
        login.main(["-c", "echo a | cat"])
    assert gone == [("/bin/sh", ["sh", "-c", "echo a | cat"])]


# -- what other files must agree with --------------------------------------------------------------------------------


def rows(name: str) -> dict[str, list[str]]:
    return {line.split(":")[0]: line.split(":") for line in (ETC / name).read_text().splitlines()}


def test_the_account_files_agree_with_the_table():
    passwd, group, shadow = rows("passwd"), rows("group"), rows("shadow")
    assert set(passwd) == set(shadow)
    for account in ACCOUNTS:
        row = passwd[account.name]
        assert [int(row[2]), int(row[3]), row[5]] == [account.uid, account.uid, account.home]
        assert row[6] == ("/bin/sh" if account.has_shell else login.PROGRAM)
        assert shadow[account.name][1] == "*"
        if account.uid:
            assert int(group[account.name][2]) == account.uid
            assert account.name in group["mixos"][3].split(",")
            assert of_uid(account.uid) == account
    people = {name for name, row in passwd.items() if row[6] not in ("/usr/bin/false",)}
    assert people == set(NAMES)
    assert login.PROGRAM in (ETC / "shells").read_text().splitlines()


def test_only_who_has_a_shell_sees_the_processes_of_others():
    """The kernel's option of /proc names a group (proc(5), hidepid): not that of the socket, which is everybody's."""
    (options,) = [line.split()[3] for line in (ETC / "fstab").read_text().splitlines() if line.startswith("proc ")]
    assert "hidepid=2" in options.split(",")
    numbers = {row[2]: row[3] for row in rows("group").values()}
    members = numbers[next(word[4:] for word in options.split(",") if word.startswith("gid="))]
    assert members.split(",") == [account.name for account in ACCOUNTS if account.has_shell and account.uid]


def test_sshd_forces_the_console_on_every_account_without_a_shell():
    text = (ETC / "ssh/sshd_config").read_text()
    forced = re.search(rf"^Match User (\S+)\n    ForceCommand {login.PROGRAM}$", text, re.MULTILINE)
    assert forced is not None
    assert set(forced[1].split(",")) == {account.name for account in ACCOUNTS if not account.has_shell}
    silent = re.search(r"^Match User (\S+)\n    PermitTTY no$", text, re.MULTILINE)
    assert silent is not None
    assert set(silent[1].split(",")) == {account.name for account in ACCOUNTS if not account.terminal}
    assert re.search(r"^ExposeAuthInfo yes$", text, re.MULTILINE)
    assert not re.search(r"^\s*(AcceptEnv|SetEnv)", text, re.MULTILINE)


# -- no way out through a program ------------------------------------------------------------------------------------

FORBIDDEN = {
    "click": {"edit", "launch", "echo_via_pager"},
    "os": {"system", "popen", "startfile"},
    "pty": {"spawn"},
    "subprocess": None,
    "webbrowser": None,
    "pdb": None,
    "code": None,
    "pydoc": None,
    "readline": None,
    "rlcompleter": None,
}


def used(tree: ast.AST) -> set[str]:
    """`module.name` of every use of a forbidden module in a source file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if FORBIDDEN.get(alias.name, ...) is None}
        elif isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN:
            names = FORBIDDEN[node.module]
            found |= {f"{node.module}.{alias.name}" for alias in node.names if names is None or alias.name in names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = FORBIDDEN.get(node.value.id, set())
            found |= {f"{node.value.id}.{node.attr}"} if names is not None and node.attr in names else set()
    return found


@pytest.mark.parametrize("folder", ["daemon/client/cli", "daemon/client/console"])
def test_no_command_opens_an_editor_a_pager_or_a_program(folder):
    files = sorted((ROOT / folder).glob("*.py"))
    assert files
    for path in files:
        assert used(ast.parse(path.read_text())) == set(), path.name


def test_the_search_above_finds_what_it_is_for():
    code = "import subprocess\nfrom click import edit\nimport os\nos.system('x')\nimport click\nclick.launch('x')\n"
    assert used(ast.parse(code)) == {"subprocess", "click.edit", "os.system", "click.launch"}
