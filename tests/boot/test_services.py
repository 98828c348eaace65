"""What runs, that it comes back when it dies, and that the log does not grow for ever."""

from __future__ import annotations

import pytest

from tests.boot.guest import Guest, pids, wait_until

RESPAWN_SECONDS = 120.0


@pytest.mark.parametrize("name", ["sshd", "mixosd", "network", "console", "syslogd", "klogd", "watchdog"])
def test_service_runs_once(guest: Guest, name: str) -> None:
    assert len(pids(guest, name)) == 1


def test_the_dhcp_client_runs(guest: Guest) -> None:
    assert guest.run("pidof udhcpc").split()


@pytest.mark.parametrize("signal", ["KILL", "SEGV"])
def test_the_daemon_comes_back(guest: Guest, signal: str) -> None:
    (old,) = pids(guest, "mixosd")
    guest.run(f"kill -{signal} {old}")
    assert wait_until(lambda: guest.attempt("mixctl ping").status == 0, RESPAWN_SECONDS)
    (new,) = pids(guest, "mixosd")
    assert new != old
    assert guest.status()["hardening"]["verity"] == "verified"


def test_the_ssh_server_comes_back(guest: Guest) -> None:
    (old,) = pids(guest, "sshd")
    guest.run(f"kill -KILL {old}")
    guest.hang_up()  # the next command needs a new connection
    assert wait_until(lambda: guest.attempt("true").status == 0, RESPAWN_SECONDS)
    assert pids(guest, "sshd") != {old}


def test_a_second_daemon_gives_way(guest: Guest) -> None:
    assert guest.attempt("/usr/bin/mixosd").status == 12
    assert guest.run("mixctl ping") == "pong"


def test_log_has_kernel_daemon_and_logins(guest: Guest) -> None:
    text = guest.run("cat /var/log/messages*")
    assert "Linux version" in text
    assert "mixosd" in text
    assert "Accepted publickey for root" in text
    assert guest.run("stat -c %a /var/log/messages")[-1] == "0"


def test_log_is_rotated_and_bounded(guest: Guest) -> None:
    lines = "".join(f"line {number} {'x' * 180}\n" for number in range(3500)).encode()
    guest.run("logger -t rotation", stdin=lines)
    assert wait_until(lambda: guest.attempt("test -s /var/log/messages.0").status == 0, RESPAWN_SECONDS)
    assert int(guest.run("stat -c %s /var/log/messages")) <= 520 << 10
    assert "rotation: line 3499" in guest.run("tail -n 50 /var/log/messages")
