"""Status from a sample tree, device-mapper answers, and mixctl's output and exit codes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from buildsys.run import run
from common.errors import UnreachableError
from daemon.client import connection as client
from daemon.client import mixctl, show
from daemon.core.change.record import Record, boot_id, boottime
from daemon.core.part import Context
from daemon.linux import dm, facts, mounts
from daemon.parts.change.part import Change
from tests.hostpackages import ROOT

SAMPLE = {
    "usr/lib/mixos/release": "# facts\nMIXOS_VERSION=1.2.3\nMIXOS_EPOCH=1\n",
    "proc/sys/kernel/hostname": "box\n",
    "proc/sys/kernel/osrelease": "6.6.8\n",
    "proc/uptime": "93784.5 1.0\n",
    "proc/loadavg": "0.10 0.20 0.30 1/2 3\n",
    "proc/meminfo": "MemTotal: 1024 kB\nMemFree: 1 kB\nMemAvailable: 512 kB\n",
    "proc/self/status": "Name: x\nVmRSS:\t  20 kB\n",
    "proc/self/mounts": "/dev/vda6 /data ext4 rw 0 0\n",
    "proc/net/if_inet6": "fe800000000000000000000000000001 02 40 20 80 eth0\n",
    "sys/block/dm-0/slaves/vda4/uevent": "DEVNAME=vda4\nPARTNAME=mixos-root-b\n",
    "sys/block/dm-0/slaves/vda5/uevent": "DEVNAME=vda5\nPARTNAME=mixos-verity-b\n",
    "sys/class/net/eth0/device/x": "",
    "sys/class/net/eth0/address": "52:54:00:00:00:01\n",
    "sys/class/net/eth0/operstate": "up\n",
    "sys/class/net/lo/operstate": "unknown\n",
    "sys/kernel/security/lockdown": "none integrity [confidentiality]\n",
    "sys/kernel/security/lsm": "lockdown,capability,yama\n",
    "run/mixos/apparmor": "loaded mixosd sshd\nfailed nft\n",
    "run/mixos/sysctl": "missing a.b c.d\nrefused\n",
    "run/mixos/boot-times": "1.5 10-mounts.sh\n2.25 20-sysctl.sh\n",
    "run/mixos/preseed.json": '{"state":"rejected","error":"f:1: bad"}',
    "etc/ssh/ssh_host_ed25519_key.fingerprint": "256 SHA256:abc root@box (ED25519)\n",
    "data/x": "",
}


@pytest.mark.parametrize("text", ["5", "[1]", '"x"', "{", "[" * 100_000])
def test_a_damaged_word_about_the_preseed(tmp_path, text):
    (tmp_path / "run/mixos").mkdir(parents=True)
    (tmp_path / "run/mixos/preseed.json").write_text(text)
    assert facts.preseed(tmp_path) == {"state": "unknown"}


def test_names_of_mounts_have_any_characters(tmp_path):
    """Of what Python divides lines and words at, the kernel escapes blank, tab and newline (proc_pid_mounts(5))."""
    odd = "odd\x85\u2028\xa0\x1cname"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "proc/self/mounts").write_text(f"{odd} /mnt tmpfs rw 0 0\n/dev/vda6 /data ext4 rw 0 0\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        f"36 35 0:9 / /{odd} rw - tmpfs {odd} rw\n37 35 254:6 / /data rw - ext4 /dev/vda6 rw\n"
    )
    assert facts.data(tmp_path)["device"] == "/dev/vda6"
    assert [(one.point, one.source) for one in mounts.mounts(tmp_path)] == [(f"/{odd}", odd), ("/data", "/dev/vda6")]


@pytest.fixture
def root(tmp_path):
    for path, content in SAMPLE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    return tmp_path


def test_status_of_a_device(root):
    status = facts.status(root)
    assert status["version"] == "1.2.3"
    assert status["slot"] == "b"
    assert status["memory"] == {"total": 1 << 20, "available": 1 << 19, "daemon": 20 << 10}
    assert status["data"]["persistent"] is True
    assert [row["name"] for row in status["network"]] == ["eth0"]
    assert "fe80::1" in status["network"][0]["addresses"]
    assert status["ssh_fingerprint"] == "SHA256:abc"
    assert status["hardening"]["lockdown"] == "confidentiality"
    assert status["hardening"]["apparmor_loaded"] == ["mixosd", "sshd"]
    assert status["hardening"]["apparmor_refused"] == ["nft"]
    assert status["hardening"]["sysctl_missing"] == ["a.b", "c.d"]
    assert status["boot_times"] == {"10-mounts.sh": 1.5, "20-sysctl.sh": 2.25}
    assert json.loads(json.dumps(status)) == status


def test_status_of_an_empty_tree(tmp_path):
    status = facts.status(tmp_path)
    assert status["slot"] is None
    assert status["data"] == {"persistent": None}
    assert show.table(status)


def test_one_screen_tells_what_needs_attention(root, tmp_path):
    """Every part as it really tells its status; a value with a newline cannot make a line of its own."""
    up = {"state": "running", "error": None}
    tried = Change(Context(run=tmp_path))
    one = Record("00000007", "trial", "ada", "local", "vpn init wg0", boot_id(), deadline=boottime() + 40)
    tried.changes.waiting = {one.number: one, "00000008": replace(one, number="00000008", state="undoing")}
    finding = {"check": "space", "state": "warning", "text": "only 5% of /data is free"}
    parts = {
        "service": {**up, "units": {"running": 4, "failed": 1}, "failed": ["hello"], "unhealthy": [], "broken": []},
        "metrics": {**up, "health": {"state": "warning", "findings": [finding]}},
        "change": {**up, **tried.status()},
        "agents": {**up, "approvals": 2},
        "vpn": {"state": "failed", "error": "x\ny: z"},
    }
    lines = show.table({**facts.status(root), "parts": parts}).splitlines()
    rows = {line[:14].strip(): line[14:] for line in lines}
    assert rows["health"] == "warning: only 5% of /data is free"
    assert rows["services"] == "4 running, 1 failed"
    assert rows["failed"] == "hello"
    assert rows["approvals"].startswith("2 approvals; ")
    assert "vpn init wg0, 40 s more" in rows["approvals"]
    assert "being undone" in rows["approvals"]
    assert rows["NOT RUNNING"] == "vpn: x\\ny: z"
    assert {"slot", "load", "memory", "data", "eth0"} <= rows.keys()
    assert len(lines) <= 23
    process = {"state": "waiting", "pid": None, "restarts": 7, "problem": "signal-9", "not-enforced": []}
    (text,) = show.not_running({"mdns": {**up, "process": process}, "metrics": {**up, "process": None}})
    assert text.startswith("mdns: ")
    assert "signal-9" in text
    for state in ("running", "off"):
        assert show.not_running({"mdns": {**up, "process": {**process, "state": state}}}) == []
    quiet = {line[:14].strip(): line[14:] for line in show.table(facts.status(root)).splitlines()}
    assert (quiet["health"], quiet["services"], quiet["approvals"]) == ("-", "-", "none")


def answer(kind: bytes, parameters: bytes, targets: int = 1) -> bytes:
    header = dm._HEADER.pack(4, 0, 0, 16384, 312, targets, 0, 0, 0, 0, b"", b"")
    return header + dm._TARGET.pack(0, 8, 0, 0, kind) + parameters + bytes(64)


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (answer(b"verity", b"V\0"), "verified"),
        (answer(b"verity", b"C -\0"), "corrupted"),
        (answer(b"verity", b"\0"), None),
        (answer(b"linear", b"\0"), None),
        (answer(b"verity", b"V\0", targets=2), None),
    ],
)
def test_verity_state(data, state):
    assert dm.decode_status(data) == state


def test_no_device_mapper(tmp_path):
    assert dm.verity_state(str(tmp_path / "none")) is None


@pytest.fixture
def answered(root, monkeypatch):
    found = {"status": facts.status(root), "ping": "pong"}  # once: the free space changes
    monkeypatch.setattr(client, "call", lambda method, params, patience: found[method])


def test_mixctl_status(answered, capsys):
    assert mixctl.main(["status"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["slot"] == "b"
    assert lines["up"] == "1 d 2 h"
    assert mixctl.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slot"] == "b"
    assert mixctl.main(["ping"]) == 0


@pytest.mark.parametrize("argv", [["status"], ["status", "--json"], ["ping"]])
def test_both_ways_print_the_same(answered, monkeypatch, capsys, argv):
    assert mixctl.main(argv) == 0
    plain = capsys.readouterr().out
    monkeypatch.setattr(mixctl, "_PLAIN", {})
    assert mixctl.main(argv) == 0
    assert capsys.readouterr().out == plain


@pytest.mark.parametrize("argv", [["statsu"], ["status", "--jsn"], ["completion", "ksh"]])
def test_mixctl_usage(argv, capsys):
    assert mixctl.main(argv) == 2


@pytest.mark.parametrize("argv", [["--help"], ["status", "--help"], ["--version"], ["completion", "bash"]])
def test_mixctl_help(argv, capsys):
    assert mixctl.main(argv) == 0
    assert capsys.readouterr().out


def test_a_wrong_command_line_is_an_object_when_json_is_wanted(capsys):
    assert mixctl.main(["status", "--jsn", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)
    assert (error["reason"], error["exit_code"]) == ("usage", 2)
    assert mixctl.main(["sandbox", "run", "--nonsense", "--", "tool", "--json"]) == 2
    with pytest.raises(ValueError):
        json.loads(capsys.readouterr().err)


@pytest.mark.parametrize("plain", [mixctl._PLAIN, {}])
def test_ctrl_c_is_no_traceback(monkeypatch, plain):
    def interrupted(method, params, patience):
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "call", interrupted)
    monkeypatch.setattr(mixctl, "_PLAIN", plain)
    assert mixctl.main(["ping"]) == 130


@pytest.mark.parametrize("plain", ["mixctl._PLAIN", "{}"])
def test_a_reader_that_went_away_has_its_own_exit_code(plain):
    program = f"""
import os, sys
from daemon.client import connection, mixctl
connection.call = lambda *given, **options: "x" * 200_000
mixctl._PLAIN = {plain}
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
sys.exit(mixctl.main(["ping"]))
"""
    assert run([sys.executable, "-c", program], cwd=ROOT, split=True, allow=(141,)).stderr == b""


def test_a_shell_asks_for_completions(monkeypatch, capsys):
    monkeypatch.setenv("_MIXCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "mixctl stat")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert mixctl.main([]) == 0
    assert capsys.readouterr().out == "plain,status\n"


def test_mixctl_without_daemon(monkeypatch, capsys):
    def gone(method, params, patience):
        raise UnreachableError("no", reason="daemon-unreachable", hint="h")

    monkeypatch.setattr(client, "call", gone)
    assert mixctl.main(["status"]) == 10
    assert mixctl.main(["status", "--json"]) == 10
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["reason"] == "daemon-unreachable"
