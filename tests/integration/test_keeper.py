"""The keeper restarts a system on trial that does not get well, and leaves every other alone.

It runs in a PID namespace of its own, in which a shell is the init that it asks for a restart; what it has the
kernel do with its log is seen in a mount namespace.
"""

from pathlib import Path

import pytest

from buildsys.run import run
from tests.native import native

pytestmark = pytest.mark.integration

# As BusyBox's init: SIGTERM is a restart. A second of trial; the keeper looks each second.
INIT = """
mount -t tmpfs none /sys/module && mkdir -p {parameters} && echo N >{parameters}/always_kmsg_dump || exit 9
trap 'read -r kept <{parameters}/always_kmsg_dump; echo "restarted, log kept: $kept"; exit 7' TERM
"$1" "$2/no-watchdog" 4 "$2/trial" || exit 9
tries=0
while [ $tries -lt {tenths} ]; do sleep 0.1; tries=$((tries + 1)); {action} done
echo left alone
""".replace("{parameters}", "/sys/module/printk/parameters")


def outcome(tmp_path: Path, tenths: int, action: str = "") -> str:
    script = INIT.replace("{tenths}", str(tenths)).replace("{action}", action)
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    return run([*apart, "sh", "-c", script, "init", native("keeper"), tmp_path], allow=(0, 7), timeout=60).text.strip()


def uptime() -> int:
    return int(float(Path("/proc/uptime").read_text().split()[0]))


def test_a_trial_that_is_over_ends_in_a_restart(tmp_path):
    (tmp_path / "trial").write_text(f"{uptime() + 1}\n")
    assert outcome(tmp_path, 200) == "restarted, log kept: 1"


def test_a_trial_goes_on_until_its_time(tmp_path):
    (tmp_path / "trial").write_text(f"{uptime() + 600}\n")
    assert outcome(tmp_path, 15) == "left alone"


def test_what_is_well_is_left_alone(tmp_path):
    """The daemon has removed the file before its time came."""
    (tmp_path / "trial").write_text(f"{uptime() + 3}\n")
    assert outcome(tmp_path, 45, action=f'rm -f "{tmp_path}/trial";') == "left alone"


@pytest.mark.parametrize("content", [None, "", "\n", "-5\n", "soon\n", "0\n"])
def test_without_a_time_there_is_no_trial(tmp_path, content):
    if content is not None:
        (tmp_path / "trial").write_text(content)
    assert outcome(tmp_path, 15) == "left alone"


@pytest.mark.parametrize("words", [[], ["/dev/null"], ["/dev/null", "x", "/t"], ["/dev/null", "2", "/t"]])
def test_wrong_words(words):
    done = run([native("keeper"), *words], allow=(2,))
    assert done.text.startswith("usage: keeper")
