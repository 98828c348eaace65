"""The spec of a shim: bytes and back, what is refused; the state and events that come from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.parts.service import spec as module
from daemon.parts.service.shimstate import EVENTS, Extend, Phase, ShimError, Status, Watchdog, load_state, parse_state
from daemon.parts.service.spec import (
    ANYBODY,
    CAPABILITIES,
    INFINITY,
    LIMITS,
    Limit,
    Logging,
    Spec,
    SpecError,
    decode,
    encode,
    number_in,
    parse,
)

MINIMAL = Spec(unit="hello", argv=("/bin/true",), log=Logging("/var/log/hello"))

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
absolute = texts.map(lambda text: "/" + text)
names = texts.filter(lambda text: text and "=" not in text)
amounts = st.one_of(st.integers(0, 10**18 - 1), st.just(INFINITY))
specs = st.builds(
    Spec,
    unit=st.from_regex(r"\A[a-z][a-z0-9@._-]{0,20}\Z"),
    argv=st.lists(texts, max_size=5).flatmap(lambda rest: absolute.map(lambda first: (first, *rest))),
    log=st.builds(
        Logging,
        folder=absolute,
        size=st.integers(65536, 1 << 32),
        files=st.integers(0, 100),
        rate=st.integers(0, 10**6),
        burst=st.integers(1, 10**6),
    ),
    environment=st.dictionaries(names, texts, max_size=5),
    cwd=absolute,
    uid=st.integers(0, 0xFFFFFFFE),
    gid=st.integers(0, 0xFFFFFFFE),
    groups=st.lists(st.integers(0, 0xFFFFFFFE), max_size=4).map(tuple),
    umask=st.integers(0, 0o777),
    nice=st.integers(-20, 19),
    oom_score_adj=st.integers(-1000, 1000),
    no_new_privileges=st.booleans(),
    limits=st.dictionaries(st.sampled_from(LIMITS), st.builds(Limit, soft=amounts, hard=amounts)),
    ambient=st.frozensets(st.sampled_from(CAPABILITIES)),
    bounding=st.none() | st.frozensets(st.sampled_from(CAPABILITIES)),
    cgroup=st.sampled_from(["", "/sys/fs/cgroup/mixos/hello"]),
    shim_cgroup=st.sampled_from(["", "/sys/fs/cgroup/mixos/.shims"]),
    notify=st.booleans(),
    notify_uid=st.none() | st.integers(0, ANYBODY),
    await_ready=st.booleans(),
    ready_fd=st.sampled_from([0, 3, 255]),
    daemonises=st.booleans(),
    stop_signal=st.integers(1, 64),
    grace=st.integers(0, 10**6).map(lambda milliseconds: milliseconds / 1000),
    fd_store=st.integers(0, 64),
)


@settings(deadline=None)
@given(specs)
def test_round_trip(spec):
    data = bytes(spec)
    assert parse(data) == spec
    assert all(0x20 < byte < 0x7F or byte in b" \n" for byte in data)


@given(st.binary(max_size=60))
def test_words(word):
    assert decode(encode(word)) == word
    assert b" " not in encode(word)


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, 800), st.binary(max_size=5))))
def test_garbage_is_refused_or_a_spec(garbage):
    data = (
        garbage
        if isinstance(garbage, bytes)
        else bytes(MINIMAL)[: garbage[0]] + garbage[1] + bytes(MINIMAL)[garbage[0] :]
    )
    try:
        assert isinstance(parse(data), Spec)
    except SpecError as error:
        assert error.reason == "spec-format"  # noqa: PT017  # a spec is as good


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": ""},
        {"unit": "a b"},
        {"unit": "../x"},
        {"argv": ()},
        {"argv": ("relative",)},
        {"argv": ("/x", "a\0b")},
        {"argv": ("/x",) * 1025},
        {"cwd": "relative"},
        {"cgroup": "/with space"},
        {"cgroup": "/" + "x" * 300},
        {"log": Logging("relative")},
        {"log": Logging("/x", size=1000)},
        {"log": Logging("/x", rate=-1)},
        {"environment": {"A=B": "c"}},
        {"environment": {"": "c"}},
        {"environment": {"A": "\0"}},
        {"uid": -1},
        {"gid": 0xFFFFFFFF},
        {"groups": (1,) * 33},
        {"umask": 0o1000},
        {"nice": 20},
        {"oom_score_adj": 1001},
        {"limits": {"files": Limit(1, 1)}},
        {"limits": {"nofile": Limit(-1, 1)}},
        {"ambient": frozenset({"everything"})},
        {"ready_fd": 2},
        {"stop_signal": 0},
        {"fd_store": 65},
        {"grace": -1.0},
        {"argv": ("/x", "a" * 140_000)},
    ],
)
def test_refused(changes):
    with pytest.raises(SpecError) as caught:
        bytes(replace(MINIMAL, **changes))
    assert caught.value.reason == "spec-value"


def test_numbers_are_those_of_the_shim():
    """int() of Python reads more than the shim does, and some of it is too large for what is made of it."""
    for text in ("1" * 400, "1_0", " 1", "\u0661"):
        with pytest.raises(ValueError):
            number_in(text)


def test_numbers_of_capabilities():
    """linux/capability.h: a name in the wrong place would give another right."""
    wanted = {
        "chown": 0,
        "setuid": 7,
        "net_bind_service": 10,
        "net_admin": 12,
        "sys_admin": 21,
        "syslog": 34,
        "bpf": 39,
    }
    assert {name: CAPABILITIES.index(name) for name in wanted} == wanted
    assert (len(CAPABILITIES), CAPABILITIES[-1]) == (41, "checkpoint_restore")


STATE = b"""mixos-state 1
unit hello
boot d5040c5a-03c9-40bf-a529-35a2bf302e69
shim 10 100
phase exited
main 0 0
ready 1
stopped 0
populated 0
since 1500000000
until 2500000000
starts 3
exit -1 9
oom 1
failure - 0
cgroup /sys/fs/cgroup/mixos/hello
kills cgroup
status 50%20%25%20%C3%A9
dropped 7
lost 8
"""


def test_state():
    state = parse_state(STATE)
    assert (state.phase, state.code, state.signal, state.oom, state.starts) == (Phase.EXITED, -1, 9, True, 3)
    assert (state.since, state.until, state.status, state.failure, state.dropped, state.lost) == (
        1.5,
        2.5,
        "50 % é",
        "",
        7,
        8,
    )
    assert not state.shim.alive()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        STATE[:100],
        STATE.replace(b"exited", b"odd"),
        STATE.replace(b"since 1", b"since x"),
        STATE.replace(b"since 1", b"since " + b"1" * 400),
    ],
)
def test_damaged_state(tmp_path, damage):
    (tmp_path / "state").write_bytes(damage)
    assert load_state(tmp_path) is None
    with pytest.raises(ShimError) as caught:
        parse_state(damage)
    assert caught.value.reason == "shim-protocol"


@given(st.integers(0, len(STATE)), st.binary(max_size=8))
def test_any_damage_to_a_state(place, junk):
    try:
        assert parse_state(STATE[:place] + junk + STATE[place + 1 :]).unit
    except ShimError as error:
        assert error.reason == "shim-protocol"  # noqa: PT017  # a state is as good


def test_events():
    state = parse_state(STATE)
    assert EVENTS["status"]([], state) == Status("50 % é")
    assert EVENTS["watchdog"](["1"], state) == Watchdog(True)
    assert EVENTS["extend"]([], state) == Extend()
    assert module.MAX_FDS == 64
