"""Supervision end to end: real shims, real processes, and a daemon that is killed at every step."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from common.errors import ConfigError, MixosError
from daemon.core.part import Context
from daemon.parts.service import prepare
from daemon.parts.service.load import parse_unit
from daemon.parts.service.logs import Query, Reader
from daemon.parts.service.service import Service
from daemon.parts.service.states import State
from daemon.parts.service.timer import Clock
from tests.supervision import (
    QUICK,
    SLEEP,
    Heard,
    alive,
    as_root,
    ends,
    lines,
    managed,
    places,
    reach,
    shell,
    unit,
)
from tests.waiting import PATIENCE, eventually

pytestmark = pytest.mark.integration
S = State


# -- lives -----------------------------------------------------------------------------------------------------------


def test_order_of_start_and_stop_and_what_failure_does(place: Context):
    log = place.log / "order"

    def logged(name: str, about: str) -> str:
        return shell(
            f'echo +{name} >>{log}; echo >&3; trap "echo -{name} >>{log}; exit 0" TERM; while :; do sleep 0.05; done',
            unit_=about,
            rest="[ready]\nhow = 'fd:3'",
        )

    unit(place, "base", logged("base", ""))
    unit(place, "mid", logged("mid", "requires = ['base']"))
    unit(place, "top", logged("top", "requires = ['mid']\nwants = ['extra']"))
    unit(place, "extra", logged("extra", "after = ['top']"))

    async def main() -> None:
        async with managed(place) as manager:
            plan = manager.begin(["top"])
            assert plan.steps == (("base",), ("mid",), ("top",), ("extra",))
            await reach(manager.services["extra"], S.RUNNING)
            await manager.halt(["base"])
            assert manager.services["extra"].state is S.RUNNING  # wanted, and ordered, but not requiring
        assert log.read_text().split() == ["+base", "+mid", "+top", "+extra", "-top", "-mid", "-base", "-extra"]

    asyncio.run(main())


def test_a_required_unit_that_fails_takes_down_what_requires_it_and_starts_its_helper(place: Context):
    flag = place.log / "flag"
    unit(
        place,
        "base",
        shell(
            f"until test -e {flag}; do sleep 0.05; done; exit 9", more="restart = 'no'", unit_="on-failure = ['helper']"
        ),
    )
    unit(place, "top", shell(SLEEP, unit_="requires = ['base']"))
    unit(place, "wanting", shell(SLEEP, unit_="wants = ['base']\nafter = ['base']"))
    unit(place, "helper", shell("exit 0", kind="oneshot"))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["top", "wanting"])
            for name in ("top", "wanting"):
                await reach(manager.services[name], S.RUNNING)
            flag.touch()
            await reach(manager.services["top"], S.FAILED)
            assert manager.services["top"].memory.slug == "service-dependency"
            assert manager.services["base"].memory.slug == "service-exit"
            assert manager.services["wanting"].state is S.RUNNING
            await reach(manager.services["helper"], S.DONE)
            flag.unlink()
            manager.begin(["top"])
            await reach(manager.services["top"], S.RUNNING)
        assert ends(place, "base")[0] == (9, 0)

    asyncio.run(main())


def test_after_exit_waits_for_the_end_and_conflicts_exclude(place: Context):
    unit(place, "setup", shell("sleep 0.3; exit 0", kind="oneshot"))
    unit(place, "work", shell(SLEEP, unit_="wants = ['setup']\nafter-exit = ['setup']"))
    unit(place, "rival", shell(SLEEP, unit_="conflicts = ['work']"))

    async def main() -> None:
        async with managed(place) as manager:
            heard = Heard(place)
            await asyncio.sleep(0)
            manager.begin(["work"])
            await reach(manager.services["work"], S.RUNNING)
            assert manager.services["setup"].state is S.DONE
            manager.begin(["rival"])
            await reach(manager.services["rival"], S.RUNNING)
            assert manager.services["work"].state is S.INACTIVE
            assert heard.states("work") == ["waiting", "starting", "running", "stopping", "inactive"]
            heard.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("script", "more", "rest", "slug", "end"),
    [
        ("exit 3", "restart = 'no'", "", "service-exit", (3, 0)),
        ("exit 3", QUICK + "start-limit = { burst = 4, interval = '1m' }", "", "start-limit", (3, 0)),
        ("exit 64", QUICK + "permanent-failure = [64]", "", "service-exit", (64, 0)),
        ("kill -SEGV $$", "restart = 'no'\nrlimits = { core = 0 }", "", "service-signal", (-1, 11)),
        ("sleep 1000 & exit 0", "", "", "service-daemonised", (0, 0)),
        (SLEEP, "restart = 'no'\nstart-timeout = '200ms'", "[ready]\nhow = 'fd:3'", "service-not-ready", (-1, 15)),
        (SLEEP, "restart = 'no'\nstart-timeout = '200ms'", "[ready]\nhow = 'exec'\ncommand = ['/bin/false']",
         "service-not-ready", (-1, 15)),
        ("exit 0", "restart = 'no'\npre-start = [['/bin/sh', '-c', 'exit 5']]", "", "service-exit", (5, 0)),
    ],
)  # fmt: skip
def test_bad_services(place: Context, script: str, more: str, rest: str, slug: str, end: tuple[int, int]):
    unit(place, "bad", shell(script, more=more, rest=rest))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["bad"])
            bad = await reach(manager.services["bad"], S.FAILED)
            assert bad.memory.slug == slug
            assert ends(place, "bad")[-1] == end
            await eventually(lambda: not (bad.folder / "control").exists())  # its shim goes, too
        assert len(ends(place, "bad")) == (4 if slug == "start-limit" else 1)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("[service]\ncommand = ['/nonexistent/program']\n", "program-missing"),
        ("[service]\ncommand = ['/etc/passwd']\n", "program-missing"),
        ("[service]\ncommand = ['/bin/true']\nuser = 'nobody-at-all'\n", "unit-user"),
        ("[service]\ncommand = ['/bin/true']\nenvironment-file = '/nonexistent'\n", "unit-environment"),
        ("[service]\ncommand = ['/bin/true']\nuser = 'nobody'\nsandbox = 'network'\n", "unit-sandbox"),
        ("[service]\ncommand = ['/bin/true']\nworking-directory = '/nonexistent'\n", "service-exec"),
    ],
)
def test_what_cannot_start_fails_at_once_and_check_says_so(place: Context, text: str, slug: str):
    unit(place, "bad", text)

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["bad"])
            assert (await reach(manager.services["bad"], S.FAILED)).memory.slug == slug
            if slug != "service-exec":
                assert [one["reason"] for one in manager.check() if one["level"] == "error"] == [slug]

    asyncio.run(main())


# case: H3
def test_a_unit_does_not_run_without_what_confines_it(place: Context):
    """Neither the firewall nor storage is there, and their files have something to enforce for two of these units."""
    mark = place.log / "ran"
    for name in ("ruled", "limited", "free"):
        unit(place, name, shell(f"echo {name} >>{mark}; {SLEEP}"))
    (place.etc / "firewall.toml").write_text('[units.ruled]\noutgoing = ["https"]\n')
    (place.state / "storage").mkdir()
    (place.state / "storage/quotas.json").write_text('{"limited": {"project": 1000, "limit": 4096}}')
    passed: list[str] = []

    async def gate(name: str) -> None:
        passed.append(name)

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["ruled", "limited", "free"])
            await reach(manager.services["free"], S.RUNNING)
            for name, part in (("ruled", "firewall"), ("limited", "storage")):
                service = await reach(manager.services[name], S.FAILED)
                assert service.memory.reason.startswith(f"{name} must not run without {part}")
                assert service.memory.slug == "gate-missing"
            place.gates.open("firewall", gate)
            manager.begin(["ruled"])
            await reach(manager.services["ruled"], S.RUNNING)
            await eventually(lambda: mark.read_text().split() == ["free", "ruled"])
        assert passed == ["ruled"]

    asyncio.run(main())


def test_each_step_is_prepared_once(place: Context, monkeypatch: pytest.MonkeyPatch):
    made: list[tuple[str, int]] = []
    real = Service.specify

    def counting(self: Service) -> object:
        made.append((self.name, self.memory.step))
        return real(self)

    monkeypatch.setattr(Service, "specify", counting)
    before = "pre-start = [['/bin/true'], ['/bin/true']]\n"
    unit(place, "plain", shell(SLEEP))
    unit(place, "steps", shell(SLEEP, more=before))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["plain", "steps"])
            for name in ("plain", "steps"):
                await reach(manager.services[name], S.RUNNING)
            assert sorted(made) == [("plain", 0), ("steps", 0), ("steps", 1), ("steps", 2)]
            made.clear()
            await manager.restart(["plain"])
            await reach(manager.services["plain"], S.RUNNING)
            assert made == [("plain", 0)]

    asyncio.run(main())


def test_one_that_ignores_sigterm_and_one_that_floods_its_log_still_stop(place: Context):
    unit(place, "deaf", shell("trap '' TERM; echo >&3; while :; do sleep 1; done", more="stop-timeout = '200ms'",
                              rest="[ready]\nhow = 'fd:3'"))  # fmt: skip
    unit(place, "flood", shell("while :; do echo flood; done", rest="[logs]\nrate = 100\nsize = '64K'\nkeep = 2"))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["deaf", "flood"])
            for name in ("deaf", "flood"):
                await reach(manager.services[name], S.RUNNING)
            flood = manager.services["flood"]
            await eventually(lambda: flood.known is not None and flood.known.populated)
            folder = place.log / "units" / "flood"
            await eventually(lambda: any(b" s dropped " in path.read_bytes() for path in folder.iterdir()))
            await manager.halt(["deaf", "flood"])
            assert ends(place, "deaf") == [(-1, 9)]
            assert ends(place, "flood") == [(-1, 15)]
            assert sum(path.stat().st_size for path in folder.iterdir()) <= 3 * (64 << 10)
            assert flood.known is not None
            assert flood.known.dropped > 0

    asyncio.run(main())


# -- readiness, health, watchdog, sockets, timers --------------------------------------------------------------------


def python(code: str) -> str:
    """A command in TOML that runs a piece of Python."""
    return f"['{sys.executable}', '-I', '-c', '''{code}''']"


NOTIFY = """import os,socket,time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ["NOTIFY_SOCKET"])
s.send(b"STATUS=warming up"); time.sleep(0.2); s.send(b"READY=1\\nSTATUS=serving"); time.sleep(1000)"""


def test_each_kind_of_readiness(place: Context, port: int):
    flag = place.log / "flag"
    listen = f"import socket,time; time.sleep(0.2); s=socket.create_server(('127.0.0.1',{port})); time.sleep(1000)"
    unit(place, "fd", shell(f"sleep 0.2; echo >&3; {SLEEP}", rest="[ready]\nhow = 'fd:3'"))
    unit(place, "notify", f"[service]\ntype = 'notify'\ncommand = {python(NOTIFY)}\n")
    unit(place, "tcp", f"[service]\ncommand = {python(listen)}\n[ready]\nhow = 'tcp:{port}'\ninterval = '50ms'\n")
    asking = f"[ready]\nhow = 'exec'\ncommand = ['/bin/ls', '{flag}']\ninterval = '50ms'\n"
    unit(place, "exec", shell(f"sleep 0.2; touch {flag}; {SLEEP}", rest=asking))
    unit(place, "milestone", f"[unit]\nafter = ['exec']\n{asking}")
    names = ["fd", "notify", "tcp", "exec", "milestone"]

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(names)
            for name in names:
                assert manager.services[name].state in (S.WAITING, S.STARTING)
            for name in names:
                await reach(manager.services[name], S.RUNNING)
            assert manager.services["notify"].known is not None
            assert manager.services["notify"].known.status == "serving"
            assert flag.exists()
            with socket.create_connection(("127.0.0.1", port)):
                pass

    asyncio.run(main())


SLOW = """import os,signal,socket,sys,time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ["NOTIFY_SOCKET"])
def end(*_):
    s.send(b"EXTEND_TIMEOUT_USEC=100000000"); time.sleep(1); sys.exit(7)
signal.signal(signal.SIGTERM, end); s.send(b"READY=1"); time.sleep(1000)"""


def test_a_stop_waits_for_a_service_that_asks_for_time_also_when_the_daemon_is_another_one(place: Context):
    keys = "type = 'notify'\nstop-timeout = '300ms'\nrestart = 'no'"
    for name in ("one", "two"):
        unit(place, name, f"[service]\n{keys}\ncommand = {python(SLOW)}\n")

    async def main() -> None:
        async with managed(place, leave=True) as manager:
            manager.begin(["one", "two"])
            for name in ("one", "two"):
                await reach(manager.services[name], S.RUNNING)
            await manager.halt(["one"])
            assert ends(place, "one") == [(7, 0)]
            manager.services["two"].stop()
            known = lambda: manager.services["two"].known  # noqa: E731  # what it says changes
            await eventually(lambda: known() is not None and known().until - known().since > 50)
        async with managed(place) as manager:
            await reach(manager.services["two"], S.INACTIVE)
        assert ends(place, "two") == [(7, 0)]

    asyncio.run(main())


def test_health_restarts_or_reports_and_the_watchdog_bites(place: Context):
    sick, ill = place.log / "sick", place.log / "ill"
    check = "[health]\nexec = ['/bin/sh', '-c', '! test -e {}']\nevery = '50ms'\nthreshold = 2\n"
    unit(place, "heal", shell(f"rm -f {sick}; {SLEEP}", more=QUICK, rest=check.format(sick)))
    unit(place, "tell", shell(SLEEP, rest=f"{check.format(ill)}action = 'report'"))
    unit(place, "silent", shell(SLEEP, more="watchdog = '200ms'\nrestart = 'no'"))

    async def main() -> None:
        async with managed(place) as manager:
            heard = Heard(place)
            await asyncio.sleep(0)
            manager.begin(["heal", "tell", "silent"])
            for name in ("heal", "tell"):
                await reach(manager.services[name], S.RUNNING)
            silent = await reach(manager.services["silent"], S.FAILED)
            assert silent.memory.slug == "service-watchdog"
            sick.touch()
            ill.touch()
            await eventually(lambda: heard.states("heal").count("running") == 2)
            await eventually(lambda: "unhealthy" in heard.states("tell"))
            ill.unlink()
            await reach(manager.services["tell"], S.RUNNING)
            assert len(ends(place, "tell")) == 0
            assert manager.services["heal"].history.ends[0].slug == "service-unhealthy"
            heard.close()

    asyncio.run(main())


SERVE = """import socket,os
s = socket.socket(fileno=3)
assert os.environ["LISTEN_FDS"] == "1" and os.environ["LISTEN_FDNAMES"] == "web", os.environ
c, _ = s.accept(); c.sendall(str(os.getpid()).encode()); c.close()"""


def test_socket_activation_outlives_the_service_and_the_daemon(place: Context):
    path = place.run / "web.sock"
    unit(
        place,
        "web",
        f"[service]\ncommand = {python(SERVE)}\n[[socket]]\nname = 'web'\nunix = '{path}'\nmode = '0660'\n",
    )

    def ask() -> int:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            return int(client.recv(100))

    async def main() -> None:
        async with managed(place, leave=True) as manager:
            manager.begin(["web"])
            web = await reach(manager.services["web"], S.LISTENING)
            assert path.stat().st_mode & 0o777 == 0o660
            assert web.known is not None
            assert web.known.starts == 0
            first = await asyncio.to_thread(ask)
            await reach(web, S.LISTENING)
            assert first != await asyncio.to_thread(ask)
            await reach(web, S.LISTENING)
        inode = path.stat().st_ino
        with socket.socket(socket.AF_UNIX) as waiting:  # no daemon is there: it waits in the backlog
            waiting.connect(str(path))
            async with managed(place) as manager:
                waiting.settimeout(PATIENCE)
                assert await asyncio.to_thread(waiting.recv, 100)
                await reach(manager.services["web"], S.LISTENING)
                assert path.stat().st_ino == inode
        assert ends(place, "web") == [(0, 0)] * 3

    asyncio.run(main())


def test_units_that_are_not_well_are_found(place: Context):
    unit(place, "good", shell(SLEEP))
    unit(place, "broken", "[service]\n")
    unit(place, "again", shell("exit 1", more="restart-delay = '1h'\nrestart-delay-max = '1h'"))
    for number in range(7):
        unit(place, f"f{number}", shell("exit 1", more="restart = 'no'"))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(names := [*manager.services])
            for name in names:
                await reach(manager.services[name], {"good": S.RUNNING, "again": S.BACKOFF}.get(name, S.FAILED))
            assert {one.text.partition(": ")[2] for one in manager.findings()} == {
                "f0, f1, f2, f3, f4 and 2 more", "again", "broken",
            }  # fmt: skip
            assert {(one.check, one.state) for one in manager.findings()} == {("units", "warning")}
            for name in names:
                await manager.halt([name])
            (place.etc / "units" / "broken.toml").unlink()
            await manager.reload()
            assert not list(manager.findings())

    asyncio.run(main())


def test_the_first_datagram_starts_a_service_and_waits_for_it(place: Context, port: int):
    take = "import os,socket; print([socket.socket(fileno=3 + n).recv(10) for n in range(2)], flush=True)"
    name = f"@{place.run.parents[1].name}"
    sockets = f"[[socket]]\nudp = {port}\n[[socket]]\nname = 'b'\nunix = '{name}'\ndatagram = true\n"
    unit(place, "web", f"[service]\ncommand = {python(take)}\n{sockets}")

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["web"])
            web = await reach(manager.services["web"], S.LISTENING)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.sendto(b"two", "\0" + name[1:])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"one", ("127.0.0.1", port))
            await eventually(lambda: ends(place, "web") == [(0, 0)])
            await reach(web, S.LISTENING)
        said = [
            record.text for record in Reader(place.log / "units").read(Query(("web",), streams=frozenset({"stdout"})))
        ]
        assert said == ["[b'one', b'two']"]

    asyncio.run(main())


def test_a_service_that_never_accepts_is_not_started_for_ever(place: Context):
    path = place.run / "web.sock"
    limit = "start-limit = { burst = 3, interval = '1m' }"
    unit(place, "web", shell("exit 0", more=limit, rest=f"[[socket]]\nunix = '{path}'"))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["web"])
            await reach(manager.services["web"], S.LISTENING)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                assert (await reach(manager.services["web"], S.FAILED)).memory.slug == "start-limit"
            await eventually(lambda: not path.exists())

    asyncio.run(main())


def test_timers_follow_the_clocks(place: Context):
    unit(place, "often", shell("echo x >>$OUT", kind="oneshot", more=f"environment = {{ OUT = '{place.log}/often' }}",
                               rest="[timer]\nevery = '100ms'"))  # fmt: skip
    unit(place, "nightly", shell("exit 4", kind="oneshot", rest="[timer]\ncalendar = 'daily at 04:00'"))

    async def main() -> None:
        async with managed(place) as manager:
            nightly = manager.services["nightly"]
            now = Clock.now()
            glances: list[Clock] = []

            def clock() -> Clock:
                glances.append(now)
                return now

            nightly.clock = clock
            manager.begin(["often", "nightly"])
            await reach(nightly, S.SCHEDULED)
            await eventually(lambda: lines(place.log / "often") >= 3)
            assert ends(place, "nightly") == []
            now = Clock(now.boot, now.wall + 86400)  # somebody sets the clock, which was wrong
            nightly.wake()
            await eventually(lambda: glances[-1] == now)
            assert (nightly.state, ends(place, "nightly")) == (S.SCHEDULED, [])
            now = Clock(now.boot + 86400, now.wall + 86400)  # a day passes
            nightly.wake()  # instead of waiting for its next glance
            await eventually(lambda: ends(place, "nightly") == [(4, 0)])
            assert (await reach(nightly, S.SCHEDULED)).memory.slug == "service-exit"
            now = Clock(now.boot, now.wall - 3600)  # and back
            nightly.wake()
            await eventually(lambda: glances[-1] == now)
            assert (nightly.state, ends(place, "nightly")) == (S.SCHEDULED, [(4, 0)])
            manager.begin(["nightly"], now=True)
            await eventually(lambda: len(ends(place, "nightly")) == 2)

    asyncio.run(main())


# case: D3
@pytest.mark.parametrize("program", ["/bin/false", "/nonexistent/program"])
def test_a_schedule_outlives_the_retries_of_a_run(place: Context, program: str):
    service = f"command = ['{program}']\ntype = 'oneshot'\nrestart = 'on-failure'\nstart-limit = {{ burst = 3 }}"
    unit(place, "probe", f"[service]\n{service}\n{QUICK}[timer]\nevery = '300ms'\n")

    async def main() -> None:
        async with managed(place) as manager:
            probe, heard = manager.services["probe"], Heard(place)
            manager.begin(["probe"])
            await eventually(lambda: heard.states("probe").count("scheduled") > 2)
            heard.close()
            assert heard.states("probe").count("starting") > (3 if program == "/bin/false" else 1)
            await eventually(lambda: probe.state is S.SCHEDULED and bool(probe.memory.slug))
            assert probe.memory.slug == ("start-limit" if program == "/bin/false" else "program-missing")

    asyncio.run(main())


# case: D4
def test_a_failed_run_of_a_timer_is_told(place: Context):
    about = "on-failure = ['alarm']"
    unit(place, "probe", shell("test -e $OK", kind="oneshot", more=f"environment = {{ OK = '{place.log}/ok' }}",
                               unit_=about, rest="[timer]\nevery = '1h'"))  # fmt: skip
    unit(place, "alarm", shell("echo x >>$OUT", kind="oneshot", more=f"environment = {{ OUT = '{place.log}/alarm' }}"))
    unit(place, "base", shell(SLEEP, unit_="requires = ['probe']"))

    async def main() -> None:
        async with managed(place) as manager:
            probe = manager.services["probe"]
            manager.begin(["base"])
            await reach(manager.services["base"], S.RUNNING)
            assert not probe.failed
            manager.begin(["probe"], now=True)
            await eventually(lambda: lines(place.log / "alarm") == 1)
            assert (probe.state, probe.memory.slug, manager.status()["failed"]) == (
                S.SCHEDULED,
                "service-exit",
                ["probe"],
            )
            assert manager.services["base"].state is S.RUNNING  # the schedule that it requires is there
            probe.forget()
            assert (probe.state, manager.status()["failed"]) == (S.SCHEDULED, [])
            manager.begin(["probe"], now=True)
            await eventually(lambda: lines(place.log / "alarm") == 2)
            (place.log / "ok").touch()
            manager.begin(["probe"], now=True)
            await eventually(lambda: ends(place, "probe")[-1:] == [(0, 0)])
            await eventually(lambda: probe.state is S.SCHEDULED)
            assert not probe.failed

    asyncio.run(main())


# -- files -----------------------------------------------------------------------------------------------------------


def test_reload_applies_what_differs_and_nothing_that_is_broken(place: Context):
    unit(place, "same", shell(SLEEP))
    unit(place, "policy", shell(SLEEP))
    unit(place, "process", shell(SLEEP))
    unit(place, "gone", shell(SLEEP))
    unit(place, "broken", shell(SLEEP))
    names = ["same", "policy", "process", "gone", "broken"]

    async def main() -> None:
        async with managed(place, leave=True) as manager:
            manager.begin(names)
            for name in names:
                await reach(manager.services[name], S.RUNNING)
            pids = {name: one.known and one.known.main.pid for name, one in manager.services.items()}
            unit(place, "policy", shell(SLEEP, more="restart = 'always'"))
            unit(place, "process", shell(SLEEP, more="nice = 5"))
            unit(place, "broken", "[service]\ncommand = ['sleep']\n")
            unit(place, "new", shell(SLEEP, unit_="requires = ['same']"))
            (place.etc / "units" / "gone.toml").unlink()
            found = await manager.reload()
            assert [*found.pop("refused")] == ["broken"]
            assert found == {
                "added": ["new"],
                "changed": ["policy", "process"],
                "removed": ["gone"],
                "restarted": ["process"],
                "broken": ["broken"],
            }
            await reach(manager.services["process"], S.RUNNING)
            now = {name: one.known and one.known.main.pid for name, one in manager.services.items()}
            assert [name for name in pids if now.get(name) == pids[name]] == ["broken", "policy", "same"]
            assert not alive(pids["gone"] or 0)
            assert manager.services["policy"].policy.restarts == "always"
        (place.etc / "units" / "same.toml").unlink()
        async with managed(place) as manager:  # the broken file still has its older text; the lost one runs on
            for name in ("broken", "same"):
                assert manager.services[name].state is S.RUNNING
                assert name in manager.loaded.broken
            assert (await manager.reload())["removed"] == ["same"]

    asyncio.run(main())


# case: D2
def test_a_unit_outlives_what_it_only_mentions(place: Context):
    """Whether a reload finds it gone, or the next boot; after it is back all is as it was."""
    unit(place, "db", shell(SLEEP))
    unit(place, "web", shell(SLEEP, unit_="wants = ['db']\nafter = ['db']"))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["web"])
            for name in ("db", "web"):
                await reach(manager.services[name], S.RUNNING)
            known = manager.services["web"].known
            (place.etc / "units" / "db.toml").unlink()
            assert (await manager.reload())["removed"] == ["db"]
            assert manager.services["web"].state is S.RUNNING
            assert manager.services["web"].known == known
            assert "'db'" in manager.loaded.missing["web"]
        (place.run / "units").rename(place.run / "old")  # as after a boot
        async with managed(place) as manager:
            assert manager.begin(["web"]).missing == ("db",)
            await reach(manager.services["web"], S.RUNNING)
            unit(place, "db", shell(SLEEP))
            await manager.reload()
            assert not manager.loaded.missing
            assert manager.begin(["web"]).names == ("db", "web")

    asyncio.run(main())


# case: D22
def test_a_reload_names_the_units_that_it_had_to_give_up(place: Context):
    """Once: the next one has nothing new to say of them."""
    unit(place, "db", shell(SLEEP))
    unit(place, "odd", "[service]\n")
    path = unit(place, "web", shell(SLEEP, unit_="requires = ['db']"))

    async def main() -> None:
        async with managed(place) as manager:
            (place.etc / "units" / "db.toml").unlink()
            found = await manager.reload()
            assert (found["broken"], [*found["refused"]]) == (["odd", "web"], ["web"])
            assert found["refused"]["web"].startswith(f"{path}:")
            assert (await manager.reload())["refused"] == {}

    asyncio.run(main())


def test_enabling_is_kept(place: Context):
    unit(place, "shipped", shell(SLEEP, unit_="enabled = true"), shipped=True)
    unit(place, "local", shell(SLEEP))

    async def main() -> None:
        async with managed(place) as manager:
            manager.set_enabled(["shipped"], False)
            manager.set_enabled(["local"], True)
            with pytest.raises(MixosError) as caught:
                manager.set_enabled(["locl"], True)
            assert caught.value.reason == "unit-unknown"
        (place.run / "units").rename(place.run / "old")  # as after a boot
        async with managed(place) as manager:
            await reach(manager.services["local"], S.RUNNING)
            assert manager.services["shipped"].state is S.INACTIVE
            manager.set_enabled(["shipped"], True)
            manager.set_enabled(["local"], False)
            assert (place.etc / "enabled.toml").read_text() == "enable = []\ndisable = []\n"

    asyncio.run(main())


@as_root
def test_what_a_service_gets(place: Context):
    out = place.log / "out"
    (place.etc / "env").write_text("FROM_FILE=1\nGIVEN=no\n")
    script = """pwd; umask; nice; ulimit -n; stat -c %u:%g:%a $STATE_DIRECTORY; id -u; id -G
echo "$FROM_FILE $GIVEN $RUNTIME_DIRECTORY $STATE_DIRECTORY $MIXOS_UNIT" """
    unit(
        place,
        "x",
        shell(
            f"({script}) >{out} 2>&1",
            kind="oneshot",
            more=f"""user = 'nobody'
umask = '0027'
nice = 7
rlimits = {{ nofile = 99 }}
working-directory = '/usr'
environment = {{ GIVEN = 'yes' }}
environment-file = '{place.etc}/env'
runtime-directory = 'x-run'
state-directory = 'x-state'
""",
        ),
    )
    out.touch()
    out.chmod(0o666)
    for folder in (place.run.parents[1], place.log):
        folder.chmod(0o755)

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["x"])
            await reach(manager.services["x"], S.DONE)
        run_, state = place.run.parent / "x-run", place.state.parent / "x-state"
        nobody, group = 65534, 65534
        assert out.read_text().splitlines() == [
            "/usr", "0027", "7", "99", f"{nobody}:{group}:750", f"{nobody}", f"{group}", f"1 yes {run_} {state} x",
        ]  # fmt: skip

    asyncio.run(main())


BOXED = """import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ["NOTIFY_SOCKET"])
with open(os.environ["STATE_DIRECTORY"] + "/seen", "w") as f:
    print(os.getpid() < 10, os.getuid(), os.path.exists("/etc/shadow"), os.environ["EXTRA"], file=f)
s.send(b"READY=1"); time.sleep(1000)"""


def test_a_service_in_a_sandbox_is_supervised_like_any_other(place: Context):
    keys = "type = 'notify'\nuser = 'nobody'\nsandbox = 'service'\nstate-directory = 'boxed'"
    more = "restart = 'no'\nenvironment = { EXTRA = 'yes' }"
    unit(place, "x", f"[service]\ncommand = ['/usr/bin/python3', '-I', '-c', '''{BOXED}''']\n{keys}\n{more}\n")
    for folder in (place.run.parents[1], place.state.parent):
        folder.chmod(0o755)

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["x"])
            await reach(manager.services["x"], S.RUNNING, S.FAILED)
            said = [record.text for record in Reader(place.log / "units").read(Query(("x",)))]
            assert manager.services["x"].state is S.RUNNING, said
            assert (place.state.parent / "boxed" / "seen").read_text() == "True 65534 False yes\n"
            await manager.halt(["x"])
        assert ends(place, "x") in ([(-1, 15)], [(143, 0)])  # the launcher tells a signal as a shell does

    asyncio.run(main())


@as_root
def test_a_service_without_an_account_has_a_name_and_a_home_in_its_sandbox(place: Context):
    """What root's are is of no use to it; what the unit says counts."""
    ask = "import os,pwd; e=os.environ; print(pwd.getpwuid(os.getuid())[0], e['USER'], e['LOGNAME'], e['HOME'])"
    for name, more in (("plain", ""), ("own", "environment = { HOME = '/tmp' }")):
        command = f"['/usr/bin/python3', '-I', '-c', '''{ask}''']"
        unit(place, name, f"[service]\ntype = 'oneshot'\ncommand = {command}\nsandbox = 'service'\n{more}\n")
    place.run.parents[1].chmod(0o755)

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["plain", "own"])
            for name, home in (("plain", "/"), ("own", "/tmp")):
                await reach(manager.services[name], S.DONE, S.FAILED)
                said = [record.text for record in Reader(place.log / "units").read(Query((name,)))]
                assert f"sandbox sandbox sandbox {home}" in said, said

    asyncio.run(main())


# case: H4
def test_variables_give_a_unit_no_more_than_its_unit_file(place: Context):
    """Its environment file lies in a folder that it writes."""
    (place.etc / "env").write_text("STATE_DIRECTORY=/var/lib/other\nMIXOS_UNIT=other\nTZ=UTC\n")
    text = f"""[service]
command = ["/bin/true"]
user = "nobody"
sandbox = "service"
state-directory = "own"
environment-file = "{place.etc}/env"
environment = {{ RUNTIME_DIRECTORY = "/run/other" }}
"""
    own = place.state.parent / "own"
    (place.run / "units").mkdir()

    def policy() -> bytes:
        one = parse_unit(text, Path("x.toml"))
        found = prepare.specification("x", one, place, places(), step=0, group="", shims="")
        assert found.environment["STATE_DIRECTORY"] == str(own)
        assert (found.environment["MIXOS_UNIT"], found.environment["TZ"]) == ("x", "UTC")
        return (place.run / "units/x/sandbox.policy").read_bytes()

    assert str(own).encode() in policy()
    assert b"other" not in policy()
    text += f'working-directory = "/{"x" * 256}"\n'
    with pytest.raises(ConfigError) as caught:
        policy()
    assert caught.value.reason == "unit-sandbox"


# case: D5
@as_root
def test_a_service_in_a_sandbox_may_open_its_streams_again(place: Context):
    unit(place, "x", shell("read -r a </dev/stdin; echo o >/dev/stdout; echo e >/dev/stderr", kind="oneshot",
                           more="sandbox = 'service'\nrestart = 'no'"))  # fmt: skip

    async def main() -> None:
        async with managed(place) as manager:
            for run in (1, 2):  # each with another account, perhaps
                manager.begin(["x"])
                await reach(manager.services["x"], S.DONE, S.FAILED)
                found = Reader(place.log / "units").read(Query(("x",), streams=frozenset({"stdout", "stderr"})))
                assert sorted(record.text for record in found) == ["e"] * run + ["o"] * run

    asyncio.run(main())


AWAY = """import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): time.sleep(0.1); os._exit(0)
time.sleep(1000)"""


def test_a_service_that_goes_into_the_background_is_supervised_when_it_says_so(place: Context):
    unit(place, "away", f"[service]\ntype = 'forking'\nrestart = 'no'\ncommand = {python(AWAY)}\n")
    unit(place, "none", shell("exit 0", kind="forking", more="restart = 'no'"))
    unit(place, "fails", shell("sleep 1000 & exit 3", kind="forking", more="restart = 'no'"))

    async def main() -> None:
        async with managed(place, leave=True) as manager:
            manager.begin(["away", "none", "fails"])
            assert (await reach(manager.services["none"], S.FAILED)).memory.slug == "service-not-ready"
            assert (await reach(manager.services["fails"], S.FAILED)).memory.slug == "service-exit"
            await reach(manager.services["away"], S.RUNNING)
        async with managed(place) as manager:  # another daemon
            away = manager.services["away"]
            assert away.state is S.RUNNING
            await eventually(lambda: away.known is not None and away.known.main.pid and len(children(away)) == 1)
            await manager.halt(["away"])
        assert ends(place, "away") == [(-1, 15)]

    asyncio.run(main())


def children(service: Service) -> list[int]:
    """Processes of a shim."""
    assert service.known is not None
    shim = service.known.shim.pid
    return [int(pid) for pid in Path(f"/proc/{shim}/task/{shim}/children").read_text().split()]


@as_root
def test_a_pid_file_says_which_process_is_the_main_one(place: Context):
    path = Path(f"/run/mixos-test-{place.run.parents[1].name}.pid")
    path.write_text("1")  # an old one, of a process that is none of the service
    late = "sleep 1000 & sleep 1000 & (sleep 0.3; echo $! >$PID) & exit 0"
    more = f"pid-file = '{path}'\nrestart = 'no'\nenvironment = {{ PID = '{path}' }}"
    unit(place, "x", shell(late, kind="forking", more=more))
    unit(place, "mute", shell("sleep 1000 & exit 0", kind="forking", more=f"{more}\nstart-timeout = '300ms'"))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["x"])
            x = await reach(manager.services["x"], S.RUNNING)
            assert x.known is not None
            main = x.known.main.pid
            assert main == int(path.read_text())
            os.kill(main, signal.SIGKILL)
            await reach(x, S.FAILED)
            assert ends(place, "x") == [(-1, 9)]
            manager.begin(["mute"])
            assert (await reach(manager.services["mute"], S.FAILED)).memory.slug == "service-not-ready"
            assert not path.exists()

    try:
        asyncio.run(main())
    finally:
        path.unlink(missing_ok=True)


@as_root
def test_checks_run_as_the_service_does(place: Context):
    for folder in (place.run.parents[1], place.log):
        folder.chmod(0o755)
    for name in ("ready", "health"):
        (place.log / name).touch()
        (place.log / name).chmod(0o666)
    check = "{ id -u; id -G; echo $GIVEN $MIXOS_UNIT; cat /proc/self/cgroup; } >%s"
    rest = f"""[ready]
how = "exec"
command = ["/bin/sh", "-c", "{check % (place.log / "ready")}"]
[health]
exec = ["/bin/sh", "-c", "{check % (place.log / "health")}"]
every = "50ms"
"""
    unit(place, "x", shell(SLEEP, more="user = 'nobody'\nenvironment = { GIVEN = 'yes' }", rest=rest))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["x"])
            x = await reach(manager.services["x"], S.RUNNING)
            await eventually(lambda: lines(place.log / "health") > 3)
            for name in ("ready", "health"):
                said = (place.log / name).read_text().splitlines()
                assert said[:3] == ["65534", "65534", "yes x"]
                if not manager.no_cgroups:
                    assert any(line.endswith("/x/check") for line in said[3:])
            assert x.state is S.RUNNING

    asyncio.run(main())


def test_a_check_that_hangs_leaves_nothing_behind(place: Context):
    pids = place.log / "pids"
    asking = f"echo $$ >>{pids}; sleep 1000 & echo $! >>{pids}; wait"
    health = f"[health]\nexec = ['/bin/sh', '-c', '{asking}']\nevery = '50ms'\ntimeout = '200ms'\nthreshold = 2"
    unit(place, "x", shell(SLEEP, more="restart = 'no'", rest=health))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["x"])
            assert (await reach(manager.services["x"], S.FAILED)).memory.slug == "service-unhealthy"
        assert lines(pids) == 4
        await eventually(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))

    asyncio.run(main())


@pytest.mark.parametrize("full", ["services", "units"])
def test_a_disk_that_takes_nothing_stops_no_unit(place: Context, full: str):
    (place.state / full).write_text("")  # no file can be made where a folder should be
    out = place.log / "runs"
    unit(place, "x", shell(f"echo >>{out}; test $(wc -l <{out}) = 1 && exit 5; {SLEEP}", more=QUICK))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["x"])
            await eventually(lambda: lines(out) == 2)
            x = await reach(manager.services["x"], S.RUNNING)
            assert [(end.code, end.signal) for end in x.history.ends] == [(5, 0)]

    asyncio.run(main())


def test_what_cannot_start_is_not_stopped_by_a_restart(place: Context):
    unit(place, "a", shell(SLEEP))
    unit(place, "b", shell(SLEEP, unit_="conflicts = ['a']"))

    async def main() -> None:
        async with managed(place) as manager:
            manager.begin(["a"])
            await reach(manager.services["a"], S.RUNNING)
            with pytest.raises(MixosError) as caught:
                await manager.restart(["a", "b"])
            assert caught.value.reason == "unit-conflict"
            assert manager.services["a"].state is S.RUNNING

    asyncio.run(main())
