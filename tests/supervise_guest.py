"""Runs inside the guest, as root: limits of units that only a kernel with all cgroup v2 controllers enforces.

    ssh root@guest python3 - < tests/supervise_guest.py

Ends with 0 and one line of JSON per check, or with a traceback. Standard library and `mixctl` only.
"""

import json
import os
import pathlib
import time

UNITS = pathlib.Path("/etc/mixos/units")
PREFIX = "check-"
SHELL = "[service]\ncommand = ['/bin/sh', '-c', '''{}''']\nrestart = 'no'\n{}\n"
PYTHON = "[service]\ncommand = ['/usr/bin/python3', '-I', '-c', '''{}''']\nrestart = 'no'\n{}\n"
BOMB = "f() { f | f & }; f; exec sleep 1000"
CHECKS = {
    # name: unit, state it comes to, slug
    "hog": (PYTHON.format("x = bytearray(512 << 20)", "[limits]\nmemory = '48M'\nswap = 0"), "failed", "service-oom"),
    "bomb": (SHELL.format(BOMB, "stop-timeout = '1s'\n[limits]\npids = 24"), "running", ""),
    "spin": (SHELL.format("while :; do :; done", "[limits]\ncpu = 10"), "running", ""),
    "flood": (
        PYTHON.format(
            'while True: print("flood" * 20)', "[limits]\ncpu = 15\n[logs]\nrate = 100\nsize = '64K'\nkeep = 2"
        ),
        "running",
        "",
    ),
    "deaf": (SHELL.format("trap '' TERM; while :; do sleep 1; done", "stop-timeout = '1s'"), "running", ""),
}


def mixctl(*words):
    """The parsed answer of `mixctl service WORDS --json`; None when it failed."""
    with os.popen("mixctl service " + " ".join(words) + " --json 2>/dev/null") as stream:  # noqa: S605  # no word is anybody else's
        text = stream.read()
    return json.loads(text) if text else None


def reach(name, state):
    for _ in range(300):
        facts = mixctl("show", name)
        if facts["state"] == state:
            return facts
        time.sleep(0.2)
    raise AssertionError(f"{name} is {facts['state']} ({facts['reason']}), not {state}")


def main():
    UNITS.mkdir(parents=True, exist_ok=True)
    names = [PREFIX + name for name in CHECKS]
    for name, (text, _, _) in CHECKS.items():
        path = UNITS / f"{PREFIX}{name}.toml"
        path.write_text(text)
        path.chmod(0o644)
    try:
        assert set(mixctl("reload")["added"]) >= set(names)
        for name, (_, state, slug) in CHECKS.items():
            mixctl("start", PREFIX + name)
            facts = reach(PREFIX + name, state)
            assert facts["not_enforced"] == [], facts["not_enforced"]
            assert facts["slug"] == slug, facts
            print(json.dumps({"check": name, "state": facts["state"], "slug": facts["slug"]}), flush=True)
        time.sleep(3.0)
        bomb, spin = (mixctl("show", PREFIX + name) for name in ("bomb", "spin"))
        assert 0 < bomb["usage"]["processes"] <= 24, bomb["usage"]
        assert spin["usage"]["cpu_throttled"] > 0, spin["usage"]
        assert mixctl("show", PREFIX + "hog")["ends"][0]["oom"] is True
        mixctl("stop", *names)
        for name in names:
            facts = reach(name, "inactive")
            assert not facts["usage"].get("processes"), facts["usage"]
        flood = mixctl("show", PREFIX + "flood")["log"]
        assert flood["dropped"] > 0, flood
        print(
            json.dumps({"check": "stopped", "deaf": mixctl("show", PREFIX + "deaf")["ends"][0]["signal"]}), flush=True
        )
    finally:
        for name in names:
            (UNITS / f"{name}.toml").unlink(missing_ok=True)
        mixctl("reload")


main()
