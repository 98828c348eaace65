"""The console over a real sshd: what each account can do, and what it cannot."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildsys.project import Project
from buildsys.run import run
from buildsys.vm import Vm
from common.settings.model import SshKey
from image.qemu import Running
from tests.integration.logindevice import LoginDevice, Session, login_device, make_key, public

pytestmark = pytest.mark.integration
WITHOUT_SHELL = ("operator", "viewer", "agent")
PROMPT = r"mixos {}@\S+> "


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoginDevice]:
    folder = tmp_path_factory.mktemp("device")
    keys = {name: make_key(folder, name) for name in ("main", "elsewhere", "here", "expired", "later", "silent")}
    rows = [SshKey(account, public(keys["main"])) for account in ("admin", "operator", "viewer", "agent", "root")]
    rows += [
        SshKey("viewer", public(keys["elsewhere"]), sources=("192.0.2.0/24", "!127.0.0.1")),
        SshKey("viewer", public(keys["here"]), sources=("127.0.0.*", "192.0.2.0/24")),
        SshKey("viewer", public(keys["expired"]), expires="2020-01-01"),
        SshKey("viewer", public(keys["later"]), expires="2999-01-01"),
        SshKey("operator", public(keys["silent"]), options=("no-pty",)),
    ]
    with login_device(folder, rows, keys["main"]) as found:
        yield found


@pytest.mark.parametrize("user", ["admin", "root", *WITHOUT_SHELL])
def test_scripts_run_mixctl(device, user):
    done = device.ssh(user, "mixctl", "ping")
    assert (done.status, done.text) == (0, "pong")
    done = device.ssh(user, "mixctl ping --json")
    assert json.loads(done.stdout) == {"ping": "pong"}


def test_errors_keep_their_exit_code(device):
    assert device.ssh("operator", "mixctl no-such-command").status == 2
    assert device.ssh("agent", "mixctl status --json").status != 0  # not for this role
    assert json.loads(device.ssh("viewer", "mixctl status --json").stdout)["parts"]["metrics"]["state"] == "running"


@pytest.mark.parametrize("user", WITHOUT_SHELL)
def test_no_account_without_a_shell_gets_one(device, user):
    assert device.ssh(user, "/bin/sh", stdin=b"id\n").status == 7


@pytest.mark.parametrize(
    "command",
    ["sh -c id", "mixctl; id", "$(id)", "exec sh", "scp -t /tmp", "env mixctl", "/usr/libexec/mixos-console -c id"],
)
def test_nothing_but_mixctl_runs(device, command):
    done = device.ssh("operator", command)
    assert done.status == 7
    assert done.stdout == b""
    assert b"uid=" not in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["mixctl ping; id", "mixctl ping | id", "mixctl ping `id`"])
def test_shell_syntax_is_only_words(device, command):
    done = device.ssh("operator", command)
    assert done.status == 2
    assert b"uid=" not in done.stdout + done.stderr


@pytest.mark.parametrize("user", WITHOUT_SHELL)
def test_no_file_transfer_without_a_shell(device, user, tmp_path):
    assert device.ssh(user, "-s", "sftp").status == 7
    (tmp_path / "file").write_text("x")
    assert device.sftp(user, f"put {tmp_path}/file /tmp/from-{user}\n").status != 0
    assert not Path(f"/tmp/from-{user}").exists()


def test_the_administrator_transfers_files(device):
    done = device.sftp("admin", "mkdir folder\nls\n")
    assert done.status == 0
    assert b"folder" in done.stdout


def test_the_administrators_commands_go_to_a_shell(device):
    assert device.ssh("admin", "echo $0; id -un | tr a-z A-Z").text == "sh\nADMIN"
    assert device.ssh("root", "id -u").text == "0"


@pytest.mark.parametrize("user", WITHOUT_SHELL)
def test_nothing_is_forwarded(device, user):
    argv = device.argv(user)
    tunnel = [*argv[:-1], "-W", "127.0.0.1:22", argv[-1]]
    assert run(tunnel, split=True, allow=range(256), timeout=60).status == 255


# -- sessions --------------------------------------------------------------------------------------------------------


def open_session(device: LoginDevice, user: str) -> Session:
    session = Session([*device.argv(user)[:-1], "-t", f"{user}@127.0.0.1"])
    session.expect(PROMPT.format(user))
    return session


@pytest.mark.parametrize("user", ["admin", "operator", "viewer"])
def test_a_terminal_is_the_console(device, user):
    session = open_session(device, user)
    session.type("ping\r")
    session.expect("pong")
    session.type("mixctl ping --json\r")
    session.expect('"ping": "pong"')
    session.type("exit\r")
    assert session.end() == 0


def test_keys_of_the_console(device):
    session = open_session(device, "operator")
    session.type("pi\t")
    session.expect("ping ")
    session.type("\r")
    session.expect("pong")
    session.type("nonsense\x03")
    session.expect(r"\^C")
    session.type("\x1b[A\r")  # the line before
    session.expect("pong")
    session.type("help\r")
    session.expect("-- more")
    session.type("q")
    session.expect(PROMPT.format("operator"))
    session.type("\x1c\x1a\x04")  # Ctrl-\ and Ctrl-Z do nothing, Ctrl-D leaves
    assert session.end() == 0
    history = device.inside("cat", "/home/operator/.mixctl_history").text.split("\n")
    assert history[-2:] == ["ping", "help"]
    assert device.inside("stat", "-c", "%a %U", "/home/operator/.mixctl_history").text == "600 operator"


def test_the_console_survives_what_goes_wrong(device):
    session = open_session(device, "viewer")
    for line in ("no-such-command", "'open", "reboot", "shell", "!sh", "watch"):
        session.type(f"{line}\r")
        session.expect(PROMPT.format("viewer"))
    session.type("id; sh\r")
    session.expect(PROMPT.format("viewer"))
    session.type("exit\r")
    session.end()
    assert "uid=" not in session.seen


def test_a_command_is_stopped_by_ctrl_c(device):
    session = open_session(device, "operator")
    session.type("watch 60 ping\r")
    session.expect("every 60 s")
    session.expect("pong")
    session.type("\x03")
    session.expect(PROMPT.format("operator"))
    session.type("exit\r")
    session.end()


def test_the_administrator_gets_a_shell_and_comes_back(device):
    session = open_session(device, "admin")
    session.type("shell\r")
    session.expect(r"\$ ")
    session.type("id -un; echo $$-$PPID\r")
    session.expect(r"admin\r\n\d+-\d+")
    session.type("exit\r")
    session.expect(PROMPT.format("admin"))
    session.type("ping\r")
    session.expect("pong")
    session.expect(PROMPT.format("admin"))
    session.type("\x04")
    assert session.end() == 0


def test_an_agent_has_no_terminal_but_a_pipe(device):
    done = device.ssh("agent", stdin=b"ping\n# a comment\nmixctl ping --json\nnope\n")
    assert done.status == 2
    assert done.stdout.startswith(b"pong\n{")
    assert device.ssh("agent", options=["RequestTTY=force"], stdin=b"ping\n").status == 255  # the client gives up


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_ctrl_c_while_it_starts_opens_nothing(device, moment):
    session = Session([*device.argv("operator")[:-1], "-t", "operator@127.0.0.1"])
    time.sleep(moment)
    session.type("\x03\x03\x1c")
    time.sleep(0.3)
    with contextlib.suppress(OSError):  # it may have ended already
        session.type("id\rexit\r\x04")
    session.end()
    assert "uid=" not in session.seen
    assert "$ " not in session.seen


# -- what surrounds a session ----------------------------------------------------------------------------------------


def test_files_of_the_home_change_nothing(device):
    script = """
    cd /home/operator
    mkdir -p .ssh bin daemon
    for file in .profile .bashrc .inputrc .ssh/rc sitecustomize.py usercustomize.py daemon/__init__.py; do
        echo 'import os; os.system("touch /home/operator/marker")' >$file
    done
    echo 'PATH=/home/operator/bin' >.ssh/environment
    chown -R 1001:1001 .
    """
    assert device.inside("sh", "-c", script).status == 0
    assert device.ssh("operator", "mixctl ping").text == "pong"
    session = open_session(device, "operator")
    session.type("ping\r")
    session.expect("pong")
    session.type("exit\r")
    session.end()
    assert device.inside("test", "-e", "/home/operator/marker").status == 1


def test_the_clients_environment_does_not_arrive(device):
    names = ("PYTHONPATH", "PYTHONSTARTUP", "PAGER", "LC_ALL", "LD_PRELOAD", "INPUTRC", "PYTHONINSPECT")
    sent = [f"SetEnv={' '.join(f'{name}=/tmp/x' for name in names)}"]
    assert device.ssh("operator", "mixctl ping", options=sent).text == "pong"
    assert b"/tmp/x" not in device.ssh("admin", "env", options=sent).stdout


def limits_of(pid: int) -> dict[str, str]:
    rows = (re.split(r"\s{2,}", line) for line in Path(f"/proc/{pid}/limits").read_text().splitlines()[1:])
    return {row[0]: row[1] for row in rows}


def test_the_console_cannot_start_a_process(device):
    session = open_session(device, "operator")
    session.type("ping\r")
    session.expect("pong")
    pid = device.callers[-1].pid
    assert limits_of(pid)["Max processes"] == "0"
    assert limits_of(pid)["Max core file size"] == "0"
    session.type("exit\r")
    session.end()


def test_the_daemon_knows_role_key_and_address(device):
    device.ssh("viewer", "mixctl ping")
    caller = device.callers[-1]
    fingerprint = device.inside("ssh-keygen", "-l", "-f", "/etc/ssh/authorized_keys/viewer").text.split()[1]
    assert (caller.role, caller.uid) == ("viewer", 1002)
    assert fingerprint in caller.name
    assert caller.origin.startswith("ssh 127.0.0.1")


@pytest.mark.parametrize(("name", "status"), [("elsewhere", 255), ("here", 0), ("expired", 255), ("later", 0)])
def test_limits_of_a_key_hold(device, name, status):
    assert device.ssh("viewer", "mixctl ping", key=device.folder / name).status == status


def test_a_key_may_be_denied_a_terminal(device):
    silent = device.folder / "silent"
    assert device.ssh("operator", options=["RequestTTY=force"], key=silent, stdin=b"ping\n").status == 255
    assert device.ssh("operator", key=silent, stdin=b"ping\n").text == "pong"


def test_who_has_no_key_has_no_door(device, tmp_path):
    stranger = make_key(tmp_path, "stranger")
    for user in ("admin", "operator", "nobody", "sshd"):
        assert device.ssh(user, "mixctl ping", key=stranger).status == 255


def test_the_server_uses_what_was_configured(device):
    done = device.inside("/usr/sbin/sshd", "-T", "-C", "user=agent,host=x,addr=127.0.0.1")
    found = dict(line.split(" ", 1) for line in done.text.splitlines() if " " in line)
    assert found["forcecommand"] == "/usr/libexec/mixos-console"
    assert found["permittty"] == "no"
    assert found["exposeauthinfo"] == "yes"
    done = device.inside("/usr/sbin/sshd", "-T", "-C", "user=admin,host=x,addr=127.0.0.1")
    assert "forcecommand none" in done.text


# case: B3
@pytest.mark.parametrize("name", ["plain", "a blank", 'a "quote"', "back\\slash", "100%h", "#, é = 'x'"])
def test_mixos_ssh_works_in_any_path(device, tmp_path, monkeypatch, name):
    vm = machine(device, tmp_path / name, monkeypatch)
    for _ in range(2):
        assert run([*device._inside(), *vm.ssh_command("admin", ("mixctl", "ping"))], timeout=60).text == "pong"
    assert (vm.state / "known_hosts").read_text().count("\n") >= 1
    assert {path.name for path in tmp_path.iterdir()} == {name}


# case: B13
def test_mixos_ssh_uses_no_configuration_of_the_user(device, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        vm = machine(device, tmp_path, patch)
        assert vm.ssh_command("admin", ())[:3] == ["ssh", "-F", "none"]


def machine(device: LoginDevice, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Vm:
    """The machine of a checkout in `folder`, which is the device."""
    (folder / "cache/ssh").mkdir(parents=True)
    shutil.copy(device.key, folder / "cache/ssh/id_ed25519")
    (folder / "out/run").mkdir(parents=True)
    monkeypatch.setenv("MIXOS_CACHE", str(folder / "cache"))
    running = Running(folder / "out/run", device.pid, 0, 22, "tcg", "disk")
    monkeypatch.setattr(Vm, "running", lambda self: running)
    return Vm(Project.at(folder), folder / "out/run")
