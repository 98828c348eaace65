"""Control groups in a tree of plain files that behaves like the kernel's: what is written, read, and not enforced."""

from __future__ import annotations

import pytest

from daemon.linux import cgroup
from daemon.linux.cgroup import CgroupError, IoLimit, Limits, Tree

FILES = {
    "cpu": ("cpu.max", "cpu.weight"),
    "io": ("io.max", "io.weight"),
    "memory": ("memory.max", "memory.high", "memory.swap.max", "memory.oom.group"),
    "pids": ("pids.max",),
}
EVERYTHING = Limits(
    memory_max=64 << 20,
    memory_high=48 << 20,
    swap_max=0,
    pids_max=32,
    cpu=0.5,
    cpu_weight=50,
    io_weight=200,
    io=(IoLimit("8:0", read_bytes=1000), IoLimit("8:16", write_operations=5)),
)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A mounted hierarchy; returns a function that says which controllers its root has."""
    given = set(cgroup.CONTROLLERS)
    written = []

    def write(path, content):
        written.append((str(path.relative_to(tmp_path)), content))
        if path.name == "cgroup.subtree_control":
            old = path.read_text().split() if path.exists() else []
            if content[1:] not in given:
                return False
            path.write_text(" ".join(sorted({*old, content[1:]})))
            return True
        group = path.parent.parent / "cgroup.subtree_control"
        controller = path.name.split(".")[0]
        if controller == "cgroup":
            return path.parent.is_dir()
        if not group.exists() or controller not in group.read_text().split():
            return False
        path.write_text(content)
        return True

    monkeypatch.setattr(cgroup, "_write", write)
    (tmp_path / "cgroup.procs").touch()
    return tmp_path, given, written


def test_all_limits_are_written(kernel):
    root, _, _ = kernel
    tree = Tree(root / "mixos")
    assert tree.prepare() == ()
    leaf = tree.leaf("hello")
    assert leaf.limit(EVERYTHING) == ()
    content = {path.name: path.read_text() for path in leaf.path.iterdir()}
    assert content == {
        "memory.max": str(64 << 20),
        "memory.high": str(48 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "32",
        "cpu.max": "50000 100000",
        "cpu.weight": "50",
        "io.weight": "default 200",
        "io.max": "8:16 rbps=max wbps=max riops=max wiops=5",
    }


def test_limits_that_are_taken_back(kernel):
    root, _, written = kernel
    tree = Tree(root / "mixos")
    tree.prepare()
    leaf = tree.leaf("hello")
    leaf.limit(EVERYTHING)
    written.clear()
    assert leaf.limit(Limits()) == ()
    assert dict(written)["mixos/hello/memory.max"] == "max"
    assert dict(written)["mixos/hello/pids.max"] == "max"
    assert dict(written)["mixos/hello/cpu.max"] == "max 100000"
    assert dict(written)["mixos/hello/cpu.weight"] == "100"


@pytest.mark.parametrize("controller", cgroup.CONTROLLERS)
def test_missing_controller_is_named(kernel, controller):
    root, given, _ = kernel
    given.discard(controller)
    tree = Tree(root / "mixos")
    assert tree.prepare() == (controller,)
    assert set(tree.leaf("hello").limit(EVERYTHING)) == set(FILES[controller])
    assert tree.leaf("hello").limit(Limits()) == ()  # what nobody asked for is not missed


def test_refused_value_is_named(kernel, monkeypatch):
    root, _, _ = kernel
    tree = Tree(root / "mixos")
    tree.prepare()
    real = cgroup._write
    monkeypatch.setattr(cgroup, "_write", lambda path, text: "8:16" not in text and real(path, text))
    assert tree.leaf("hello").limit(EVERYTHING) == ("io.max",)


def test_no_processes_beside_groups(kernel):
    """No process is ever moved to a group that hands controllers down."""
    root, _, written = kernel
    tree = Tree(root / "mixos")
    tree.prepare()
    tree.own("shims")
    tree.leaf("hello").limit(EVERYTHING)
    assert [name for name, _ in written if name.endswith("cgroup.procs")] == []
    assert {name for name, _ in written if "subtree" in name} == {
        "cgroup.subtree_control",
        "mixos/cgroup.subtree_control",
    }


def test_no_hierarchy(tmp_path):
    with pytest.raises(CgroupError) as caught:
        Tree(tmp_path / "mixos").prepare()
    assert caught.value.reason == "cgroup-missing"
    assert not (tmp_path / "mixos").exists()


@pytest.mark.parametrize("unit", ["", ".", "..", ".shims", "a/b", "cgroup.procs", "a\nb"])
def test_names_that_are_none(kernel, unit):
    with pytest.raises(CgroupError) as caught:
        Tree(kernel[0] / "mixos").leaf(unit)
    assert caught.value.reason == "cgroup-name"


def test_usage(kernel):
    root, _, _ = kernel
    tree = Tree(root / "mixos")
    tree.prepare()
    leaf = tree.leaf("hello")
    for name, content in {
        "memory.current": "1048576\n",
        "memory.peak": "2097152\n",
        "memory.swap.current": "0\n",
        "memory.events": "low 0\nhigh 3\nmax 2\noom 1\noom_kill 1\noom_group_kill 0\n",
        "memory.pressure": "some avg10=12.50 avg60=1.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00\n",
        "pids.current": "7\n",
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\nsystem_usec 1\nnr_periods 0\nthrottled_usec 500000\n",
        "cgroup.events": "populated 1\nfrozen 0\n",
    }.items():
        (leaf.path / name).write_text(content)
    usage = leaf.usage()
    assert (usage.memory, usage.memory_peak, usage.swap, usage.processes) == (1 << 20, 2 << 20, 0, 7)
    assert (usage.cpu_seconds, usage.cpu_throttled, usage.oom_kills) == (2.5, 0.5, 1)
    assert usage.pressure == {"memory": 0.125}
    assert leaf.populated()


def test_usage_without_controllers_and_after_the_end(kernel):
    leaf = Tree(kernel[0]).leaf("hello")
    usage = leaf.usage()
    assert (usage.memory, usage.processes, usage.cpu_seconds, usage.oom_kills) == (None, None, None, None)
    (leaf.path / "sub").mkdir()
    leaf.remove()
    assert not leaf.path.exists()
    leaf.remove()
    leaf.kill()
    assert not leaf.populated()
    with pytest.raises(CgroupError) as caught:
        leaf.usage()
    assert caught.value.reason == "cgroup-missing"


def test_group_in_use_is_not_removed(kernel):
    leaf = Tree(kernel[0]).leaf("hello")
    (leaf.path / "process").touch()  # what makes rmdir(2) of a folder fail here
    with pytest.raises(CgroupError) as caught:
        leaf.remove()
    assert caught.value.reason == "cgroup-busy"


def test_only_what_differs_is_written(kernel):
    root, _, written = kernel
    tree = Tree(root / "mixos")
    tree.prepare()

    def writes(unit: str, limits: Limits) -> list[str]:
        written.clear()
        tree.leaf(unit).limit(limits)
        return [path.rpartition("/")[2] for path, _ in written]

    assert writes("plain", Limits()) == ["memory.oom.group"]
    small = Limits(memory_max=1 << 20, pids_max=10)
    assert writes("small", small) == ["memory.max", "memory.oom.group", "pids.max"]
    again = writes("small", small)  # this kernel shows no file that was never written
    assert not set(again) & {"memory.max", "memory.oom.group", "pids.max"}
    assert writes("small", small) == []
    assert writes("small", Limits(memory_max=2 << 20, pids_max=10)) == ["memory.max"]
    assert writes("small", Limits()) == ["memory.max", "pids.max"]


def test_a_limit_that_equals_the_default_is_still_tried(kernel):
    """Else nobody would say that its controller is missing."""
    root, given, _ = kernel
    given.discard("cpu")
    tree = Tree(root / "mixos")
    tree.prepare()
    assert tree.leaf("x").limit(Limits(cpu_weight=100)) == ("cpu.weight",)
    assert tree.leaf("x").limit(Limits(cpu_weight=100)) == ("cpu.weight",)
