"""The system call filter, run by an interpreter of classic BPF: every number, every level, both architectures."""

from __future__ import annotations

import re
import struct
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildsys.run import run
from daemon.linux.sandbox import seccomp
from daemon.linux.sandbox.seccomp import ALLOW, EAFNOSUPPORT, ENOSYS, EPERM, KILL, Case, Rule
from daemon.linux.sandbox.syscalls import ARCHITECTURES, REVIEWED, numbers

LEVELS: tuple[seccomp.Level, ...] = ("standard", "strict")
SOCKETS = (frozenset[str](), frozenset({"unix"}), frozenset({"unix", "inet", "inet6", "netlink-route"}))
POLICIES = list(product(ARCHITECTURES, LEVELS, SOCKETS))
HIGH = 0xDEADBEEF << 32  # what the kernel does not look at in a 32-bit argument


def _named(policy: tuple[str, seccomp.Level, frozenset[str]]) -> str:
    """The same in every process: a set prints its members in any order."""
    architecture, level, families = policy
    return "-".join([architecture, level, *sorted(families)])


def interpret(program: bytes, number: int, architecture: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel would answer: the instructions that a seccomp filter may have (net/core/filter.c)."""
    values = [value & (1 << 64) - 1 for value in (*arguments, *([0] * (6 - len(arguments))))]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0x400000, *values)
    code = list(struct.iter_unpack("<HBBI", program))
    at, accumulator = 0, 0
    for _ in range(len(code)):  # no instruction jumps back
        operation, true, false, constant = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif operation == 0x54:
            accumulator &= constant
        elif operation == 0x05:
            at += constant
        elif operation == 0x15:
            at += true if accumulator == constant else false
        elif operation == 0x35:
            at += true if accumulator >= constant else false
        else:
            assert operation == 0x06
            return int(constant)
    raise AssertionError("the program does not end")


def ask(policy: tuple[str, seccomp.Level, frozenset[str]], name: str, *arguments: int) -> int:
    architecture, level, families = policy
    program = seccomp.program(architecture, level, families)  # type: ignore[arg-type]
    return interpret(program, numbers(architecture)[name], seccomp.AUDIT_ARCH[architecture], arguments)


@pytest.mark.parametrize("policy", POLICIES, ids=_named)
def test_every_number_gets_the_decision_that_is_written_down(policy: tuple[str, seccomp.Level, frozenset[str]]) -> None:
    architecture, level, families = policy
    program = seccomp.program(architecture, level, families)  # type: ignore[arg-type]
    decided = seccomp.decisions(level, families)
    by_number = {number: name for name, number in numbers(architecture).items()}
    for number in range(REVIEWED + 1):
        decision = decided.get(by_number[number], ALLOW) if number in by_number else ENOSYS  # a gap in the table
        answer = interpret(program, number, seccomp.AUDIT_ARCH[architecture])
        if isinstance(decision, int):
            assert answer == decision, by_number.get(number)
        else:
            assert answer in {decision.otherwise, *(case.action for case in decision.cases)}


@pytest.mark.parametrize("policy", POLICIES, ids=_named)
def test_the_kernel_takes_it(policy: tuple[str, seccomp.Level, frozenset[str]]) -> None:
    """As seccomp_check_filter does: bounded length, jumps inside, word loads inside the data, a return at the end."""
    code = list(struct.iter_unpack("<HBBI", seccomp.program(*policy)))  # type: ignore[arg-type]
    assert len(code) <= 4096
    for at, (operation, true, false, constant) in enumerate(code):
        if operation in (0x15, 0x35):
            assert at + 1 + max(true, false) < len(code)
        elif operation == 0x05:
            assert at + 1 + constant < len(code)
        elif operation == 0x20:
            assert constant % 4 == 0
            assert constant < 64
    assert code[-1][0] == 0x06


@pytest.mark.parametrize("policy", POLICIES, ids=_named)
def test_foreign_numbers(policy: tuple[str, seccomp.Level, frozenset[str]]) -> None:
    program = seccomp.program(*policy)  # type: ignore[arg-type]
    own = seccomp.AUDIT_ARCH[policy[0]]
    for foreign in {0x40000003, 0xC000003E, 0xC00000B7, 0x40000028, 0, 0xFFFFFFFF} - {own}:  # i386, arm, garbage
        assert interpret(program, 1, foreign) == KILL
    assert interpret(program, REVIEWED + 1, own) == ENOSYS
    assert interpret(program, 0x3FFFFFFF, own) == ENOSYS
    assert interpret(program, 0x40000000 | 1, own) == (KILL if policy[0] == "x86_64" else ENOSYS)
    assert interpret(program, -1, own) in (KILL, ENOSYS)


@pytest.mark.parametrize("policy", POLICIES, ids=_named)
@pytest.mark.parametrize("high", [0, HIGH])
# case: H5
def test_arguments(policy: tuple[str, seccomp.Level, frozenset[str]], high: int) -> None:
    """Whatever stands in the half of an argument that the kernel does not look at."""
    for request in (*seccomp.TERMINAL_REQUESTS, 0x401C5820, 0x40086602, 0x40046602):
        assert ask(policy, "ioctl", 0, request | high) == EPERM
    for request in (0x5413, 0x801C581F):  # TIOCGWINSZ, FS_IOC_FSGETXATTR
        assert ask(policy, "ioctl", 0, request | high) == ALLOW
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert ask(policy, "clone", flag | 17 | high) == EPERM
        assert ask(policy, "unshare", flag | 0x400 | high) == EPERM
    assert ask(policy, "unshare", 0x80 | high) == EPERM
    assert ask(policy, "clone", 0x3D0F00 | high) == ALLOW  # a thread
    assert ask(policy, "unshare", 0x400 | high) == ALLOW  # CLONE_FILES
    assert ask(policy, "fchmodat", 0, 0, 0o4755 | high) == EPERM
    assert ask(policy, "fchmodat", 0, 0, 0o755 | high) == ALLOW
    assert ask(policy, "openat", 0, 0, 0o101 | high, 0o2755 | high) == EPERM
    assert ask(policy, "openat", 0, 0, 0o101 | high, 0o600 | high) == ALLOW
    assert ask(policy, "openat", 0, 0, high, 0o4755) == ALLOW  # without O_CREAT there is no mode
    assert ask(policy, "mknodat", 0, 0, 0o020666 | high) == EPERM
    assert ask(policy, "mknodat", 0, 0, 0o060666 | high) == EPERM
    assert ask(policy, "mknodat", 0, 0, 0o010666 | high) == ALLOW  # a pipe


@pytest.mark.parametrize("policy", POLICIES, ids=_named)
def test_sockets(policy: tuple[str, seccomp.Level, frozenset[str]]) -> None:
    families = policy[2]
    allowed = {1: "unix", 2: "inet", 10: "inet6"}
    for domain in range(50):
        wanted = ALLOW if allowed.get(domain) in families else EAFNOSUPPORT
        if domain != 16:
            assert ask(policy, "socket", domain, 1, 0) == wanted, domain
        assert ask(policy, "socketpair", domain, 1, 0) == (ALLOW if domain == 1 else EAFNOSUPPORT)
    assert ask(policy, "socket", 16, 3, 0) == (ALLOW if "netlink-route" in families else EAFNOSUPPORT)
    assert ask(policy, "socket", 16, 3, 16) == EAFNOSUPPORT  # generic netlink
    assert ask(policy, "socket", 2, 1, 132) == EAFNOSUPPORT  # SCTP
    assert ask(policy, "socket", 40, 1, 0) == EAFNOSUPPORT  # AF_VSOCK


def test_strict_forbids_to_make_memory_executable() -> None:
    standard, strict = ("x86_64", "standard", SOCKETS[0]), ("x86_64", "strict", SOCKETS[0])
    assert ask(strict, "mmap", 0, 4096, 7) == EPERM
    assert ask(strict, "mprotect", 0, 4096, 5) == EPERM
    assert ask(strict, "mmap", 0, 4096, 5) == ALLOW  # a library
    assert ask(standard, "mmap", 0, 4096, 7) == ALLOW


@given(st.sampled_from(POLICIES), st.integers(0, (1 << 32) - 1), st.lists(st.integers(0, (1 << 64) - 1), max_size=6))
def test_standard_allows_all_that_strict_allows(
    policy: tuple[str, seccomp.Level, frozenset[str]], number: int, arguments: list[int]
) -> None:
    architecture, _, families = policy
    own = seccomp.AUDIT_ARCH[architecture]
    answers = [
        interpret(seccomp.program(architecture, level, families), number % 600, own, tuple(arguments))  # type: ignore[arg-type]
        for level in LEVELS
    ]
    assert answers[1] != ALLOW or answers[0] == ALLOW


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bridge_may_do_nothing_else(architecture: str) -> None:
    program, own = seccomp.bridge_program(architecture), seccomp.AUDIT_ARCH[architecture]
    table = numbers(architecture)
    allowed = {name for name, number in table.items() if interpret(program, number, own, (1, 1)) == ALLOW}
    assert allowed == ({*seccomp.BRIDGE, "socket"} & set(table))
    assert interpret(program, table["socket"], own, (2, 1)) == KILL
    assert interpret(program, REVIEWED + 1, own) == KILL


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_name_in_a_list_exists(architecture: str) -> None:
    everywhere = {name for one in ARCHITECTURES for name in numbers(one)}
    listed = {*seccomp.KILLED, *seccomp.ABSENT, *seccomp.FORBIDDEN, *seccomp.STRICT, *seccomp.BRIDGE}
    assert listed <= everywhere
    assert set(seccomp.decisions("strict", ())) <= everywhere
    assert len(set(numbers(architecture).values())) == len(numbers(architecture))


def test_numbers_are_those_of_the_headers() -> None:
    """This machine's headers know fewer calls than the table, but agree about each."""
    header = run(["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"]).text
    found = {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", header, re.MULTILINE)}
    machine = run(["uname", "-m"]).text.strip()
    assert len(found) > 300
    assert found.items() <= numbers(machine).items()


def test_numbers_of_arm64_are_those_of_the_generic_table() -> None:
    text = Path("/usr/include/asm-generic/unistd.h").read_text()
    found = {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.MULTILINE)}
    for name in ("syscalls", "arch_specific_syscall", "sync_file_range2", "riscv_flush_icache"):
        found.pop(name, None)
    own = {name: number for name, number in numbers("aarch64").items() if name in found}
    assert len(own) > 250
    assert all(found[name] == number for name, number in own.items())


def test_rules_say_what_they_mean() -> None:
    """A rule's cases are tried in order, so that one with a narrower test must not stand behind a wider one."""
    for decision in seccomp.decisions("strict", ("unix", "inet")).values():
        if isinstance(decision, Rule):
            assert all(isinstance(case, Case) and case.tests for case in decision.cases)
            assert all(test.value & ~test.mask == 0 for case in decision.cases for test in case.tests)
