"""Unit files: what they may say, how mistakes are reported, which text stays in force."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from common import toml, values
from common.errors import ConfigError
from common.values import signal_name, signal_number
from daemon.core import rpc
from daemon.parts.service.load import MAX_MESSAGE, LastGood, Loaded, load, parse_unit
from daemon.parts.service.states import State
from daemon.parts.service.unit import Unit

ROOT = Path(__file__).resolve().parents[2]
HELLO = "[unit]\ndescription = 'says hello'\n[service]\ncommand = ['/usr/bin/hello', '--forever']\nrestart = 'always'\n"


def parsed(text: str) -> Unit:
    return parse_unit(text, Path("hello.toml"))


def test_a_unit_with_everything():
    unit = parsed(
        HELLO.replace("[service]", "after-exit = ['setup']\non-failure = ['mail']\n[service]")
        + """
type = "notify"
pre-start = [["/bin/mkdir", "-p", "/run/x"]]
restart-delay = "250ms"
start-limit = { burst = 3, interval = "1m30s" }
permanent-failure = [64]
stop-signal = "INT"
umask = "0077"
rlimits = { nofile = "1024:4096", core = 0, as = "1G", memlock = "unlimited" }
capabilities = ["CAP_NET_BIND_SERVICE"]
environment = { LANG = "C" }
[health]
http = "http://[::1]:8080/health?x=1"
every = "1m"
action = "report"
[limits]
memory = "64M"
cpu = 150
io-max = [{ device = "/dev/vda", read = "1M" }]
[[socket]]
name = "web"
tcp = "[::]:80"
[[socket]]
name = "api"
unix = "/run/hello.sock"
mode = "0660"
"""
    )
    service = unit.service
    assert service is not None
    assert (service.restart_delay, service.start_limit.interval, service.stop_signal) == (0.25, 90, 2)
    assert service.umask == 0o077
    assert dict(service.rlimits) == {
        "nofile": (1024, 4096),
        "core": (0, 0),
        "as": (1 << 30, 1 << 30),
        "memlock": (-1, -1),
    }
    assert unit.unit.after_exit == ("setup",)
    assert (unit.limits.memory, unit.limits.cpu, unit.limits.io_max[0].read) == (64 << 20, 150, 1 << 20)
    assert unit.socket[0].tcp == ("::", 80)
    assert unit.socket[1].mode == 0o660
    assert unit.readiness.how == "notify"


def test_defaults():
    unit = parsed("[service]\ncommand = ['/bin/true']\n")
    assert unit.service is not None
    assert (unit.service.restarts, unit.service.ready_timeout, unit.readiness.how) == ("on-failure", 60, "started")
    oneshot = parsed("[service]\ncommand = ['/bin/true']\ntype = 'oneshot'\n").service
    assert oneshot is not None
    assert (oneshot.restarts, oneshot.ready_timeout) == ("no", None)
    assert not unit.unit.enabled


SYSTEMS = (  # names of the system's own, and the line of the mistake
    ("runtime-directory = 'mixos'\n", 6),
    ("runtime-directory = 'sshd'\n", 6),
    ("runtime-directory = 'ntpd.pid'\n", 6),
    ("state-directory = 'mixos'\n", 6),
    ("type = 'forking'\npid-file = '/run/mixos/mixosd.lock'\n", 7),
    ("[[socket]]\nunix = '/run/mixos/mixosd.sock'\n", 7),
    ("[[socket]]\nunix = '//run/mixos/mixosd.sock'\n", 7),
)


@pytest.mark.parametrize(
    ("text", "reason", "place"),
    [
        ("[service]\ncommand = 'x'\n", "config-value", ":2:1:"),
        ("[service]\ncommand = []\n", "config-value", ":2:1:"),
        ("[service]\ncommand = ['hello']\n", "config-value", ":2:1:"),
        ("[service]\ncommand = ['/usr/../bin/x']\n", "config-value", ":2:1:"),
        ('[service]\ncommand = ["/bin/x", "\\u0000"]\n', "config-value", ":2:1:"),
        ("[service]\n", "config-missing-key", ":1:1:"),
        ("[service]\ncomand = ['/bin/x']\n", "config-unknown-key", "did you mean 'command'?"),
        (HELLO + "restart-delay = 'soon'\n", "config-value", ":6:1:"),
        (HELLO + "umask = 18\n", "config-value", ":6:1:"),
        (HELLO + "rlimits = { nofile = '9:3' }\n", "config-value", ":6:1:"),
        (HELLO + "rlimits = { files = 3 }\n", "config-value", ":6:1:"),
        (HELLO + "environment = { 'A-B' = 'x' }\n", "config-value", ":6:1:"),
        (HELLO + "stop-signal = 'TERMINATE'\n", "config-value", ":6:1:"),
        (HELLO + "permanent-failure = [0]\n", "config-value", ":6:1:"),
        (HELLO + "[limits]\nmemory = '64X'\n", "config-value", ":7:1:"),
        (HELLO + "[limits]\npids = 0\n", "config-value", ":7:1:"),
        (HELLO + "[ready]\nhow = 'fd:2'\n", "config-value", ":7:1:"),
        (HELLO + "[ready]\nhow = 'tcp:host:80'\n", "config-value", ":7:1:"),
        (HELLO + "[ready]\nhow = 'exec'\n", "config-value", ":6:1:"),
        (HELLO + "[health]\nhttp = 'https://127.0.0.1/'\n", "config-value", ":7:1:"),
        (HELLO + "[health]\nhttp = 'http://example/'\n", "config-value", ":7:1:"),
        (HELLO + "[health]\ntcp = 80\nexec = ['/bin/x']\n", "config-value", ":6:1:"),
        (HELLO + "[[socket]]\nname = 'a'\n", "config-value", ":6:1:"),
        (HELLO + "[[socket]]\ntcp = 1\n[[socket]]\ntcp = 2\n", "unit-contradiction", ":6:1:"),
        (HELLO + "[timer]\nevery = '1h'\n", "unit-contradiction", ":6:1:"),
        (HELLO + "[timer]\n", "config-value", ":6:1:"),
        (HELLO + "type = 'forking'\npid-file = '/tmp/x.pid'\n", "config-value", ":7:1:"),
        (HELLO + "pid-file = '/run/x.pid'\n", "unit-contradiction", ":3:1:"),
        (HELLO + "type = 'forking'\nsandbox = 'service'\n", "unit-contradiction", ":3:1:"),
        *((HELLO + text, "config-value", f":{line}:1:") for text, line in SYSTEMS),
        (HELLO + "sandbox = 'service'\nstate-directory = 'x'\n", "unit-contradiction", ":3:1:"),
        (HELLO + "type = 'forking'\n[ready]\nhow = 'fd:3'\n", "unit-contradiction", ":3:1:"),
        ("[service]\ncommand = ['/bin/x']\ntype = 'oneshot'\n[health]\ntcp = 1\n", "unit-contradiction", ":1:1:"),
        ("[limits]\npids = 3\n", "unit-contradiction", ":1:1:"),
        ("[ready]\nhow = 'fd:3'\n", "unit-contradiction", ":1:1:"),
        ("[unit]\nafter = ['A b']\n", "config-value", ":2:1:"),
        ("[unit\n", "config-syntax", "hello.toml"),
    ],
)
# case: H12
def test_mistakes_say_where(text: str, reason: str, place: str):
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert caught.value.reason == reason
    assert place in caught.value.message


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=200) | st.sampled_from([HELLO + "x = 1", HELLO[:60], HELLO.replace("'", '"', 1)]))
def test_any_text_is_a_unit_or_a_config_error(text: str):
    problem = None
    try:
        parsed(text)
    except ConfigError as error:
        problem = error.message
    assert problem is None or problem.startswith("hello.toml")


@settings(deadline=None, max_examples=300)
@given(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.lists(st.integers(), max_size=2)
)
@pytest.mark.parametrize("reader", ["size", "duration", "signal_number", "mode", "rlimit", "address", "calendar"])
def test_any_value_is_read_or_refused(reader: str, value: object):
    with contextlib.suppress(ValueError):
        getattr(values, reader)(value)


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("1h30m", 5400), ("2d", 172800), (3, 3), (0.5, 0.5)])
def test_durations(text: object, seconds: float):
    assert values.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "1.5", "-1s", "400d", "1h 30m", True, None, -1, float("nan")])
def test_what_is_no_duration(text: object):
    with pytest.raises(ValueError):
        values.duration(text)


# -- folders of units ------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("lib", "etc"):
        (tmp_path / name).mkdir()
    return tmp_path / "lib", tmp_path / "etc"


def put(folder: Path, name: str, about: str = "") -> None:
    path = folder / f"{name}.toml"
    path.write_text(f"[unit]\n{about}\n")
    path.chmod(0o644)


def test_a_local_unit_replaces_the_shipped_one(folders):
    lib, etc = folders
    put(lib, "a", "description = 'shipped'")
    put(lib, "b")
    put(etc, "a", "description = 'local'")
    loaded = load(folders, {})
    assert (sorted(loaded.units), loaded.broken) == (["a", "b"], {})
    assert loaded.units["a"].unit.unit.description == "local"


def test_a_broken_file_leaves_the_older_text_in_force(folders):
    _, etc = folders
    put(etc, "a", "description = 'old'")
    put(etc, "b", "requires = ['a']")
    before = load(folders, {})
    put(etc, "a", "descripton = 'new'")
    after = load(folders, before.units)
    assert after.units == before.units
    assert "did you mean 'description'?" in after.broken["a"]
    alone = load(folders, {})
    assert sorted(alone.units) == ["b"]  # what requires a broken unit is itself sound


# case: D2
@pytest.mark.parametrize("key", ["requires", "wants", "after", "before", "after-exit", "conflicts", "on-failure"])
def test_unknown_names_are_told_with_a_suggestion_and_only_what_is_required_is_fatal(folders, key):
    put(folders[1], "network")
    put(folders[1], "a", f"{key} = ['netwrok']")
    loaded = load(folders, {})
    told, silent = (loaded.broken, loaded.missing) if key == "requires" else (loaded.missing, loaded.broken)
    assert sorted(loaded.units) == (["network"] if key == "requires" else ["a", "network"])
    assert "a.toml:2:1: " in told["a"]
    assert "did you mean 'network'?" in told["a"]
    assert not silent


# case: D19
def test_a_long_cycle_and_long_lists_of_mistakes_are_told_shortly(folders):
    for number in range(1000):
        put(folders[1], f"u{number}", f"after = ['u{(number + 1) % 1000}']")
    put(folders[1], "wrong", "\n".join(f"key{number} = 1" for number in range(1000)))
    loaded = load(folders, {})
    assert "(1000 units)" in loaded.broken["u0"]
    assert len(loaded.broken) == 1001
    assert max(map(len, loaded.broken.values())) <= MAX_MESSAGE
    assert rpc.encode_result(1, {"broken": dict(loaded.broken)})  # else it would raise


def test_a_cycle_is_named_in_full_and_takes_only_its_members(folders):
    _, etc = folders
    put(etc, "a", "after = ['b']")
    put(etc, "b", "requires = ['c']")
    put(etc, "c", "after-exit = ['a']")
    put(etc, "d", "after = ['a']")
    loaded = load(folders, {})
    assert sorted(loaded.units) == ["d"]
    assert all("a → b → c → a" in loaded.broken[name] for name in "abc")


def test_who_closes_a_cycle_is_the_broken_one(folders):
    _, etc = folders
    put(etc, "a")
    put(etc, "b", "after = ['a']")
    before = load(folders, {})
    put(etc, "a", "after = ['b']")
    after = load(folders, before.units)
    assert after.units == before.units
    assert list(after.broken) == ["a"]


# case: D21
@pytest.mark.parametrize(
    "text",
    [
        "[unit]\nafter = ['OK']\n",
        "[service]\ncommand = ['/x']\nstate-directory = 'a/b'\n",
        "[service]\ncommand = ['/x']\ncapabilities = ['x']\n",
        "[service]\ncommand = '/x'\n",
        "[service]\ncommand = ['/x']\n[[socket]]\ntcp = 1\n[timer]\n[limits]\nio-max = 3\n",
        f"[service]\ncommand = {['/x'] * 1500}\n",
    ],
)
def test_mistakes_are_told_in_plain_words(text):
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert not re.search(r"pattern|\^|tuple|dict|argv|validation|instance", caught.value.message)


def test_itself(folders):
    put(folders[1], "a", "after = ['a']")
    assert "itself" in load(folders, {}).broken["a"]


@pytest.mark.parametrize("name", ["Über", "a.b", "-x", "x" * 49])
def test_bad_names(folders, name):
    put(folders[1], name)
    assert name in load(folders, {}).broken


def test_a_file_that_others_may_write_is_refused(folders):
    put(folders[1], "a")
    (folders[1] / "a.toml").chmod(0o666)
    assert "a" in load(folders, {}).broken


def test_the_last_good_texts(folders, tmp_path):
    _, etc = folders
    kept = LastGood(tmp_path / "kept")
    put(etc, "a", "description = 'good'")
    put(etc, "b")
    kept.write(load(folders, {}).units)
    put(etc, "a", "descripton = 'bad'")
    (etc / "b.toml").unlink()
    found = LastGood(tmp_path / "kept").read(etc)
    assert sorted(found) == ["a", "b"]
    assert found["a"].path == etc / "a.toml"
    loaded = load(folders, found)
    assert loaded.units["a"].unit.unit.description == "good"
    kept.write(loaded.units)
    assert sorted(kept.read(etc)) == ["a"]


def test_missing_folders_hold_no_units(tmp_path):
    assert load([tmp_path / "x", tmp_path / "y"], {}) == Loaded()


def test_shipped_units_are_sound():
    loaded = load([ROOT / "daemon" / "units"], {})
    assert loaded.units
    assert not loaded.broken
    for one in loaded.units.values():
        assert toml.loads(one.text)
        assert one.unit.unit.description


# -- the page about units --------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "services.md").read_text()


@pytest.mark.parametrize("text", re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
def test_examples_of_the_page_are_units(text: str):
    parsed(text)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object, bool]]:
    """(dotted key, default, required) of every value that a unit file may have."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = nested(field.annotation)
        if inner is None:
            yield key, field.default, field.is_required()
        else:
            yield from keys(inner, f"{key}.")


def nested(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := nested(one))), None)


ROWS = {
    row[0]: row for row in re.findall(r"^\| `([a-z-]+(?:\.[a-z0-9-]+)+)` \| (.*?) ?\| (.*) \|$", PAGE, re.MULTILINE)
}


def test_every_key_is_described_with_its_default_and_no_other():
    expected = {key: (default, required) for key, default, required in keys(Unit)}
    assert set(ROWS) == set(expected)
    for key, (default, required) in expected.items():
        text = ROWS[key][2]
        assert required == (text == "required"), key
        if found := re.fullmatch(r"`([^`]+)`", text):
            written = toml.loads(f"x = {found[1]}")["x"]
            reader = {
                "service.umask": values.mode,
                "socket.mode": values.mode,
                "service.stop-signal": values.signal_number,
            }
            written = reader[key](written) if key in reader else written
            assert (tuple(written) if isinstance(written, list) else written) == default, key


def test_every_state_is_described():
    assert set(re.findall(r"^\| `([a-z]+)` \| .* \| .* \|$", PAGE, re.MULTILINE)) == {state.value for state in State}


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGHUP", 1), ("9", 9), (9, 9), ("RTMIN+1", signal.SIGRTMIN + 1),
     ("SIGRTMAX-2", signal.SIGRTMAX - 2), ("RTMIN", signal.SIGRTMIN), ("RTMIN+0", signal.SIGRTMIN)],
)  # fmt: skip
def test_signals(text, number):
    assert signal_number(text) == number
    assert signal_number(signal_name(number)) == number


@pytest.mark.parametrize(
    "text", ["", "0", "65", "-1", "+9", "TERM+1", "RTMIN+64", "RTMAX-64", "sigterm", "_DFL", True, None, 9.0]
)
def test_what_is_no_signal(text):
    with pytest.raises(ValueError, match="expected"):
        signal_number(text)
