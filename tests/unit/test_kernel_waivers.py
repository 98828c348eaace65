"""Waivers, requested versus final, the hardening gate and the boot parameters."""

import datetime
import json
from pathlib import Path

import pytest

import kernel
from common.errors import CheckError, ConfigError, MixosError
from kernel.cmdline import parse_cmdline, read_cmdline, values
from kernel.config import read_data
from kernel.hardening import Rule, external_score, judge, read_rules, require
from kernel.kconfig import Request, parse_fragment, read_symbols
from kernel.version import Version
from kernel.waivers import Waiver, check_known, check_waivers, compare, ending, read_waivers, resolve

KERNEL = Path(kernel.__file__).parent
TODAY = datetime.date(2026, 11, 1)
V66 = Version(6, 6, 8)
V612 = Version(6, 12, 1)


def ask(text: str) -> dict[str, Request]:
    return {request.symbol: request for request in parse_fragment(text, "f.config")}


def waive(tmp_path: Path, body: str) -> list[Waiver]:
    (tmp_path / "waivers.toml").write_text(body)
    return read_waivers(tmp_path / "waivers.toml")


def table(symbols: str, extra: str = "", versions: str = "any", expires: str = "2027-01-01") -> str:
    return f'[[waiver]]\nsymbols = {symbols}\nversions = "{versions}"\nreason = "r"\nexpires = {expires}\n{extra}\n'


@pytest.mark.parametrize(
    "body",
    [
        "[[waiver]\n",
        "[other]\n",
        "waiver = 1\n",
        table('["A"]', 'unknown = "x"'),
        table('"A"'),
        table("[]"),
        table("[1]"),
        table('["A"]', expires='"2027-01-01"'),
        table('["A"]', expires="2027-01-01T10:00:00"),
        table('["A"]', "undefined = 1"),
        table('["A", "B"]', 'instead = ["C"]'),
        table('["A"]').replace('reason = "r"', 'reason = " "'),
        table('["A"]').replace('reason = "r"\n', ""),
    ],
)
def test_waiver_files_that_are_refused(tmp_path: Path, body: str):
    with pytest.raises(ConfigError) as caught:
        waive(tmp_path, body)
    assert caught.value.reason == "waiver-syntax"


def test_a_misspelt_symbol_is_refused_with_a_proposal():
    with pytest.raises(CheckError) as caught:
        check_known(ask("CONFIG_SQUASHFS=y\n# CONFIG_IO_URNG is not set\n"), {"SQUASHFS", "IO_URING"}, [])
    assert caught.value.reason == "kconfig-unknown"
    assert caught.value.message.startswith("f.config:2:")
    assert "IO_URING" in (caught.value.hint or "")


def test_a_symbol_of_another_version_needs_a_waiver(tmp_path: Path):
    check_known(ask("CONFIG_NEWER=y\n"), {"OLD"}, waive(tmp_path, table('["NEWER"]', "undefined = true")))


@pytest.mark.parametrize(
    ("today", "told", "fails"),
    [
        ("2026-12-01", False, False),
        ("2026-12-02", True, False),
        ("2027-01-01", True, False),
        ("2027-01-02", False, True),
    ],
)
def test_a_waiver_lasts_until_its_date_and_says_so_before(tmp_path: Path, today: str, told: bool, fails: bool):
    waivers = waive(tmp_path, table('["A", "B"]') + table('["C"]') + table('["LATER"]', expires="2040-01-01"))
    requests = ask("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\nCONFIG_LATER=y")
    day = datetime.date.fromisoformat(today)
    text = ending(waivers, day)
    assert (text is not None) == told
    if fails:
        with pytest.raises(CheckError) as caught:
            check_waivers(waivers, requests, day)
        assert caught.value.reason == "waiver-expired"
        text = caught.value.message
    else:
        check_waivers(waivers, requests, day)
    if text is not None:  # all at once, and no others
        assert ("(A, B)" in text, "(C)" in text, "LATER" in text) == (True, True, False)


def test_a_waiver_that_no_request_needs(tmp_path: Path):
    with pytest.raises(CheckError) as caught:
        check_waivers(waive(tmp_path, table('["A"]')), ask("CONFIG_B=y"), TODAY)
    assert caught.value.reason == "waiver-unused"


@pytest.mark.parametrize(
    ("request_line", "final"),
    [
        ("CONFIG_A=y", {}),
        ("CONFIG_A=y", {"A": "n"}),
        ("# CONFIG_A is not set", {"A": "y"}),
        ("CONFIG_A=64", {"A": "128"}),
        ('CONFIG_A="x"', {"A": '"y"'}),
    ],
)
def test_a_dropped_or_changed_symbol_is_an_error(request_line: str, final: dict[str, str]):
    resolution = resolve(ask(request_line), [], V66, {"A"})
    with pytest.raises(CheckError) as caught:
        compare(resolution, final, V66)
    assert caught.value.reason == "kconfig-dropped"
    assert "f.config:1" in caught.value.message


@pytest.mark.parametrize(
    ("request_line", "final"),
    [("CONFIG_A=y", {"A": "y"}), ("# CONFIG_A is not set", {}), ("CONFIG_A=0x10", {"A": "16"})],
)
def test_a_fulfilled_request(request_line: str, final: dict[str, str]):
    assert compare(resolve(ask(request_line), [], V66, {"A"}), final, V66) == {}


def test_a_waived_drop_is_reported_and_then_stale(tmp_path: Path):
    waivers = waive(tmp_path, table('["A"]', versions=">=6.12"))
    resolution = resolve(ask("CONFIG_A=y"), waivers, V612, {"A"})
    assert compare(resolution, {"A": "n"}, V612) == {"A": "n"}
    with pytest.raises(CheckError) as caught:
        compare(resolution, {"A": "y"}, V612)
    assert caught.value.reason == "waiver-stale"
    # out of its range the waiver is no excuse, and not stale either
    earlier = resolve(ask("CONFIG_A=y"), waivers, V66, {"A"})
    assert compare(earlier, {"A": "y"}, V66) == {}
    with pytest.raises(CheckError) as caught:
        compare(earlier, {}, V66)
    assert caught.value.reason == "kconfig-dropped"


def test_an_absent_symbol_is_asked_for_only_where_it_exists(tmp_path: Path):
    waivers = waive(tmp_path, table('["A"]', "undefined = true"))
    absent = resolve(ask("CONFIG_A=y"), waivers, V66, set())
    assert (dict(absent.effective), set(absent.absent)) == ({}, {"A"})
    there = resolve(ask("CONFIG_A=y"), waivers, V66, {"A"})
    with pytest.raises(CheckError) as caught:
        compare(there, {}, V66)
    assert caught.value.reason == "kconfig-dropped"


def test_a_renamed_symbol_keeps_its_value(tmp_path: Path):
    waivers = waive(tmp_path, table('["OLD"]', 'instead = ["NEW"]', versions=">=6.9"))
    assert set(resolve(ask("CONFIG_OLD=7"), waivers, V66, set()).effective) == {"OLD"}
    renamed = resolve(ask("CONFIG_OLD=7"), waivers, V612, set())
    assert {name: request.value for name, request in renamed.effective.items()} == {"NEW": "7"}
    assert compare(renamed, {"NEW": "7"}, V612) == {}
    with pytest.raises(ConfigError) as caught:
        resolve(ask("CONFIG_OLD=7\nCONFIG_NEW=8"), waivers, V612, set())
    assert caught.value.reason == "kconfig-conflict"


def test_two_waivers_for_one_symbol_and_version(tmp_path: Path):
    waivers = waive(tmp_path, table('["A"]') + table('["A"]', versions=">=6.6"))
    assert set(resolve(ask("CONFIG_A=y"), waivers, Version(6, 1), set()).expected) == {"A"}
    with pytest.raises(CheckError) as caught:
        resolve(ask("CONFIG_A=y"), waivers, V66, set())
    assert caught.value.reason == "waiver-overlap"


def test_the_gate_counts_and_refuses(tmp_path: Path):
    waivers = waive(
        tmp_path, table('["GONE"]', "undefined = true") + table('["OLD"]', 'instead = ["NEW"]', versions=">=6.9")
    )
    resolution = resolve(ask("CONFIG_A=y\nCONFIG_GONE=y\nCONFIG_OLD=y"), waivers, V612, {"A", "NEW"})
    final = {"A": "y", "NEW": "y"}
    rules = [Rule("kconfig", name, "y", "r") for name in ("A", "GONE", "OLD")] + [Rule("cmdline", "panic", "10", "r")]
    states = [verdict.state for verdict in judge(rules, final, ["panic=10"], resolution)]
    assert states == ["met", "waived", "met", "met"]
    for broken, parameters in (({"A": "y"}, ["panic=10"]), (final, ["panic=1"]), (final, [])):
        with pytest.raises(CheckError) as caught:
            require(judge(rules, broken, parameters, resolution))
        assert caught.value.reason == "hardening"
    off = judge([Rule("kconfig", "MODULES", "n", "r")], {"MODULES": "y"}, [], resolution)
    assert [verdict.state for verdict in off] == ["failed"]


@pytest.mark.parametrize(
    "body",
    [
        "[[kconfig]\n",
        "[[other]]\n",
        '[[kconfig]]\non = ["A"]\n',
        '[[kconfig]]\nreason = "r"\nonn = ["A"]\n',
        '[[kconfig]]\nreason = "r"\non = ["A"]\noff = ["B"]\n[[kconfig]]\nreason = "r"\noff = ["A"]\n',
    ],
)
def test_rule_files_that_are_refused(tmp_path: Path, body: str):
    (tmp_path / "hardening.toml").write_text(body)
    with pytest.raises(ConfigError) as caught:
        read_rules(tmp_path / "hardening.toml")
    assert caught.value.reason == "hardening-syntax"


def test_the_external_checker_is_understood(tmp_path: Path):
    answer = [{"check_result_bool": True}, {"check_result_bool": False}, {"check_result_bool": True}]
    tool = tmp_path / "checker"
    tool.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    tool.chmod(0o755)
    assert external_score(tmp_path / "config", tool=tool) == (2, 3)
    tool.write_text("#!/bin/sh\necho '[{}]'\n")
    with pytest.raises(CheckError) as caught:
        external_score(tmp_path / "config", tmp_path / "cmdline", tool)
    assert caught.value.reason == "hardening-checker"


def test_the_data_of_the_project_is_sound():
    data = read_data(KERNEL, TODAY)
    known = read_symbols(KERNEL / "symbols-6.6-x86.txt")
    waived = {waiver.symbol for waiver in data.waivers}
    for rule in data.rules:
        if rule.kind == "kconfig":
            assert rule.name in known or rule.name in waived, rule.name
    # A symbol that must be on is asked for by a fragment, or the kernel sets it without being asked.
    unasked = {rule.name for rule in data.rules if rule.kind == "kconfig" and rule.value == "y"} - set(data.requests)
    assert unasked <= {"THREAD_INFO_IN_TASK"}


def test_an_expired_waiver_of_the_project_stops_a_build():
    with pytest.raises(CheckError) as caught:
        read_data(KERNEL, datetime.date(2999, 1, 1))
    assert caught.value.reason == "waiver-expired"


def test_boot_parameters():
    parameters = read_cmdline(KERNEL / "cmdline.txt")
    given = values(parameters)
    assert given["console"] == ["tty0", "ttyS0,115200"]
    assert given["panic"] == ["10"]
    assert not {"root", "init", "dm-mod.create", "rootwait", "dm-mod.waitfor"} & given.keys()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a=1 b=2 # two", "cmdline-syntax"),
        ('a="x" # quoted', "cmdline-syntax"),
        ("a=1", "cmdline-syntax"),
        ("a=\u00e4 # not ASCII", "cmdline-syntax"),
        ("a # r\na # r", "cmdline-twice"),
        (f"a={'x' * 2000} # long", "cmdline-length"),
    ],
)
def test_boot_parameters_that_are_refused(text: str, reason: str):
    with pytest.raises(MixosError) as caught:
        parse_cmdline(text, "cmdline.txt")
    assert caught.value.reason == reason
