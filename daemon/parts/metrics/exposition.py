"""A sample as Prometheus text (exposition format 0.0.4): one family after the other, HELP, TYPE, then its samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from daemon.core.figures import Figures
from daemon.parts.metrics.health import STATES, health
from daemon.parts.metrics.sample import Sample

Labels = Mapping[str, str]
Rows = Iterable[tuple[Labels, float | None]]


def text(sample: Sample, release: Mapping[str, str], with_units: bool, others: Figures | None = None) -> str:
    """The whole document. release: the facts of /usr/lib/mixos/release; others: of other parts."""
    others = others or Figures()
    state = STATES.index(health(sample, others.findings())["state"])
    named = {family[0]: family for family in _families(sample, release, state, with_units)}
    for family in others.families():
        if with_units or not any("unit" in labels for labels, _ in family.rows):
            named.setdefault(family.name, (family.name, family.kind, family.help, family.rows))
    return "".join(_family(*family) for family in named.values())


def _families(
    sample: Sample, release: Mapping[str, str], state: int, with_units: bool
) -> Iterator[tuple[str, str, str, Rows]]:
    gauge, counter = "gauge", "counter"
    build = {"version": release.get("MIXOS_VERSION", ""), "kernel": release.get("MIXOS_KERNEL", "")}
    yield "mixos_build_info", gauge, "The image that runs.", [(build, 1)]
    yield "mixos_health_state", gauge, "0: ok, 1: warning, 2: critical.", [({}, state)]
    yield "mixos_uptime_seconds", gauge, "Time since the kernel started.", [({}, sample.uptime)]
    loads = zip(("1", "5", "15"), sample.load, strict=True)
    yield "mixos_load_average", gauge, "Load average.", [({"minutes": name}, value) for name, value in loads]
    yield "mixos_cpus", gauge, "Processors.", [({}, sample.cpus)]
    modes = [({"mode": mode}, value) for mode, value in sample.cpu.items()]
    yield "mixos_cpu_seconds_total", counter, "Processor time by mode.", modes
    memory = [({"kind": kind}, value) for kind, value in sample.memory.items()]
    yield "mixos_memory_bytes", gauge, "Memory.", memory
    yield "mixos_swap_bytes", gauge, "Swap.", [({"kind": kind}, value) for kind, value in sample.swap.items()]
    for name, field in (("size", "size"), ("free", "free")):
        rows = [({"path": space.path}, getattr(space, field)) for space in sample.spaces]
        yield f"mixos_filesystem_{name}_bytes", gauge, f"File systems that can be written to: {name}.", rows
    for name, field in (("read", "inward"), ("written", "outward")):
        rows = [({"disk": disk.name}, getattr(disk, field)) for disk in sample.disks]
        yield f"mixos_disk_{name}_bytes_total", counter, f"Bytes {name}.", rows
    traffic = {"receive_bytes": "inward", "transmit_bytes": "outward", "errors": "errors", "dropped": "dropped"}
    for name, field in traffic.items():
        rows = [({"interface": one.name}, getattr(one, field)) for one in sample.network]
        yield f"mixos_network_{name}_total", counter, f"Interfaces: {name.replace('_', ' ')}.", rows
    sensors = [({"sensor": one.name}, one.celsius) for one in sample.temperatures]
    yield "mixos_temperature_celsius", gauge, "Sensors.", sensors
    if with_units:
        yield from _units(sample)


def _units(sample: Sample) -> Iterator[tuple[str, str, str, Rows]]:
    fields = {
        "cpu_seconds_total": ("counter", "cpu", "Processor time."),
        "memory_bytes": ("gauge", "memory", "Memory."),
        "swap_bytes": ("gauge", "swap", "Swap."),
        "tasks": ("gauge", "tasks", "Processes and threads."),
        "read_bytes_total": ("counter", "read", "Bytes read from disks."),
        "written_bytes_total": ("counter", "written", "Bytes written to disks."),
        "oom_kills_total": ("counter", "oom_kills", "Processes killed for want of memory."),
    }
    for name, (kind, field, help_text) in fields.items():
        rows = [({"unit": unit}, getattr(figures, field)) for unit, figures in sample.units.items()]
        yield f"mixos_unit_{name}", kind, f"Units: {help_text}", rows


def _family(name: str, kind: str, help_text: str, rows: Rows) -> str:
    """One family; nothing at all when no sample of it is known. Names and help are ours, label values are not."""
    lines = []
    seen = set()
    for labels, value in rows:
        shown = ",".join(f'{label}="{_escape(content)}"' for label, content in labels.items())
        if value is not None and shown not in seen:  # two samples with the same labels would spoil the whole scrape
            seen.add(shown)
            lines.append(f"{name}{f'{{{shown}}}' if shown else ''} {value}\n")
    return f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n{''.join(lines)}" if lines else ""


def _escape(value: str) -> str:
    """A label's value: backslash, quote and newline are escaped; what is no text is replaced."""
    clean = value.encode("utf-8", "replace").decode()
    return clean.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
