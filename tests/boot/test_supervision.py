"""Services on the device: limits that the kernel enforces, and a daemon whose death costs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.boot.guest import Guest, wait_until

CHECKS = Path(__file__).parents[1] / "supervise_guest.py"
HELLO = """
[unit]
description = "says hello"
after = ["network"]
[service]
command = ["/bin/sh", "-c", "echo hello; exec sleep 1000"]
restart = "always"
[limits]
memory = "64M"
pids = 32
"""
COUNT = """
[service]
command = ["/bin/sh", "-c", "for i in $(seq 0 99); do echo line $i; usleep 50000; done; exit 7"]
restart = "no"
"""


def mixctl(guest: Guest, words: str, user: str = "root") -> Any:
    return json.loads(guest.run(f"mixctl {words} --json", user))


def install(guest: Guest, name: str, text: str) -> None:
    guest.run(f"mkdir -p /etc/mixos/units && cat >/etc/mixos/units/{name}.toml", stdin=text.encode())
    mixctl(guest, "service reload")


def remove(guest: Guest, name: str) -> None:
    guest.run(f"rm -f /etc/mixos/units/{name}.toml")
    mixctl(guest, "service reload")


def restart_daemon(guest: Guest) -> None:
    """kill -9; returns when its successor has taken over the services."""
    guest.run("kill -KILL $(head -n 1 /run/mixos/mixosd.lock)")
    assert wait_until(lambda: guest.attempt("mixctl service list").status == 0, 120.0)


def test_every_controller_is_there(guest: Guest) -> None:
    part = guest.status()["parts"]["service"]
    assert part["missing_controllers"] == []
    assert part["no_cgroups"] == ""
    assert part["failed"] == part["broken"] == []


def test_shipped_units_are_up(guest: Guest) -> None:
    states = {unit["name"]: unit["state"] for unit in mixctl(guest, "service list")["units"]}
    assert states == {"dbus": "running", "network": "running", "ntp": "running", "trim": "scheduled"}


def test_the_kernel_enforces_limits(guest: Guest) -> None:
    """Memory hog, fork bomb, processor, log flood, a service that ignores SIGTERM."""
    guest.run("cat >/run/checks.py", stdin=CHECKS.read_bytes())
    guest.run("(python3 -I /run/checks.py; echo $? >/run/checks.end) >/run/checks.out 2>&1 </dev/null &")
    assert wait_until(lambda: guest.attempt("test -s /run/checks.end").status == 0, 900.0)
    said = guest.run("cat /run/checks.out")
    assert guest.run("cat /run/checks.end") == "0", said
    rows = [json.loads(line) for line in said.splitlines()]
    assert {row["check"] for row in rows} == {"hog", "bomb", "spin", "flood", "deaf", "stopped"}
    assert rows[-1] == {"check": "stopped", "deaf": 9}


def test_a_unit_of_ones_own(guest: Guest) -> None:
    install(guest, "hello", HELLO)
    (row,) = mixctl(guest, "service start hello")
    assert row["state"] == "running"
    assert guest.run(f"cat /proc/{row['pid']}/cgroup").startswith("0::/mixos/hello")
    assert guest.run("cat /sys/fs/cgroup/mixos/hello/memory.max") == str(64 << 20)
    assert "hello" in guest.run("mixctl service logs hello")
    guest.run(f"kill -KILL {row['pid']}")

    def back() -> bool:
        facts = mixctl(guest, "service show hello")
        return facts["state"] == "running" and facts["pid"] not in (0, row["pid"])

    assert wait_until(back, 60.0)


def test_a_broken_file_leaves_the_old_unit_in_force(guest: Guest) -> None:
    guest.run("sed -i s/memory/memroy/ /etc/mixos/units/hello.toml")
    assert guest.attempt("mixctl service reload").status == 3
    facts = mixctl(guest, "service show hello")
    assert facts["state"] == "running"
    assert "hello.toml:9:1" in facts["broken"]
    install(guest, "hello", HELLO)
    assert mixctl(guest, "service show hello")["broken"] is None


def test_the_daemons_death_costs_no_service_no_exit_code_and_no_line(guest: Guest) -> None:
    install(guest, "hello", HELLO)
    install(guest, "count", COUNT)
    mixctl(guest, "service start hello count")
    before = {unit["name"]: unit["pid"] for unit in mixctl(guest, "service list")["units"]}
    restart_daemon(guest)
    after = {unit["name"]: unit["pid"] for unit in mixctl(guest, "service list")["units"]}
    assert {name: pid for name, pid in after.items() if name != "count"} == {
        name: pid for name, pid in before.items() if name != "count"
    }
    assert wait_until(lambda: mixctl(guest, "service show count")["state"] == "failed", 60.0)
    assert mixctl(guest, "service show count")["ends"][0]["code"] == 7
    said = [line.split("line ")[1] for line in guest.lines("mixctl service logs -n 200 count") if " line " in line]
    assert said == [str(number) for number in range(100)]
    remove(guest, "count")


def test_undo_brings_the_configuration_back(guest: Guest) -> None:
    install(guest, "hello", HELLO)
    revision = mixctl(guest, "config history -n 1")[0]["id"]
    install(guest, "hello", HELLO.replace("64M", "32M"))
    assert wait_until(lambda: mixctl(guest, "config history -n 1")[0]["id"] > revision, 30.0)
    mixctl(guest, f"config undo {revision}")
    assert "64M" in guest.run("cat /etc/mixos/units/hello.toml")
    remove(guest, "hello")


@pytest.mark.parametrize("user", ["operator", "viewer", "agent"])
def test_roles_without_a_shell(guest: Guest, user: str) -> None:
    assert guest.attempt("id", user).status == 7
    assert guest.attempt("mixctl ping; id", user).status != 0
    assert guest.run("mixctl ping", user) == "pong"


def test_what_a_role_may_do(guest: Guest) -> None:
    assert guest.attempt("mixctl service restart ntp", "viewer").status == 7
    assert guest.attempt("mixctl service restart ntp", "operator").status == 0
    assert guest.attempt("mixctl service disable ntp", "operator").status == 7
    kinds = [(row["kind"], row.get("method"), row.get("uid")) for row in mixctl(guest, "audit list")]
    assert ("denied", "service.restart", 1002) in kinds
    assert ("intent", "service.restart", 1001) in kinds
    assert guest.attempt("mixctl audit verify").status == 0


def test_the_console_answers_a_script_on_its_input(guest: Guest) -> None:
    argv = guest.command("operator", "-")[:-1]  # a login without a command
    done = guest.connect(argv, stdin=b"ping\nmixctl service list\nexit\n")
    assert done.status == 0
    assert "pong" in done.text
    assert "dbus" in done.text


def test_the_bus_offers_the_daemons_methods(guest: Guest) -> None:
    call = "dbus-send --system --print-reply --dest=org.mixos /org/mixos/service org.mixos.Service1.List"
    text = guest.run(call)
    assert "ntp" in text
