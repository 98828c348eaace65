"""network.toml on a booted device: VLANs, a bridge around the interface that SSH comes over, trials, the clock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.boot.guest import Guest, wait_until

SECONDS = 180.0


def net(guest: Guest, words: str) -> Any:
    return json.loads(guest.run(f"mixctl net {words} --json"))


def put(guest: Guest, text: str) -> None:
    guest.run("cat >/etc/mixos/network.toml", stdin=text.encode())


@pytest.fixture
def clean(guest: Guest) -> Iterator[Guest]:
    """Afterwards there is no network.toml, and the settings count again."""
    yield guest
    guest.run("rm -f /etc/mixos/network.toml && mixctl net apply --force")


def test_without_a_file_the_settings_count(guest: Guest) -> None:
    status = net(guest, "status")
    assert status["file"] == "ok"
    (eth0,) = [row for row in status["interfaces"] if row["kind"] == "hardware"]
    assert eth0["by"] == "settings"
    assert eth0["state"] == "up"
    assert eth0["addresses"]
    assert net(guest, "check")["steps"] == []


# case: N12
def test_the_metric_of_a_lease(clean: Guest) -> None:
    """With the image's own BusyBox, under its AppArmor profile."""
    guest = clean
    guest.run("mixctl net set eth0 metric=50 && mixctl net apply --force")

    def metrics() -> set[int]:
        return {row["metric"] for row in net(guest, "show eth0")["routes"] if row["to"] == "0.0.0.0/0"}

    assert metrics() == {50}
    guest.run("rm /run/mixos/net/eth0.lease && kill -USR1 $(cat /run/mixos/net/eth0.pid)")  # a renewal writes it again
    assert wait_until(lambda: guest.attempt("test -e /run/mixos/net/eth0.lease").status == 0, SECONDS)
    assert metrics() == {50}
    assert net(guest, "check")["steps"] == []


def test_a_vlan_on_a_bridge(clean: Guest) -> None:
    guest = clean
    put(
        guest,
        '[interface.lan]\nmode = "none"\nbridge = {}\n'
        '[interface.office]\nmode = "static"\naddresses = ["192.0.2.1/24"]\nvlan = { parent = "lan", id = 20 }\n',
    )
    assert net(guest, "apply")["steps"]
    office = net(guest, "show office")["actual"]
    assert (office["kind"], office["parent"], office["vlan"]) == ("vlan", "lan", 20)
    assert [address for address in office["addresses"] if not address.startswith("fe80:")] == ["192.0.2.1/24"]
    assert net(guest, "apply")["steps"] == []
    put(guest, "")
    net(guest, "apply")
    assert {"lan", "office"}.isdisjoint(row["name"] for row in net(guest, "list"))


def test_what_cuts_the_operator_off_is_undone(clean: Guest) -> None:
    """eth0 loses its address: nobody can confirm that, so it comes back by itself, with its DHCP client."""
    guest = clean
    put(guest, '[interface.eth0]\nmode = "static"\naddresses = ["198.51.100.77/24"]\n')
    guest.attempt("mixctl net apply --confirm 20 >/run/applied 2>&1 &")
    guest.hang_up()
    assert wait_until(lambda: guest.attempt("mixctl net status --json | grep -q reverted").status == 0, SECONDS)
    (eth0,) = [row for row in net(guest, "list") if row["name"] == "eth0"]
    assert "198.51.100.77/24" not in eth0["addresses"]
    assert guest.run("pidof udhcpc").split()


def test_what_cuts_the_operator_off_is_on_trial_by_itself(clean: Guest) -> None:
    """Without --confirm, and through `config put` as well: the file is not written until somebody confirms."""
    guest = clean
    text = '[interface.eth0]\nmode = "static"\naddresses = ["198.51.100.77/24"]\n'
    guest.run("cat >/run/cuts.toml", stdin=text.encode())
    told = json.loads(guest.run("mixctl config put network.toml /run/cuts.toml --dry-run --json"))
    assert (told["applied"], told["cuts-off"]) == (False, True)
    guest.attempt("(mixctl config put network.toml /run/cuts.toml --confirm 20; true) >/run/applied 2>&1 &")
    guest.hang_up()
    assert wait_until(lambda: "on trial" in guest.run("cat /run/applied"), SECONDS)
    assert wait_until(lambda: guest.run("mixctl change list").startswith("nothing"), SECONDS)
    assert guest.attempt("test -e /etc/mixos/network.toml").status == 1
    (eth0,) = [row for row in net(guest, "list") if row["name"] == "eth0"]
    assert "198.51.100.77/24" not in eth0["addresses"]


def test_a_bridge_takes_over_the_lease(clean: Guest) -> None:
    """The DHCP client moves from eth0 to the bridge, and SSH with it."""
    guest = clean
    put(guest, '[interface.lan]\nbridge = { ports = ["eth0"] }\n')
    guest.attempt("mixctl net apply --confirm 120 >/run/applied 2>&1 &")
    guest.hang_up()
    assert wait_until(lambda: guest.attempt("mixctl net confirm").status == 0, SECONDS)
    lan = net(guest, "show lan")
    assert lan["actual"]["ports"] == ["eth0"]
    assert any(":" not in address for address in lan["actual"]["addresses"])
    assert not [a for a in net(guest, "show eth0")["actual"]["addresses"] if ":" not in a]
    guest.run("rm /etc/mixos/network.toml")
    guest.attempt("mixctl net apply --force >/run/applied 2>&1 &")
    guest.hang_up()
    assert wait_until(lambda: guest.attempt("mixctl net show lan").status == 4, SECONDS)
    assert wait_until(lambda: bool(guest.attempt("cat /run/mixos/net/eth0.address").text.strip()), SECONDS)


def test_the_clock_is_described(guest: Guest) -> None:
    told = net(guest, "time")
    assert isinstance(told["synchronised"], bool)
    assert told["servers"]
