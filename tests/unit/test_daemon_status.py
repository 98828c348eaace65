"""Status from a sample tree, device-mapper answers, and mixctl's output and exit codes."""

from __future__ import annotations

import json

import pytest

from daemon import client, dm, facts, mixctl, show
from daemon.errors import UnreachableError

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
    "run/mixos/sysctl": "missing a.b c.d\nrefused\n",
    "run/mixos/boot-times": "1.5 10-mounts.sh\n2.25 20-sysctl.sh\n",
    "run/mixos/preseed.json": '{"state":"rejected","error":"f:1: bad"}',
    "etc/ssh/ssh_host_ed25519_key.fingerprint": "256 SHA256:abc root@box (ED25519)\n",
    "data/x": "",
}


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
    assert status["hardening"]["sysctl_missing"] == ["a.b", "c.d"]
    assert status["boot_times"] == {"10-mounts.sh": 1.5, "20-sysctl.sh": 2.25}
    assert json.loads(json.dumps(status)) == status


def test_status_of_an_empty_tree(tmp_path):
    status = facts.status(tmp_path)
    assert status["slot"] is None
    assert status["data"] == {"persistent": False}
    assert show.table(status)


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
    monkeypatch.setattr(
        client, "call", lambda method, params, patience: facts.status(root) if method == "status" else "pong"
    )


def test_mixctl_status(answered, capsys):
    assert mixctl.main(["status"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["slot"] == "b"
    assert lines["up"] == "1 d 02:03:04"
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


def test_mixctl_without_daemon(monkeypatch, capsys):
    def gone(method, params, patience):
        raise UnreachableError("no", reason="daemon-unreachable", hint="h")

    monkeypatch.setattr(client, "call", gone)
    assert mixctl.main(["status"]) == 10
    assert mixctl.main(["status", "--json"]) == 10
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["reason"] == "daemon-unreachable"
