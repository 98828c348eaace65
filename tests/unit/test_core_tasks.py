"""Background work goes on, whatever ends it."""

from __future__ import annotations

import asyncio

import pytest

from daemon.core import tasks
from daemon.core.events import Bus


def test_work_that_ends_is_begun_again(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(tasks, "log", lambda level, text: said.append(text))
    begun: list[int] = []

    async def work() -> None:
        begun.append(len(begun))
        if len(begun) == 1:
            raise KeyError("surprise")
        if len(begun) == 2:
            return
        await asyncio.Event().wait()

    async def main() -> None:
        task = tasks.background("sample", work, first=0.01)
        async with asyncio.timeout(20):
            while len(begun) < 3:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert said == [
        "sample is begun again in 0.01 s: KeyError: 'surprise'",
        "sample is begun again in 0.02 s: it ended",
    ]


# case: H16
def test_a_listener_hears_what_comes_after_a_surprise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "log", lambda level, text: None)
    heard: list[str] = []
    bus = Bus()

    async def listen() -> None:
        async for event in bus.listen("sample."):
            heard.append(event.subject)
            if event.subject == "bad":
                raise ValueError

    async def main() -> None:
        task = tasks.background("sample", listen, first=0.01)
        async with asyncio.timeout(20):
            for subject in ("one", "bad", "two"):
                while subject not in heard:
                    bus.publish("sample.event", subject)
                    await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert set(heard) == {"one", "bad", "two"}
