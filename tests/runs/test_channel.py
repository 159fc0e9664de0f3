"""Events on their way to readers."""

import asyncio

import pytest

from perdure.domain.events import Event, RunEnded, RunStarted, StepCommitted
from perdure.domain.messages import Usage
from perdure.runs.channel import Channel

pytestmark = pytest.mark.anyio

STARTED, STEP = RunStarted("run-1"), StepCommitted("step-1", ())
ENDED = RunEnded("end_turn", Usage(), 1)


async def everything(channel: Channel) -> list[Event]:
    return [event async for batch in channel.batches() for event in batch]


async def test_every_reader_gets_every_event_whenever_it_begins() -> None:
    """Early, in the middle, or after the end: the same events in the same order."""
    channel = Channel()
    early = asyncio.create_task(everything(channel))
    await asyncio.sleep(0)
    channel.emit(STARTED)
    channel.emit(STEP)
    middle = asyncio.create_task(everything(channel))
    await asyncio.sleep(0)
    channel.emit(ENDED)
    assert await early == await middle == await everything(channel) == [STARTED, STEP, ENDED]


async def test_a_reader_that_left_is_not_waited_for() -> None:
    """Emitting never blocks, and a cancelled reader leaves nothing behind."""
    channel = Channel()
    gone = asyncio.create_task(everything(channel))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    for event in (STARTED, ENDED):
        channel.emit(event)
    assert await everything(channel) == [STARTED, ENDED]


async def test_silence_is_told() -> None:
    """An empty batch means that nothing happened for so many seconds."""
    channel = Channel()
    channel.emit(STARTED)
    batches = channel.batches(quiet=0.01)
    assert await anext(batches) == [STARTED]
    assert await anext(batches) == []
    channel.emit(ENDED)
    assert await anext(batches) == [ENDED]
    assert [batch async for batch in batches] == []
