"""What the methods `metrics.*` answer."""

from typing import Annotated, Literal

from typing_extensions import TypedDict

from daemon.core.answers import Bytes, Celsius, Percent, Rate, Seconds, UnixTime

Text = Annotated[str, "the exposition format 0.0.4 of Prometheus"]
State = Literal["ok", "warning", "critical"]


class Cpu(TypedDict):
    """The processors."""

    count: Annotated[int, "how many there are"]
    percent: Annotated[Percent, "busy, of all processors together"]
    modes: Annotated[dict[str, Percent], "the kernel's modes (user, system, idle, iowait, …) → share of the time"]


class Memory(TypedDict):
    """Memory."""

    total: Annotated[Bytes, "all there is"]
    available: Annotated[Bytes, "what programs can have without swapping"]
    used: Annotated[Bytes, "the rest"]


class Swap(TypedDict):
    """Swap."""

    total: Annotated[Bytes, "all there is; 0 without swap"]
    used: Annotated[Bytes, "what is taken"]


class Space(TypedDict):
    """A file system that can be written to."""

    path: Annotated[str, "where it is mounted"]
    size: Annotated[Bytes, "all there is"]
    free: Annotated[Bytes, "what programs without special rights can still write"]


class Disk(TypedDict):
    """Traffic of a disk."""

    name: Annotated[str, "as the kernel calls it"]
    read: Annotated[Rate, "from it"]
    write: Annotated[Rate, "to it"]


class Interface(TypedDict):
    """Traffic of a network interface."""

    name: Annotated[str, "as the kernel calls it"]
    receive: Annotated[Rate, "in"]
    send: Annotated[Rate, "out"]


class Temperature(TypedDict):
    """A sensor."""

    name: Annotated[str, "chip and sensor"]
    celsius: Annotated[Celsius, "now"]
    high: Annotated[Celsius | None, "the sensor's own limit for a warning"]
    critical: Annotated[Celsius | None, "the sensor's own limit for damage"]


Unit = TypedDict(
    "Unit",
    {
        "name": Annotated[str, "the unit's name"],
        "cpu": Annotated[Percent | None, "of one processor; null when its cgroup does not tell"],
        "memory": Annotated[Bytes | None, "what it has; null as above"],
        "swap": Annotated[Bytes | None, "of its memory, what is swapped; null as above"],
        "tasks": Annotated[int | None, "processes and threads; null as above"],
        "read": Annotated[Rate, "from disks"],
        "write": Annotated[Rate, "to disks"],
        "oom-kills": Annotated[int | None, "processes that were killed for want of memory; null as above"],
    },
)


class Now(TypedDict):
    """Figures of the machine and its units."""

    at: Annotated[UnixTime, "when they were taken"]
    seconds: Annotated[Seconds, "over which shares and rates were measured"]
    uptime: Annotated[Seconds, "since the kernel started"]
    load: Annotated[list[float], "load averages over 1, 5 and 15 minutes"]
    cpu: Annotated[Cpu, "the processors"]
    memory: Annotated[Memory, "of the machine"]
    swap: Annotated[Swap, "of the machine"]
    filesystems: Annotated[list[Space], "that can be written to"]
    disks: Annotated[list[Disk], "their traffic"]
    network: Annotated[list[Interface], "their traffic"]
    temperatures: Annotated[list[Temperature], "what the sensors say"]
    units: Annotated[list[Unit], "what each unit uses, by name"]


class Process(TypedDict):
    """A process."""

    pid: Annotated[int, "its number"]
    name: Annotated[str, "as the kernel calls it: at most 15 bytes"]
    uid: Annotated[int, "whose it is"]
    state: Annotated[str, "the kernel's letter: R runs, S sleeps, D waits for a disk, Z has ended"]
    cpu: Annotated[Percent, "of one processor"]
    memory: Annotated[Bytes, "resident"]
    threads: Annotated[int, "how many it has"]


class Row(Process):
    """A process with its unit."""

    unit: Annotated[str | None, "the unit that it belongs to"]


Processes = TypedDict(
    "Processes",
    {
        "processes": Annotated[list[Row], "the first ones in the order that was asked for"],
        "process-count": Annotated[int, "how many there are"],
    },
)


class Tops(Now, Processes):
    """Figures, and processes."""


class History(TypedDict):
    """The record of the last hour."""

    step: Annotated[Seconds, "between rows"]
    columns: Annotated[list[str], "at (seconds since 1970), cpu (percent), memory (bytes), load, and traffic (bytes/s)"]
    rows: Annotated[list[list[float]], "a number per column, the oldest first"]


class Finding(TypedDict):
    """Something that is not well."""

    check: Annotated[str, "a stable word: memory, space, load, temperature, or what a part looks at, such as units"]
    state: Annotated[State, "how bad it is"]
    text: Annotated[str, "the same for people"]


class Health(TypedDict):
    """Whether the machine is well."""

    state: Annotated[State, "the worst of what was found"]
    findings: Annotated[list[Finding], "all that is not well"]


class EndpointState(TypedDict):
    """The Prometheus endpoint."""

    endpoint: Annotated[str | None, "address and port; null when it is off"]
