"""Saving frames: batched, together, at once where somebody waits for it, and without gaps whatever happens."""

import asyncio

import pytest
from runs.reel import END, Numbers, Shelf

from perdure.domain.clock import SystemClock
from perdure.domain.events import RunEnded, TextDelta
from perdure.domain.messages import Usage
from perdure.domain.records import Run
from perdure.runs import press
from perdure.runs.ongoing import Ongoing
from perdure.runs.press import Press
from perdure.runs.tape import Tape

pytestmark = pytest.mark.anyio

ENDED = RunEnded("end_turn", Usage(), 1)


def stream(pressing: Press, name: str, *, saved_first: bool) -> Ongoing:
    """A run under way whose frames are saved."""
    run = Run(id=name, agent_id="agent-1", context_id="agent-1", created_at=SystemClock().now())
    tape = Tape(Numbers(), pressing.more, saved_first=saved_first)
    pressing.serve(run, tape)
    return Ongoing(run, tape)


def say(ongoing: Ongoing, *texts: str) -> None:
    """Fragments."""
    for text in texts:
        ongoing.emit(TextDelta("message-1", "step-1", 0, text))


async def until_saved(ongoing: Ongoing) -> None:
    """Wait until the log has everything."""
    assert ongoing.tape
    async with asyncio.timeout(5):
        while ongoing.tape.saved < ongoing.tape.last:
            await asyncio.sleep(0.001)


async def test_many_streams_share_a_transaction() -> None:
    """All that is due goes together, so the price of durability does not grow with the streams."""
    shelf = Shelf()
    pressing = Press(shelf, lambda _: None)
    streams = [stream(pressing, f"run-{number}", saved_first=True) for number in range(50)]
    for one in streams:
        say(one, "a", "b")
    for one in streams:
        await until_saved(one)
    assert shelf.transactions == [50]
    assert shelf.data("run-7") == b"data: 1 a\n\ndata: 2 b\n\n"
    await pressing.close()


async def test_nobody_waits_for_a_lazy_stream() -> None:
    """Its reader has the frames at once; they are saved later, or when there are many."""
    shelf = Shelf()
    pressing = Press(shelf, lambda _: None)
    one = stream(pressing, "run-1", saved_first=False)
    assert one.tape
    reader = one.tape.reader(0)
    say(one, "a")
    assert reader.take() == b"data: 1 a\n\n"
    await asyncio.sleep(0.05)
    assert shelf.transactions == []
    say(one, "x" * (press.BULK + 1))
    await until_saved(one)
    assert shelf.transactions == [1]
    await pressing.close()


async def test_the_end_takes_along_what_is_unsaved() -> None:
    """A short stream costs no transaction of its own."""
    shelf = Shelf()
    pressing = Press(shelf, lambda _: None)
    one = stream(pressing, "run-1", saved_first=False)
    say(one, "a", "b")
    async with one.carrying([ENDED]) as carried:
        shelf.keep("run-1", carried.frames)
    assert one.tape
    pressing.forget(one.tape)
    assert shelf.data("run-1") == b"data: 1 a\n\ndata: 2 b\n\ndata: 3 end\n\n" + END
    assert shelf.transactions == []
    await pressing.close()


async def test_the_end_waits_for_what_is_on_its_way() -> None:
    """Or a crash between the two could leave a gap."""
    shelf = Shelf()
    pressing = Press(shelf, lambda _: None)
    one = stream(pressing, "run-1", saved_first=True)
    shelf.gate.clear()
    say(one, "a")
    await asyncio.sleep(0.01)
    say(one, "b")

    async def ending() -> None:
        async with one.carrying([ENDED]) as carried:
            shelf.keep("run-1", carried.frames)

    task = asyncio.create_task(ending())
    await asyncio.sleep(0.01)
    assert not task.done()
    shelf.gate.set()
    await task
    assert [frames.count for frames in shelf.saved["run-1"]] == [1, 3]
    await pressing.close()


async def test_a_cancel_while_a_run_waits_for_what_is_on_its_way() -> None:
    """The saving is everybody's: it goes on, for the run that is cancelled and for its neighbours."""
    shelf = Shelf()
    pressing = Press(shelf, lambda _: None)
    one, other = (stream(pressing, name, saved_first=True) for name in ("run-1", "run-2"))
    shelf.gate.clear()
    say(one, "a")
    say(other, "a")
    await asyncio.sleep(0.01)

    async def ending() -> None:
        async with one.carrying([ENDED]):
            raise AssertionError("it was cancelled before")

    task = asyncio.create_task(ending())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    shelf.gate.set()
    await until_saved(one)
    await until_saved(other)
    async with one.carrying([ENDED]) as carried:
        shelf.keep("run-1", carried.frames)
    assert shelf.data("run-1") == b"data: 1 a\n\ndata: 2 end\n\n" + END
    await pressing.close()


async def test_a_transaction_that_fails_takes_nothing_along() -> None:
    """What it would have told has never been; what was told before it is saved all the same."""
    shelf = Shelf()
    pressing = Press(shelf, lambda _: None)
    one = stream(pressing, "run-1", saved_first=True)
    say(one, "a")
    with pytest.raises(ValueError, match="stale"):
        async with one.carrying([ENDED]):
            raise ValueError("stale")
    await until_saved(one)
    say(one, "b")
    await until_saved(one)
    assert shelf.data("run-1") == b"data: 1 a\n\ndata: 2 b\n\n"
    await pressing.close()


async def test_the_database_was_away() -> None:
    """It is tried again, in order, and nothing is lost or doubled."""
    shelf = Shelf()
    pressing = Press(shelf, lambda _: None)
    shelf.away = 1
    one = stream(pressing, "run-1", saved_first=True)
    say(one, "a")
    await asyncio.sleep(0.01)
    say(one, "b")
    await until_saved(one)
    assert shelf.data("run-1") == b"data: 1 a\n\ndata: 2 b\n\n"
    await pressing.close()


async def test_a_run_that_changed_hands() -> None:
    """Its refusal is told, and no other stream suffers."""
    shelf, ousted = Shelf(), []
    pressing = Press(shelf, ousted.append)
    one, other = (stream(pressing, name, saved_first=True) for name in ("run-1", "run-2"))
    shelf.refusing = {"run-1"}
    say(one, "a")
    say(other, "a")
    await until_saved(other)
    assert ousted == ["run-1"]
    say(one, "b")
    say(other, "b")
    await until_saved(other)
    assert ousted == ["run-1"]
    assert one.tape
    assert one.tape.saved == 0
    await pressing.close()
