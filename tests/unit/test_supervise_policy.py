"""Pure decisions of supervision: back-off, start limit, what an end means, when a timer is due, states, memory."""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.values import calendar
from daemon.parts.service import leftovers, prepare
from daemon.parts.service.accounts import Account
from daemon.parts.service.backoff import Attempts
from daemon.parts.service.judge import Outcome, Verdict, following, verdict
from daemon.parts.service.load import parse_unit
from daemon.parts.service.memory import KEPT, End, History, Memory
from daemon.parts.service.shimstate import ProcessId
from daemon.parts.service.states import RESTING, TRANSITIONS, State
from daemon.parts.service.timer import Clock, Runs, remaining
from daemon.parts.service.timer import following as next_time
from daemon.parts.service.unit import Service, Timer, Unit


def unit(more: str = "", rest: str = "") -> Unit:
    return parse_unit(f"[service]\ncommand = ['/bin/x']\n{more}\n{rest}", Path("x.toml"))


def service(more: str = "") -> Service:
    found = unit(more).service
    assert found is not None
    return found


# -- back-off --------------------------------------------------------------------------------------------------------


def test_the_delay_doubles_up_to_the_cap_and_begins_anew_after_a_stable_run():
    policy, attempts, delays = service(), Attempts(), []
    for _ in range(11):
        attempts = attempts.ended(1.0, policy)
        delays.append(attempts.delay(policy))
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30])
    assert attempts.ended(30.0, policy).delay(policy) == pytest.approx(0.1)


def test_the_start_limit_counts_within_its_interval():
    policy, attempts = service("start-limit = { burst = 3, interval = '10s' }"), Attempts()
    for now in (0.0, 1.0, 2.0):
        assert not attempts.exhausted(now, policy)
        attempts = attempts.started(now, policy)
    assert attempts.exhausted(2.5, policy)
    assert not attempts.exhausted(10.0, policy)  # the first one is too old now
    assert not attempts.started(3.0, policy).exhausted(3.0, service("start-limit = { burst = 0 }"))


@given(st.lists(st.floats(0, 100), max_size=50))
def test_memory_of_starts_is_bounded(times):
    policy, attempts = service(), Attempts()
    for at in sorted(times):
        attempts = attempts.started(at, policy)
    assert len(attempts.starts) <= policy.start_limit.burst


# -- what an end means -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "good", "final", "slug"),
    [
        (Outcome(0, 0), True, False, ""),
        (Outcome(3, 0), False, False, "service-exit"),
        (Outcome(64, 0), False, True, "service-exit"),
        (Outcome(-1, 11), False, False, "service-signal"),
        (Outcome(-1, 9, oom=True), False, False, "service-oom"),
        (Outcome(-1, 0), False, False, "service-lost"),
        (Outcome(127, 0, failure="exec", error=errno.ENOENT), False, True, "service-exec"),
        (Outcome(127, 0, failure="clone", error=errno.EAGAIN), False, False, "service-exec"),
        (Outcome(0, 0, leftover=True), False, True, "service-daemonised"),
        (Outcome(0, 0, leftover=True, ran=60), True, False, ""),
        (Outcome(-1, 15, cause=("service-unhealthy", "ill")), False, False, "service-unhealthy"),
        (Outcome(5, 0, step=0), False, False, "service-exit"),
    ],
)
def test_ends(outcome, good, final, slug):
    found = verdict(unit("permanent-failure = [64]"), outcome)
    assert (found.good, found.final, found.slug) == (good, final, slug)


def test_a_forking_service_must_leave_a_process_and_may_end():
    forking = unit("type = 'forking'")
    assert verdict(forking, Outcome(0, 0, ready=False)).slug == "service-not-ready"
    assert verdict(forking, Outcome(0, 0, leftover=True)) == Verdict(True)
    assert verdict(forking, Outcome(3, 0, leftover=True)).slug == "service-exit"


def test_a_notifying_service_that_ends_well_before_it_was_ready_has_failed():
    assert verdict(unit("type = 'notify'"), Outcome(0, 0, ready=False)).slug == "service-not-ready"


GOOD, BAD, FINAL = Verdict(True), Verdict(False, False, "x", "x"), Verdict(False, True, "x", "x")


@pytest.mark.parametrize(
    ("more", "rest", "result", "state"),
    [
        ("restart = 'no'", "", GOOD, State.DONE),
        ("restart = 'no'", "", BAD, State.FAILED),
        ("restart = 'on-failure'", "", GOOD, State.DONE),
        ("restart = 'on-failure'", "", BAD, State.BACKOFF),
        ("restart = 'always'", "", GOOD, State.BACKOFF),
        ("restart = 'always'", "", FINAL, State.FAILED),
        ("type = 'oneshot'", "[timer]\nevery = '1h'", GOOD, State.SCHEDULED),
        ("type = 'oneshot'", "[timer]\nevery = '1h'", BAD, State.SCHEDULED),
        ("type = 'oneshot'\nrestart = 'on-failure'", "[timer]\nevery = '1h'", BAD, State.BACKOFF),
        ("type = 'oneshot'\nrestart = 'on-failure'", "[timer]\nevery = '1h'", FINAL, State.SCHEDULED),
        ("", "[[socket]]\ntcp = 1", GOOD, State.LISTENING),
        ("restart = 'always'", "[[socket]]\ntcp = 1", GOOD, State.LISTENING),
        ("restart = 'no'", "[[socket]]\ntcp = 1", BAD, State.FAILED),
    ],
)
def test_what_follows(more, rest, result, state):
    assert following(unit(more, rest), result, Attempts(), 0.0) is state


def test_a_used_up_start_limit_is_the_end():
    attempts = Attempts(starts=(1.0, 2.0))
    one = unit("start-limit = { burst = 2, interval = '1m' }")
    assert following(one, BAD, attempts, 3.0) is State.FAILED
    assert following(one, BAD, attempts, 100.0) is State.BACKOFF
    more = "type = 'oneshot'\nrestart = 'on-failure'\nstart-limit = { burst = 2, interval = '1m' }"
    timed = unit(more, "[timer]\nevery = '1h'")
    assert following(timed, BAD, attempts, 3.0) is State.SCHEDULED  # the retries of one run, not the schedule


# -- timers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def wall(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        ("hourly", "2026-03-01T12:00:00", "2026-03-01T13:00:00"),
        ("hourly at :15", "2026-03-01T12:10:00", "2026-03-01T12:15:00"),
        ("daily at 04:00", "2026-03-01T03:59:59", "2026-03-01T04:00:00"),
        ("daily at 04:00", "2026-03-01T04:00:00", "2026-03-02T04:00:00"),
        ("weekly on sunday at 04:00", "2026-03-01T05:00:00", "2026-03-08T04:00:00"),
        ("monthly on 28 at 23:30", "2026-02-28T23:30:00", "2026-03-28T23:30:00"),
        ("daily at 02:30", "2026-03-28T12:00:00", "2026-03-29T03:30:00"),  # 02:30 does not exist that night
        ("daily at 02:30", "2026-10-25T02:30:00", "2026-10-26T02:30:00"),  # 02:30 comes twice that night
    ],
)
def test_calendar(berlin, text, after, expected):
    assert next_time(calendar(text), wall(after)) == wall(expected)


# case: D18
@pytest.mark.parametrize(
    ("minute", "begin", "shown"),
    [
        (15, "2026-04-05T00:30", ["01:15", "02:15", "03:15"]),  # at 02:00 it becomes 01:30 again
        (45, "2026-04-05T00:30", ["00:45", "01:45", "02:45"]),
        (0, "2026-04-05T00:30", ["01:00", "02:00", "03:00"]),
        (15, "2026-10-04T00:30", ["01:15", "03:15", "04:15"]),  # at 02:00 it becomes 02:30
        (45, "2026-10-04T00:30", ["00:45", "01:45", "02:45"]),
        (0, "2026-10-04T00:30", ["01:00", "03:00", "04:00"]),
    ],
)
def test_hours_where_summer_time_is_half_an_hour(monkeypatch, minute, begin, shown):
    monkeypatch.setenv("TZ", "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0")  # Lord Howe Island
    time.tzset()
    try:
        at, found = wall(begin), []
        for _ in shown:
            at = next_time(calendar(f"hourly at :{minute:02}"), at)
            found.append(f"{datetime.fromtimestamp(at):%H:%M}")
        assert found == shown
    finally:
        monkeypatch.undo()
        time.tzset()


def test_hours_go_on_where_one_is_repeated_or_left_out(berlin):
    for begin in ("2026-03-29T00:20", "2026-10-25T00:20"):
        at = wall(begin)
        for _ in range(5):
            following = next_time(calendar("hourly at :15"), at)
            assert following - at == 3600 or at == wall(begin)
            at = following


@given(st.integers(0, 4_000_000_000), st.sampled_from(["hourly at :59", "daily at 00:00", "weekly on monday at 12:00"]))
def test_the_next_time_is_later_and_not_too_late(after, text):
    assert after < next_time(calendar(text), float(after)) <= after + 8 * 86400


def clock(boot: float, text: str = "2026-06-01T12:00:00") -> Clock:
    return Clock(boot, wall(text))


def timer(**keys: object) -> Timer:
    return Timer.model_validate(keys)


def test_intervals_count_from_the_last_start_and_ignore_the_wall_clock():
    every = timer(every="1h")
    armed = clock(100.0)
    assert remaining(every, Runs(armed), clock(100.0, "1999-01-01T00:00:00")) == 3600
    assert remaining(every, Runs(armed, boot=4000.0), clock(5000.0, "2099-01-01T00:00:00")) == 2600
    assert remaining(every, Runs(armed, boot=4000.0), clock(9000.0)) == 0


def test_on_boot_runs_once():
    once = timer(**{"on-boot": "5m"})
    assert remaining(once, Runs(clock(10.0)), clock(60.0)) == 240
    assert remaining(once, Runs(clock(10.0)), clock(1000.0)) == 0
    assert remaining(once, Runs(clock(10.0), boot=300.0), clock(1000.0)) == float("inf")


def test_a_calendar_timer_follows_the_clock_when_it_is_set():
    daily, armed = timer(calendar="daily at 14:00"), clock(0.0)
    assert remaining(daily, Runs(armed), clock(60.0, "2026-06-01T13:00:00")) == 3600
    assert remaining(daily, Runs(armed), clock(60.0, "2026-06-01T14:00:01")) == 0  # set past the time: it is due
    assert remaining(daily, Runs(armed, 1.0, wall("2026-06-01T14:00:00")), clock(60, "2026-06-01T13:30:00")) == 88200
    # an hour back: not again today; years back (the clock had been wrong): by the new time
    assert remaining(daily, Runs(armed, 1.0, wall("2036-06-01T14:00:00")), clock(60, "2026-06-01T13:00:00")) == 3600


def test_a_clock_that_was_wrong_at_the_boot_runs_nothing_that_was_not_missed():
    """A device without a clock starts in 1970 and learns the time from the network."""
    armed = clock(5.0, "1970-01-01T12:00:05")
    noon = clock(60.0, "2026-06-01T12:00:00")
    last = wall("2026-05-31T14:00:00")
    for persistent in (True, False):
        daily = timer(calendar="daily at 14:00", persistent=persistent)
        assert remaining(daily, Runs(armed, None, last), clock(6.0, "1970-01-01T12:00:06")) == 7194
        assert remaining(daily, Runs(armed, None, last), noon) == 7200
        assert remaining(daily, Runs(armed), noon) == 7200
        assert (
            remaining(daily, Runs(armed, 20.0, wall("1970-01-01T14:00:00")), noon) == 7200
        )  # it ran at the wrong time
    daily = timer(calendar="daily at 14:00", persistent=True)
    assert remaining(daily, Runs(armed, None, wall("2026-05-30T14:00:00")), noon) == 0


def test_missed_runs_are_made_up_for_once_if_wanted():
    last = wall("2026-05-20T14:00:01")
    for persistent, expected in ((True, 0), (False, 7200)):
        daily = timer(calendar="daily at 14:00", persistent=persistent)
        assert remaining(daily, Runs(clock(5.0), None, last), clock(6.0)) == expected
    daily = timer(calendar="daily at 14:00", persistent=True)
    assert remaining(daily, Runs(clock(5.0), 6.0, wall("2026-06-01T12:00:00")), clock(7.0)) == 7200


# -- states, memory --------------------------------------------------------------------------------------------------


def test_every_state_can_be_left_and_reached_and_stopping_is_always_possible():
    assert set(TRANSITIONS) == set(State)
    assert {state for after in TRANSITIONS.values() for state in after} == set(State)
    for state in set(State) - RESTING - {State.STOPPING}:
        assert State.STOPPING in TRANSITIONS[state]


def test_memory_survives_and_damage_is_no_memory(tmp_path):
    memory = Memory(boot="b", state=State.BACKOFF, attempts=Attempts((1.0, 2.0), 3), step=2, launch=7)
    memory.write(tmp_path)
    assert Memory.read(tmp_path, "b") == memory
    assert Memory.read(tmp_path, "another boot") is None
    assert Memory.read(tmp_path / "none", "b") is None
    for damage in (b"", b"{}x", b'{"boot":"b","state":"flying"}', os.urandom(64)):
        (tmp_path / "memory.json").write_bytes(damage)
        assert Memory.read(tmp_path, "b") is None


def test_a_history_keeps_the_last_ends_and_none_twice(tmp_path):
    history = History()
    for number in range(KEPT + 5):
        end = End(id=str(number), at=1.0, ran=2.0, code=number, signal=0, oom=False, reason="", slug="")
        history = history.ended(end).ended(end)
    assert [end.code for end in history.ends] == list(range(5, KEPT + 5))
    history.write(tmp_path / "new" / "x.json")
    assert History.read(tmp_path / "new" / "x.json") == history
    (tmp_path / "new" / "x.json").write_bytes(b"\xff")
    assert History.read(tmp_path / "new" / "x.json") == History()


def test_unlimited_open_files_are_as_many_as_the_kernel_allows():
    """More it refuses, root's processes included (setrlimit(2))."""
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    assert [prepare._rlimit(name, -1) for name in ("nofile", "memlock")] == [most, (1 << 64) - 1]
    assert prepare._rlimit("nofile", 99) == 99


# case: B7
def test_an_environment_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "env").write_bytes(b"\xef\xbb\xbfA=1\r\n")
    assert prepare.environment_file(tmp_path / "env") == {"A": "1"}


# case: D20
@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\r"])
def test_only_newlines_end_a_line_of_an_environment_file(tmp_path, odd):
    path = tmp_path / "env"
    path.write_bytes(f"A=x{odd}B=y\r\nC=z{odd}.\n".encode())
    assert prepare.environment_file(path) == {"A": f"x{odd}B=y", "C": f"z{odd}."}


def test_environment_files(tmp_path):
    path = tmp_path / "env"
    path.write_text('# comment\n\nA=1\n B=\'x y\' \nC=""\nD=a=b\nE={"a": "b"} # c\n')
    assert prepare.environment_file(path) == {"A": "1", "B": "x y", "C": "", "D": "a=b", "E": '{"a": "b"} # c'}
    for bad in (b"A\n", b"1A=2\n", b"A-B=2\n", b"\xff", b"A=" + b"x" * 70_000, b'A="1" # why\n', b'A="1\n2"\n', b"A='"):
        path.write_bytes(bad)
        with pytest.raises(ConfigError) as caught:
            prepare.environment_file(path)
        assert caught.value.reason == "unit-environment"


@pytest.mark.parametrize("kind", ["pipe", "device", "link of a stranger"])
# case: H2
def test_an_environment_file_is_waited_for_by_nobody(tmp_path, kind):
    path = tmp_path / "env"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        (tmp_path / "roots").write_text("SECRET=1\n")
        path.symlink_to("/dev/zero" if kind == "device" else "roots")
    if kind == "link of a stranger":
        if os.geteuid() != 0:
            pytest.skip("links of others are made by root")
        os.lchown(path, 12345, 12345)
    with pytest.raises(ConfigError) as caught:
        prepare.environment_file(path)
    assert caught.value.reason == "unit-environment"


@pytest.mark.skipif(os.geteuid() != 0, reason="folders are given away by root")
# case: H12
def test_a_folder_in_which_root_keeps_something_is_given_to_nobody(tmp_path):
    who = Account(65534, 65534, (), "nobody", "/")
    folder = tmp_path / "own"
    prepare._make(folder, who, 0o750)
    (folder / "file").touch()
    prepare._make(folder, who, 0o750)
    os.chown(folder, 0, 0)
    with pytest.raises(ConfigError) as caught:
        prepare._make(folder, who, 0o750)
    assert (caught.value.reason, folder.stat().st_uid) == ("unit-folder", 0)


# case: H17
def test_a_number_that_is_anothers_by_now_is_not_killed(monkeypatch):
    """It was the service's when the processes were looked for."""
    other = os.fork()
    if not other:
        signal.pause()
    try:
        monkeypatch.setattr(leftovers, "session", lambda main: iter([other]))
        assert leftovers.kill(ProcessId(other, 1))
        os.kill(other, signal.SIGTERM)  # comes after the other one, had that been sent
        assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == -signal.SIGTERM
    finally:
        with suppress(ProcessLookupError):
            os.kill(other, signal.SIGKILL)
