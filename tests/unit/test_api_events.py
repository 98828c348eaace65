"""The bus of events within the daemon: prefixes, many listeners, one that does not keep up."""

from __future__ import annotations

import asyncio
from typing import Any

from daemon.core.events import QUEUE, Bus, Event


async def heard(bus: Bus, prefix: str, count: int, publish: Any) -> list[Event]:
    """The first `count` events of a listener that was there before `publish`."""
    listener = bus.listen(prefix)
    first = asyncio.ensure_future(anext(listener))
    await asyncio.sleep(0)
    publish()
    found = [await first]
    found += [await anext(listener) for _ in range(count - 1)]
    await listener.aclose()
    return found


def test_only_what_begins_with_the_prefix():
    bus = Bus()

    def publish() -> None:
        for topic in ("net.up", "service.started", "net.down", "service.exited"):
            bus.publish(topic, "x", code=1)

    found = asyncio.run(heard(bus, "service.", 2, publish))
    assert [event.topic for event in found] == ["service.started", "service.exited"]
    assert found[0].data == {"code": 1}


def test_who_does_not_keep_up_loses_the_oldest_and_is_told():
    bus = Bus()

    def publish() -> None:
        for number in range(QUEUE + 10):
            bus.publish("a.b", str(number))

    lost, first, *_ = asyncio.run(heard(bus, "", QUEUE + 1, publish))
    assert (lost.topic, lost.data) == ("events.lost", {"count": 10})
    assert first.subject == "10"


def test_nobody_listens_after_leaving():
    bus = Bus()
    asyncio.run(heard(bus, "", 1, lambda: bus.publish("a.b", "x")))
    assert not bus._listeners
