"""The graph of units: what comes along, in which order, what stops with it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MixosError
from daemon.parts.service.graph import Graph
from daemon.parts.service.order import Obstacle, obstacle
from daemon.parts.service.states import State
from daemon.parts.service.unit import Unit


def graph(**units: Mapping[str, list[str]]) -> Graph:
    return Graph({name: Unit.model_validate({"unit": about}) for name, about in units.items()})


def test_requires_and_wants_come_along_and_requires_comes_first():
    one = graph(a={"requires": ["b"], "wants": ["c"]}, b={}, c={"after": ["d"]}, d={})
    plan = one.start(["a"])
    assert plan.steps == (("b", "c"), ("a",))
    assert set(plan.names) == {"a", "b", "c"}  # d only orders


def test_after_only_orders():
    one = graph(a={"after": ["b"]}, b={"before": ["c"]}, c={}, d={"after-exit": ["a"]})
    assert one.start(["a"]).steps == (("a",),)
    assert one.start("abcd").steps == (("b",), ("a", "c"), ("d",))


def test_stopping_takes_along_what_requires_it_in_reverse():
    one = graph(a={}, b={"requires": ["a"]}, c={"requires": ["b"]}, d={"wants": ["a"], "after": ["a"]})
    assert one.stop(["a"]) == ("c", "b", "a")
    assert one.stop(["c"]) == ("c",)


def test_conflicts_hold_both_ways():
    one = graph(a={"conflicts": ["b"]}, b={}, c={"wants": ["a", "b"]})
    assert one.start(["a"]).stops == ("b",)
    assert one.start(["b"]).stops == ("a",)
    with pytest.raises(MixosError) as caught:
        one.start(["c"])
    assert caught.value.reason == "unit-conflict"


def test_a_required_unit_that_is_broken_stops_the_plan_a_wanted_one_does_not():
    one = graph(a={"requires": ["gone"]}, b={"wants": ["gone"]})
    with pytest.raises(MixosError) as caught:
        one.start(["a"])
    assert caught.value.reason == "unit-dependency"
    assert one.start(["b"]).missing == ("gone",)


def test_an_unknown_unit():
    with pytest.raises(MixosError) as caught:
        graph(network={}).start(["netwrok"])
    assert (caught.value.reason, "network" in str(caught.value.hint)) == ("unit-unknown", True)


@pytest.mark.parametrize(
    ("units", "cycle"),
    [
        ({"a": {"after": ["b"]}, "b": {}}, ()),
        ({"a": {"after": ["b"]}, "b": {"requires": ["a"]}}, ("a", "b", "a")),
        ({"a": {"before": ["b"]}, "b": {"before": ["a"]}}, ("a", "b", "a")),
        ({"a": {"after": ["b"]}, "b": {"after": ["c"]}, "c": {"after-exit": ["b"]}}, ("b", "c", "b")),
        ({"a": {"wants": ["b"]}, "b": {"wants": ["a"]}}, ()),
    ],
)
def test_cycles(units, cycle):
    assert graph(**units).cycle() == cycle


NAMES = "abcdefgh"


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["requires", "after", "before", "after-exit"]),
                          st.sampled_from(NAMES)).filter(lambda edge: edge[0] != edge[2]), max_size=20))  # fmt: skip
def test_no_cycle_means_an_order_that_keeps_all_relations(edges):
    units: dict[str, dict[str, list[str]]] = {name: {} for name in NAMES}
    for one, key, other in edges:
        units[one].setdefault(key, []).append(other)
    found = graph(**units)
    if cycle := found.cycle():
        assert cycle[0] == cycle[-1]
        assert all(later in found.first(name) for name, later in pairwise(cycle))
        return
    order = found.start(NAMES).names
    assert sorted(order) == list(NAMES)
    for one, key, other in edges:
        first, second = (one, other) if key == "before" else (other, one)
        assert order.index(first) < order.index(second)


def test_texts():
    one = graph(a={"requires": ["b"], "after-exit": ["c"]}, b={"wants": ["c"]}, c={})
    assert one.text() == "a\n  requires b\n    wants c\n  after-exit c"
    assert '"a" -> "b" [style=solid];' in one.dot()
    assert one.text(["b"]) == "b\n  wants c"


# -- what a unit waits for -------------------------------------------------------------------------------------------


class Other(NamedTuple):
    state: State = State.INACTIVE
    up: bool = False
    active: bool = False


STARTING, RUNNING = Other(State.STARTING, active=True), Other(State.RUNNING, up=True, active=True)
TRIED, FAILED = Other(State.BACKOFF, active=True), Other(State.FAILED)


@pytest.mark.parametrize(
    ("about", "other", "pausing", "found"),
    [
        ({}, STARTING, False, None),
        ({"after": ["b"]}, STARTING, False, Obstacle("for b")),
        ({"after": ["b"]}, RUNNING, False, None),
        ({"after": ["b"]}, RUNNING, True, Obstacle("for b")),
        ({"after": ["b"]}, TRIED, False, None),
        ({"after": ["b"]}, FAILED, False, None),
        ({"requires": ["b"]}, STARTING, False, Obstacle("for b")),
        ({"requires": ["b"]}, TRIED, False, Obstacle("for b")),
        ({"requires": ["b"]}, RUNNING, False, None),
        ({"requires": ["b"]}, FAILED, False, Obstacle("requires b, which is failed", fatal=True)),
        ({"after-exit": ["b"]}, RUNNING, False, Obstacle("for the end of b")),
        ({"after-exit": ["b"]}, FAILED, False, None),
        ({"conflicts": ["b"]}, RUNNING, False, Obstacle("until b has stopped")),
        ({"conflicts": ["b"]}, Other(), False, None),
    ],
)
def test_what_a_unit_waits_for(about, other, pausing, found):
    one = graph(a=about, b={})
    assert obstacle("a", one, {"a": Other(), "b": other}, {"b"} if pausing else ()) == found
    assert (one.followers["b"] == {"a"}) == bool(about)


def test_one_that_is_required_must_be_up_until_all_others_are():
    one = graph(a={"requires": ["b"], "after": ["c"]}, b={}, c={})
    assert obstacle("a", one, {"b": RUNNING, "c": STARTING}, ()) == Obstacle("for c")
    failed = obstacle("a", one, {"b": FAILED, "c": STARTING}, ())
    assert failed is not None
    assert failed.fatal
