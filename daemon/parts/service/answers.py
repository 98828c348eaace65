"""What the methods `service.*` answer."""

from typing import Annotated, Literal, NotRequired

from typing_extensions import TypedDict

from daemon.core.answers import Bytes, JsonObject, Nanoseconds, Seconds, UnixTime

State = Literal[
    "inactive", "waiting", "listening", "scheduled", "starting", "running", "unhealthy", "stopping", "backoff",
    "failed", "done",
]  # fmt: skip


class Unit(TypedDict):
    """A unit, in short."""

    name: Annotated[str, "the unit's name"]
    description: Annotated[str, "what it is, as its file says"]
    state: Annotated[State, "where it is"]
    since: Annotated[UnixTime, "when it entered its state; 0 when it was never in another one"]
    reason: Annotated[str, "why it is in its state"]
    slug: Annotated[str, "the same as a stable word"]
    pid: Annotated[int, "its main process; 0 when there is none"]
    memory: Annotated[Bytes | None, "what its processes have; null when they do not run, or nobody counts"]
    restarts: Annotated[int, "how often it was started again by itself"]
    enabled: Annotated[bool, "it is started at boot"]
    stale: Annotated[bool, "what runs was started with an older definition"]
    broken: Annotated[str | None, "what is wrong with its file; an older text is in force then"]


class Units(TypedDict):
    """All units."""

    units: Annotated[list[Unit], "by name"]
    broken: Annotated[dict[str, str], "unit → what is wrong with its file, of units that are not in force at all"]


Rows = list[Unit]


class First(TypedDict):
    """What comes before a unit."""

    up: Annotated[list[str], "units that are up before it starts"]
    ended: Annotated[list[str], "units that have ended before it starts"]


class Log(TypedDict):
    """What a unit says is kept here."""

    folder: Annotated[str, "where its files are"]
    dropped: Annotated[int, "lines above the rate that is allowed; of a long one, each piece counts"]
    lost: Annotated[int, "lines that could not be written"]


class Usage(TypedDict):
    """What a unit's processes use, together; null where the kernel does not count; no member without processes."""

    memory: NotRequired[Annotated[Bytes | None, "now"]]
    memory_peak: NotRequired[Annotated[Bytes | None, "the most so far"]]
    swap: NotRequired[Annotated[Bytes | None, "of its memory, what is swapped"]]
    processes: NotRequired[Annotated[int | None, "processes and threads"]]
    cpu_seconds: NotRequired[Annotated[Seconds | None, "processor time so far"]]
    cpu_throttled: NotRequired[Annotated[Seconds | None, "for how long its limit held it back"]]
    oom_kills: NotRequired[Annotated[int | None, "processes that were killed for want of memory"]]
    pressure: NotRequired[
        Annotated[dict[str, float], "cpu, io, memory → share of the last 10 s in which some process waited, 0 to 1"]
    ]


class End(TypedDict):
    """An end of its program."""

    id: Annotated[str, "what tells this end from all others"]
    at: Annotated[UnixTime, "when"]
    ran: Annotated[Seconds, "how long it had run"]
    code: Annotated[int, "the exit code; -1 when a signal ended it"]
    signal: Annotated[int, "the signal that ended it; 0 for none"]
    oom: Annotated[bool, "it was killed for want of memory"]
    reason: Annotated[str, "what the end means; empty when it was a good one"]
    slug: Annotated[str, "the same as a stable word"]


class Facts(Unit):
    """All there is to know about a unit."""

    file: Annotated[str, "where its definition is"]
    definition: Annotated[JsonObject, "the keys of its file that differ from the defaults; of variables only the names"]
    first: Annotated[First, "what comes before it"]
    needed_by: Annotated[list[str], "units that require it"]
    excludes: Annotated[list[str], "units that stop when it starts"]
    shim: Annotated[int, "the process above its main one; 0 when there is none"]
    cgroup: Annotated[str, "its control group; empty when it has none"]
    status: Annotated[str, "what it says of itself"]
    log: Annotated[Log, "where its log is"]
    usage: Annotated[Usage, "what it uses"]
    missing: Annotated[str | None, "units that it names and does not require, and that are not there"]
    not_enforced: Annotated[list[str], "limits that this kernel does not enforce"]
    next_run: Annotated[UnixTime | None, "when its timer starts it"]
    last_run: Annotated[UnixTime | None, "when its timer started it last"]
    ends: Annotated[list[End], "the last 20 ends, the newest first"]


class Graph(TypedDict):
    """What depends on what."""

    text: Annotated[str, "for people"]
    dot: Annotated[str, "for Graphviz"]
    order: Annotated[list[list[str]], "the steps of a start: units that start at the same time"]
    missing: Annotated[list[str], "units that are wanted, and are not there"]


class Problem(TypedDict):
    """Something that is wrong with a unit's file."""

    unit: Annotated[str, "the unit's name"]
    level: Annotated[
        Literal["error", "warning"],
        "warning: it runs, without limits that this host lacks, or units that are not there; or its file is not read",
    ]
    reason: Annotated[str, "a stable word"]
    message: Annotated[str, "the same for people"]


Problems = list[Problem]


class Stopped(TypedDict):
    """What became of a stop."""

    stopped: Annotated[list[str], "units that were active and have ended; empty when time was up"]
    units: Annotated[list[Unit], "those that were named"]


class Signal(TypedDict):
    """What was sent."""

    signal: Annotated[str, "its name, such as SIGTERM"]


class Reset(TypedDict):
    """What was forgotten."""

    reset: Annotated[list[str], "units that had failed: inactive now, or scheduled as before"]


class Enabled(TypedDict):
    """What is started at boot."""

    enabled: Annotated[list[str], "the units that were named"]


class Disabled(TypedDict):
    """What is not started at boot."""

    disabled: Annotated[list[str], "the units that were named"]


class Killed(TypedDict):
    """What a shutdown had to kill."""

    killed: Annotated[list[str], "units that had not ended in time"]


class Changes(TypedDict):
    """What the files of the units have changed."""

    added: Annotated[list[str], "units that are new"]
    changed: Annotated[list[str], "units that are other ones now"]
    removed: Annotated[list[str], "units that are gone, and were stopped"]
    restarted: Annotated[list[str], "units that ran, and whose process would be another one now"]
    broken: Annotated[list[str], "files that are wrong, and change nothing"]
    refused: Annotated[dict[str, str], "of these, units that were in order before → what is wrong; at most 20"]


class Reloaded(Changes):
    """What the files of the units have changed, and what is wrong with them."""

    messages: Annotated[dict[str, str], "unit → what is wrong with its file"]
    missing: Annotated[dict[str, str], "unit → units that it names and does not require, and that are not there"]


class Line(TypedDict):
    """A line that a service wrote, or its shim."""

    unit: Annotated[str, "whose it is"]
    realtime: Annotated[Nanoseconds, "since 1970, by the clock as it was then"]
    monotonic: Annotated[Nanoseconds, "since the boot"]
    boot: Annotated[str, "the first 8 digits of the boot's id"]
    stream: Annotated[Literal["stdout", "stderr", "shim"], "where it was written to"]
    text: Annotated[str, "the line; bytes that are not UTF-8 as \\xNN"]
    more: Annotated[bool, "the line goes on in the stream's next one"]
    fields: NotRequired[Annotated[JsonObject, "the line's own members, when it is a JSON object"]]
