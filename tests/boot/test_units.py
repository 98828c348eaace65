"""What units are made of, on a device: sockets, kept descriptors, timers, the clock, the proxy in the environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.boot.guest import Guest, wait_until

SECONDS = 90.0
PORT = 7070

# Counts connections across its own deaths: the count lives in a memory file that the shim keeps (FDSTORE=1).
SERVER = r"""
import os, socket
names = os.environ["LISTEN_FDNAMES"].split(":")
at = {name: 3 + number for number, name in enumerate(names)}
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
server = socket.socket(fileno=at["door"])
if "count" in at:
    count = at["count"]
else:
    count = os.memfd_create("count")
    socket.send_fds(notify, [b"FDSTORE=1\nFDNAME=count"], [count])
notify.send(b"READY=1")
while True:
    one, _ = server.accept()
    seen = int(os.pread(count, 20, 0) or b"0") + 1
    os.pwrite(count, b"%d" % seen, 0)
    one.sendall(b"%d of %d\n" % (seen, os.getpid()))
    one.close()
"""
DOOR = f"""
[unit]
description = "starts with its first visitor"
[service]
command = ["/usr/bin/python3", "-I", "/etc/door.py"]
type = "notify"
restart = "always"
[[socket]]
name = "door"
tcp = "127.0.0.1:{PORT}"
"""
ASK = f"""python3 -Ic "import socket; print(socket.create_connection(('127.0.0.1', {PORT}), 60).makefile().read())" """


def mixctl(guest: Guest, words: str) -> Any:
    return json.loads(guest.run(f"mixctl {words} --json"))


def shown(guest: Guest, name: str) -> dict[str, Any]:
    found: dict[str, Any] = mixctl(guest, f"service show {name}")
    return found


Install = Callable[[str, str], None]


@pytest.fixture
def install(guest: Guest) -> Iterator[Install]:
    """Units that are gone again afterwards."""
    names = []

    def install(name: str, text: str) -> None:
        names.append(name)
        guest.run(f"mixctl config put units/{name}.toml", "admin", stdin=text.encode())

    yield install
    for name in names:
        guest.run(f"mixctl config remove units/{name}.toml", "admin")


def ask(guest: Guest) -> tuple[int, int]:
    """Visit the door: how many came so far, and the process that says so."""
    count, _, pid = guest.run(ASK).split()
    return int(count), int(pid)


def test_a_socket_and_what_the_service_keeps_outlive_service_and_daemon(guest: Guest, install: Install) -> None:
    guest.run("cat >/etc/door.py", stdin=SERVER.encode())
    install("door", DOOR)
    mixctl(guest, "service start door")
    assert shown(guest, "door")["state"] == "listening"
    count, first = ask(guest)
    assert count == 1
    assert shown(guest, "door")["pid"] == first

    guest.run(f"kill -KILL {first}")
    count, second = ask(guest)
    assert (count, second != first) == (2, True)

    guest.run("kill -KILL $(head -n 1 /run/mixos/mixosd.lock)")
    assert ask(guest) == (3, second)
    assert wait_until(lambda: guest.attempt("mixctl ping").status == 0, SECONDS)
    assert shown(guest, "door")["pid"] == second

    guest.run(f"kill -KILL {second}")
    count, third = ask(guest)
    assert (count, third != second) == (4, True)
    mixctl(guest, "service stop door")
    assert guest.attempt(ASK).status != 0
    guest.run("rm /etc/door.py")


def test_a_timer_runs_its_job_again_and_again(guest: Guest, install: Install) -> None:
    install(
        "tick", '[service]\ntype = "oneshot"\ncommand = ["/bin/echo", "tick"]\n[timer]\nevery = "2s"\non-boot = "1s"\n'
    )
    mixctl(guest, "service start tick")
    assert wait_until(lambda: guest.run("mixctl service logs tick").count("tick") >= 3, SECONDS)
    assert all(end["code"] == 0 for end in shown(guest, "tick")["ends"])


def test_a_calendar_follows_the_clock_when_it_is_set(guest: Guest, install: Install) -> None:
    """Forward over the hour: one run. Back over it by a minute, and on again: no second one."""
    install(
        "dawn", '[service]\ntype = "oneshot"\ncommand = ["/bin/echo", "dawn"]\n[timer]\ncalendar = "daily at 04:00"\n'
    )
    mixctl(guest, "service stop ntp")
    today = guest.run("date +%Y-%m-%d").strip()
    try:
        guest.run(f"date -s '{today} 03:59:30'")
        mixctl(guest, "service start dawn")
        assert shown(guest, "dawn")["state"] == "scheduled"
        guest.run(f"date -s '{today} 04:00:30'")
        assert wait_until(lambda: len(shown(guest, "dawn")["ends"]) == 1, SECONDS)
        guest.run(f"date -s '{today} 03:59:50'")
        assert wait_until(lambda: guest.run("date +%H:%M:%S") > "04:00:35", SECONDS)
        assert len(shown(guest, "dawn")["ends"]) == 1
    finally:
        guest.run("hwclock -s -u")
        mixctl(guest, "service start ntp")


def test_the_proxy_reaches_the_environment_of_services(guest: Guest, install: Install) -> None:
    install("env", '[service]\ntype = "oneshot"\ncommand = ["/bin/sh", "-c", "echo [$HTTPS_PROXY] [$no_proxy]"]\n')
    guest.run("mixctl proxy set http://proxy.example.org:3128 --no-proxy 192.0.2.0/24")
    mixctl(guest, "service start env")
    said = guest.run("mixctl service logs env")
    assert "[http://proxy.example.org:3128]" in said
    assert "192.0.2.0/24" in said
    guest.run("mixctl proxy clear")
    mixctl(guest, "service restart env")
    assert [line for line in guest.lines("mixctl service logs env") if line.endswith("[] []")]


def test_a_check_runs_as_its_service_and_within_its_limits(guest: Guest, install: Install) -> None:
    """The mark is written by the check: it belongs to the unit's user, and its group is below the unit's."""
    check = 'cat /proc/self/cgroup >"$STATE_DIRECTORY/mark"; id -un >>"$STATE_DIRECTORY/mark"'
    service = "command = ['/bin/sleep', '1000']\nuser = 'nobody'\nstate-directory = 'web'\n"
    health = f"[health]\nexec = ['/bin/sh', '-c', '''{check}''']\nevery = '1s'\n"
    install("web", f"[service]\n{service}{health}[limits]\npids = 20\n")
    mixctl(guest, "service start web")
    assert wait_until(lambda: guest.attempt("grep -q nobody /var/lib/web/mark").status == 0, SECONDS)
    assert guest.lines("cat /var/lib/web/mark") == ["0::/mixos/web/check", "nobody"]
    assert shown(guest, "web")["state"] == "running"


def test_a_strict_sandbox_sees_the_limits_of_its_unit(guest: Guest, install: Install) -> None:
    """A profile that demands enforced limits, met by the unit's own group; the host's name is the device's."""
    limits = "[limits]\nmemory = '64M'\npids = 16\n"
    install("strict", f"[service]\ncommand = ['/bin/sleep', '1000']\nsandbox = 'strict'\n{limits}")
    install("named", f"[service]\ncommand = ['/bin/hostname']\ntype = 'oneshot'\nsandbox = 'service'\n{limits}")
    mixctl(guest, "service start strict named")
    assert shown(guest, "strict")["state"] == "running"
    assert [line for line in guest.lines("mixctl service logs named") if line.endswith(" mixos")]


def test_one_that_never_gets_ready_says_so(guest: Guest, install: Install) -> None:
    install(
        "mute",
        '[service]\ncommand = ["/bin/sleep", "1000"]\ntype = "notify"\nstart-timeout = "2s"\nrestart = "no"\n',
    )
    assert guest.attempt("mixctl service start mute").status != 0
    facts = shown(guest, "mute")
    assert facts["state"] == "failed"
    assert "ready" in facts["reason"]


def test_one_that_goes_into_the_background_is_told_not_to(guest: Guest, install: Install) -> None:
    install("daemonize", '[service]\ncommand = ["/bin/sh", "-c", "setsid sleep 1000 & exit 0"]\nrestart = "no"\n')
    guest.attempt("mixctl service start daemonize")
    assert wait_until(lambda: shown(guest, "daemonize")["state"] in {"failed", "done"}, SECONDS)
    assert guest.run("cat /sys/fs/cgroup/mixos/daemonize/cgroup.procs 2>/dev/null || true") == ""


# case: H15
def test_a_full_run_keeps_no_unit_from_starting(guest: Guest, install: Install) -> None:
    install("late", "[service]\ncommand = ['/bin/sleep', '1000']\n")
    try:
        assert guest.attempt("cat /dev/zero >/run/full").status != 0
        mixctl(guest, "service start late")
        assert shown(guest, "late")["state"] == "running"
        mixctl(guest, "service stop late")
    finally:
        guest.run("rm -f /run/full")
