"""`mixos update`: the end that has the bundle, with a device at the far end of SSH that says what devices say."""

import json
import sys
import textwrap

import pytest

from buildsys import update
from buildsys.cli.main import main
from common.errors import MixosError, UnreachableError, UsageError
from tests.hostpackages import ROOT

FAR = """
import json, sys
sys.path.insert(0, {root!r})
from common.bundle.ranges import Ranges
def say(**values):
    sys.stderr.write(json.dumps(values) + "\\n")
    sys.stderr.flush()
words = sys.argv[sys.argv.index("--") + 1:]
"""


@pytest.fixture
def device(tmp_path, monkeypatch):
    """Makes an `ssh` of what the device does; gives the command, with the host."""
    monkeypatch.setattr(update, "_POLL", 0.01)

    def make(does):
        path = tmp_path / "ssh"
        path.write_text(f"#!{sys.executable}\n{FAR.format(root=str(ROOT))}{textwrap.dedent(does)}")
        path.chmod(0o755)
        return update.command(str(path), "device")

    return make


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "mixos-1.1.0.mixb"
    path.write_bytes(bytes(range(256)) * 10_000)
    return path


TAKES = """
ranges = Ranges(0, 1)
assert words[:4] == ["mixctl", "update", "stage", "-"], words
assert ranges.read(48, 300) == (bytes(range(256)) * 3)[48:348]
say(version="1.1.0", slot=None, step="root", done=1, of=2, fetched=300, transfer=400)
sys.stderr.write("a banner of the server\\n")
assert len(ranges.read(0, 2_560_000)) == 2_560_000
say(version="1.1.0", slot="b", step="staged", done=1, of=1, fetched=0, transfer=400)
"""


def test_the_device_has_what_it_asks_for(device, bundle):
    steps = []
    staged = update.stage(device(TAKES), bundle, again=False, step=steps.append)
    assert (staged["version"], staged["slot"]) == ("1.1.0", "b")
    assert [one.get("step") for one in steps] == ["root", None, "staged"]
    assert steps[1] == {"words": "a banner of the server"}


def test_again_is_passed_on(device, bundle):
    does = f'assert "--again" in words\n{textwrap.dedent(TAKES)}'
    assert update.stage(device(does), bundle, again=True, step=lambda step: None)["step"] == "staged"


REFUSED = {"error": "it is too old", "reason": "release-downgrade", "hint": "take another", "exit_code": 12}


def test_why_the_device_refuses_is_told(device, bundle):
    ssh = device(f"say(**{REFUSED!r})\nsys.exit(12)")
    with pytest.raises(MixosError) as caught:
        update.stage(ssh, bundle, again=False, step=lambda step: None)
    assert (caught.value.message, caught.value.reason, caught.value.exit_code) == (
        "it is too old",
        "release-downgrade",
        12,
    )


@pytest.mark.parametrize("does", ["sys.exit(255)", "sys.stderr.write('No route to host\\n')\nsys.exit(255)", "pass"])
def test_a_device_that_cannot_be_reached(device, bundle, does):
    with pytest.raises(UnreachableError) as caught:
        update.stage(device(does), bundle, again=False, step=lambda step: None)
    assert caught.value.reason == "update-ssh"


# As OpenSSH 9.2 says it, with the ends of lines that it has.
CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r
Host key for [127.0.0.1]:49659 has changed and you have requested strict checking.\r
Host key verification failed.\r
"""
KNOWN = {
    "update-host-changed": CHANGED,
    "update-host-unknown": "Host key verification failed.\r\n",
    "update-login": "a banner\r\nadmin@127.0.0.1: Permission denied (publickey,keyboard-interactive).\r\n",
}
MANY = "Received disconnect from ::1 port 22:2: Too many authentication failures\r\nDisconnected from ::1 port 22\r\n"


@pytest.mark.parametrize(("reason", "words"), [*KNOWN.items(), ("update-login", MANY)])
def test_why_ssh_is_not_let_in(device, bundle, reason, words):
    ssh = device(f"sys.stderr.write({words!r})\nsys.exit(255)")
    for call in (
        lambda: update.stage(ssh, bundle, again=False, step=lambda step: None),
        lambda: update.ask(ssh, "update", "apply"),
    ):
        with pytest.raises(UnreachableError) as caught:
            call()
        assert (caught.value.reason, caught.value.retryable, bool(caught.value.hint)) == (reason, False, True)


@pytest.mark.parametrize(
    ("does", "status"),
    [
        ("sys.stderr.write('client_loop: send disconnect: Broken pipe\\r\\n')", 255),
        ("sys.stderr.write('kex_exchange_identification: Connection closed by remote host\\r\\n')", 255),
        ("sys.stderr.write('cp: Permission denied (publickey).\\n')", 1),
        (
            "say(version='1', slot=None, step='root', done=1, of=2, fetched=3)\n"
            "sys.stderr.write('Host key verification failed.\\r\\n')",
            255,
        ),
    ],
)
def test_what_breaks_later_or_says_something_else_may_be_tried_again(device, bundle, does, status):
    with pytest.raises(UnreachableError) as caught:
        update.stage(device(f"{does}\nsys.exit({status})"), bundle, again=False, step=lambda step: None)
    assert (caught.value.reason, caught.value.retryable) == ("update-ssh", True)


def test_a_device_that_asks_for_nonsense(device, bundle):
    with pytest.raises(MixosError) as caught:
        update.stage(device("sys.stdout.write('Welcome to the device' * 10)"), bundle, False, lambda step: None)
    assert caught.value.reason in {"source-protocol", "update-ssh"}


def test_what_ssh_said_last_is_told(device, bundle):
    does = "sys.stderr.write('a banner\\nNo route to host\\n')\nsys.exit(255)"
    with pytest.raises(UnreachableError) as caught:
        update.stage(device(does), bundle, again=False, step=lambda step: None)
    assert caught.value.message.endswith("No route to host")


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch /tmp/no", "--"])
def test_what_is_no_host(host):
    with pytest.raises(UsageError) as caught:
        update.command("ssh", host)
    assert caught.value.reason == "update-host"


@pytest.mark.parametrize(
    ("program", "reason"), [("", "update-program"), ("ssh '", "update-program"), ("no-such-ssh -v", "tool-missing")]
)
def test_what_is_no_program(program, reason):
    with pytest.raises(MixosError) as caught:
        update.command(program, "device")
    assert caught.value.reason == reason


STATUS = """
import pathlib
state = pathlib.Path({state!r})
answers = json.loads(state.read_text())
answer = answers.pop(0) if len(answers) > 1 else answers[0]
state.write_text(json.dumps(answers))
if answer is None:
    sys.exit(255)
if isinstance(answer, str):
    sys.stderr.write(answer)
    sys.exit(255)
print(json.dumps(answer))
"""


def waiting(device, tmp_path, *answers):
    """Wait for 1.1.0, with a device that gives these answers one after the other, the last one again and again."""
    (tmp_path / "answers").write_text(json.dumps(answers))
    told = []
    ssh = device(STATUS.format(state=str(tmp_path / "answers")))
    return lambda seconds=20.0: update.wait(ssh, "1.1.0", seconds, told.append), told


OLD, TRIAL, GOOD = ({"version": version, "state": state} for version, state in [
    ("1.0.0", "good"), ("1.1.0", "trial"), ("1.1.0", "good")])  # fmt: skip


def test_it_waits_until_the_version_is_good(device, tmp_path):
    wait, told = waiting(device, tmp_path, OLD, None, {**TRIAL, "problem": "web is starting"}, TRIAL, GOOD)
    assert wait()["state"] == "good"
    assert told == [
        "1.0.0: good",
        "restarting",
        "1.1.0: trial, waits for: web is starting",
        "1.1.0: trial",
        "1.1.0: good",
    ]


def test_a_device_that_is_another_one_after_the_restart_is_told_and_waited_for(device, tmp_path):
    wait, told = waiting(device, tmp_path, None, CHANGED, GOOD)
    assert wait()["state"] == "good"
    assert told[0] == "restarting"
    assert "host key" in told[1]


def test_a_device_that_fell_back_says_why(device, tmp_path):
    wait, _ = waiting(device, tmp_path, None, {**OLD, "blocked": {"1.1.0": "after 3 starts: kernel panic"}})
    with pytest.raises(MixosError) as caught:
        wait()
    assert caught.value.reason == "update-fell-back"
    assert "kernel panic" in caught.value.message


def test_it_does_not_wait_for_ever(device, tmp_path):
    wait, _ = waiting(device, tmp_path, TRIAL)
    with pytest.raises(MixosError) as caught:
        wait(0.5)
    assert (caught.value.reason, caught.value.retryable) == ("update-not-good", True)


def test_a_device_that_is_silent_is_left(device):
    with pytest.raises(UnreachableError):
        update.ask(device("import time\ntime.sleep(600)"), "update", "status", seconds=0.5)


@pytest.mark.parametrize(
    "does", ["sys.stdout.write('x' * (9 << 20))", "sys.stderr.write('x' * (9 << 20))\nsys.exit(3)"]
)
def test_a_device_that_says_too_much_is_not_believed(device, does):
    with pytest.raises(MixosError) as caught:
        update.ask(device(does), "update", "status", seconds=30)
    assert len(caught.value.message) < 1000


HOSTILE = """
say(step=1, done="x")
say(version="\\x1b[2J", slot=["b"], step="root", done=1, of=2, fetched=3)
sys.stderr.write("y" * 100_000 + "\\n")
say(version="\\x1b[2J", slot="\\x1b]0;", step="staged", done=1, of=1, fetched=0)
"""


def test_what_a_device_says_has_its_form_and_cannot_steer_a_terminal(device, bundle):
    steps = []
    staged = update.stage(device(HOSTILE), bundle, again=False, step=steps.append)
    assert not any("\x1b" in str(value) for one in (staged, *steps) for value in one.values())
    assert [one["step"] for one in steps if "words" not in one] == ["root", "staged"]
    assert all(len(one["words"]) <= 500 for one in steps if "words" in one)


def test_a_state_has_its_form_and_cannot_steer_a_terminal(device, tmp_path):
    odd = {"version": "\x1b[2J", "state": ["x"], "problem": "\x1b", "blocked": 5}
    wait, told = waiting(device, tmp_path, odd, None, odd)
    with pytest.raises(MixosError) as caught:
        wait()
    assert caught.value.reason == "update-fell-back"
    assert "\x1b" not in "".join([*told, caught.value.message])


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["device", "nothing.mixb"], 2, "no-bundle"),
        (["./nothing.img"], 2, "no-bundle"),
        (["device", str(ROOT / "README.md")], 8, "bundle-magic"),
        ([str(ROOT / "README.md")], 8, "bundle-magic"),
    ],
)
def test_what_is_no_bundle_is_told_before_anybody_is_asked(monkeypatch, capsys, words, code, reason):
    monkeypatch.setattr(sys, "argv", ["mixos", "-C", str(ROOT), "update", *words, "--ssh", "false", "--json"])
    with pytest.raises(SystemExit) as caught:
        sys.exit(main())
    found = json.loads(capsys.readouterr().out)
    assert (caught.value.code, found["reason"]) == (code, reason)
    assert words[-1].removeprefix("./") in found["error"]
