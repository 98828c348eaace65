"""What confines programs on the device: AppArmor, the sandbox, the firewall."""

from __future__ import annotations

import json
from typing import Any

from buildsys.run import spawn
from tests.boot.guest import Guest, wait_until


def test_policy_is_enforced_for_every_profile(guest: Guest) -> None:
    rows = guest.lines("cat /sys/kernel/security/apparmor/profiles")
    assert {row.split()[0] for row in rows} >= {
        "dbus-daemon", "dbus-door", "mdns", "metrics-endpoint", "mixosd", "nft", "ntpd", "sandbox-proxy", "syslogd",
        "udhcpc",
    }  # fmt: skip
    assert all(row.endswith("(enforce)") for row in rows)


def test_services_run_under_their_profiles(guest: Guest) -> None:
    for name, profile in (
        ("dbus-daemon", "dbus-daemon"),
        ("ntpd", "ntpd"),
        ("udhcpc", "udhcpc"),
        ("syslogd", "syslogd"),
    ):
        pid = guest.run(f"pidof {name}").split()[0]
        assert guest.run(f"cat /proc/{pid}/attr/current").strip("\0\n ") == f"{profile} (enforce)"
    daemon = guest.run("cat /proc/$(head -n 1 /run/mixos/mixosd.lock)/attr/current")
    assert daemon.strip("\0\n ") == "mixosd (enforce)"


def test_processes_of_parts_are_what_they_should_be(guest: Guest) -> None:
    """Account, profile, capabilities, limits: nothing is missing on a device, and a dead one comes back."""
    for part, account, profile in (("mdns", 82, "mdns"), ("dbus", 83, "dbus-door")):
        assert wait_until(lambda name=part: process_of(guest, name)["state"] == "running", 60.0)  # type: ignore[misc]
        process = process_of(guest, part)
        assert process["not-enforced"] == []
        place = f"/proc/{process['pid']}"
        assert guest.run(f"cat {place}/attr/current").strip("\0\n ") == f"{profile} (enforce)"
        lines = guest.lines(f"cat {place}/status")
        status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        assert set(status["Uid"]) == {str(account)}
        assert {status[name][0] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Groups"]) == (["1"], [])
        assert guest.run(f"cat {place}/cgroup").strip() == f"0::/mixos/.parts/{part}"
    guest.run(f"kill -KILL {process['pid']}")
    assert wait_until(lambda: process_of(guest, "dbus")["restarts"] == 1, 60.0)
    assert wait_until(lambda: process_of(guest, "dbus")["state"] == "running", 60.0)


def process_of(guest: Guest, part: str) -> dict[str, Any]:
    """The status of a part's process."""
    return dict(guest.status()["parts"][part]["process"])


def test_an_access_outside_a_profile_is_denied_and_logged(guest: Guest) -> None:
    assert guest.attempt("cat /etc/shadow").status == 0
    done = guest.attempt("echo 'exec ntpd' >/proc/self/attr/apparmor/exec && exec cat /etc/shadow")
    assert done.status != 0
    assert wait_until(lambda: 'apparmor="DENIED"' in guest.run("dmesg | grep shadow; :"), 30.0)


def test_policy_cannot_be_replaced(guest: Guest) -> None:
    assert guest.attempt("echo ntpd >/sys/kernel/security/apparmor/.remove").status != 0


def test_the_daemon_is_denied_nothing_that_it_does(guest: Guest) -> None:
    """Every refusal so far that names one of our profiles, apart from the one provoked above."""
    rows = [row for row in guest.lines("dmesg | grep 'apparmor=\"DENIED\"'; :") if "shadow" not in row]
    assert rows == []


def test_a_sandbox_hides_the_device(guest: Guest) -> None:
    script = "id -u; ls /proc | grep -c '^[0-9]'; cat /etc/shadow; ls /data /run/mixos; ip link | grep -c eth; :"
    done = guest.attempt(f"mixctl sandbox run --profile tool -- /bin/sh -c {json.dumps(script)}", "admin")
    lines = done.text.splitlines()
    assert done.status == 0
    assert lines[0] == "1000"
    assert int(lines[1]) < 8
    assert "root:" not in done.text
    assert lines[-1] == "0"


def test_a_sandbox_for_a_role_that_may_start_nothing_else(guest: Guest) -> None:
    """The console of an operator has given up starting processes and threads; input and output go all the same."""
    text = b"hello " * 20_000
    said = guest.run("mixctl sandbox run --profile tool -- tr a-z A-Z", "operator", stdin=text)
    assert said.encode() == text.upper()


def test_a_sandbox_ends_with_its_limits(guest: Guest) -> None:
    hog = "mixctl sandbox run --profile tool -- /usr/bin/python3 -I -c 'x = b\"x\" * (700 << 20)'"
    assert guest.attempt(hog, "admin").status == 137


# case: D6
def test_a_sandbox_ends_when_the_ssh_of_its_caller_is_killed(guest: Guest) -> None:
    process = spawn(guest.command("admin", "mixctl sandbox run -- sleep 4242", options=("BatchMode=yes",)))
    try:
        assert wait_until(lambda: guest.attempt("pgrep -f '^sleep 4242'").status == 0, 60.0)
    finally:
        process.kill()
    assert wait_until(lambda: guest.attempt("pgrep -f '^sleep 4242'").status != 0, 60.0)
    assert guest.attempt("pgrep -f 'mixctl sandbox run'").status != 0


def test_explain_finds_everything_enforced_on_this_kernel(guest: Guest) -> None:
    facts = json.loads(guest.run("mixctl sandbox explain --profile strict --json"))
    assert "no" not in {row["enforced"] for row in facts["rows"]}, facts


def test_the_firewall_is_in_force_and_notices_drift(guest: Guest) -> None:
    assert "policy drop" in guest.run("nft list chain inet mixos input")
    assert json.loads(guest.run("mixctl firewall status --json"))["state"] == "on"
    guest.run("nft add rule inet mixos input tcp dport 9999 accept")
    assert json.loads(guest.run("mixctl firewall status --json"))["state"] == "changed"
    guest.run("mixctl firewall apply --confirm 60 && mixctl firewall confirm; :")
    assert json.loads(guest.run("mixctl firewall status --json"))["state"] == "on"
