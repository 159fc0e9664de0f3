"""Reading a run from any place: from memory, from the log, across its end, and when the end was never written."""

import asyncio
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs.reel import END, Numbers, Shelf

from perdure.domain.clock import SystemClock
from perdure.domain.errors import NotFound, Unavailable
from perdure.domain.events import TextDelta
from perdure.domain.frames import Frames
from perdure.domain.messages import Usage
from perdure.domain.ports import Store
from perdure.domain.records import Run, ended
from perdure.runs.follow import Follow, above
from perdure.runs.ongoing import Ongoing
from perdure.runs.press import Press
from perdure.runs.tape import WINDOW, Tape

pytestmark = pytest.mark.anyio

NOW = SystemClock().now()
RUN = Run(id="run-1", agent_id="agent-1", context_id="agent-1", created_at=NOW, streamed=True, background=True)


class Records:
    """The one run there is."""

    def __init__(self, run: Run):
        self.run, self.gone, self.away = run, False, 0

    async def get(self, _: str) -> Run:
        if self.gone:
            raise NotFound("Run not found")
        if self.away:
            self.away -= 1
            raise Unavailable("The database is away.")
        return self.run


class Stored:
    """A store of a log and a run."""

    def __init__(self, log: Shelf, run: Run):
        self.log, self.runs = log, Records(run)


def follow(shelf: Shelf, run: Run, ongoing: Ongoing | None = None) -> tuple[Follow, Stored]:
    """A reader's side."""
    store = Stored(shelf, run)
    return Follow(cast(Store, store), lambda _: ongoing, lambda _: Numbers()), store


async def read(following: Follow, started: Any, after: int = 0) -> bytes:
    """Everything above a number, to the end."""
    return b"".join([portion.data async for portion in following(started, after, poll=0.001)])


def line(number: int, text: str = "x") -> bytes:
    """A frame."""
    return b"data: %d %b\n\n" % (number, text.encode())


WHOLE = [*(line(number) for number in range(1, 12)), END]


@given(cuts=st.sets(st.integers(1, 11)), after=st.integers(0, 12))
@settings(max_examples=60)
async def test_any_cut_of_any_batches(cuts: set[int], after: int) -> None:
    """However the frames were batched, whoever has the first `after` of them gets exactly the others."""
    shelf, bounds = Shelf(), [0, *sorted(cuts), 12]
    for first, last in pairwise(bounds):
        shelf.keep("run-1", Frames(first + 1, last - first, b"".join(WHOLE[first:last])))
    run = ended(RUN, "completed", "end_turn", NOW, Usage())
    following, _ = follow(shelf, run)
    assert await read(following, run, after) == b"".join(WHOLE[after:])


async def test_frames_with_two_lines() -> None:
    """A frame ends at its blank line, not at a line end within."""
    batch = Frames(4, 2, b"event: error\ndata: 4\n\ndata: 5\n\n")
    assert above(batch, 3) == batch.data
    assert above(batch, 4) == b"data: 5\n\n"


async def test_an_end_that_was_never_written() -> None:
    """A run that a crash cut off: what is saved, then its end from its record, the same for every reader."""
    shelf = Shelf()
    shelf.keep("run-1", Frames(1, 3, b"".join(WHOLE[:3])))
    run = ended(RUN, "failed", "error", NOW, Usage())
    following, _ = follow(shelf, run)
    assert await read(following, run) == b"".join(WHOLE[:3]) + line(4, "error") + END
    assert await read(following, run, 2) == WHOLE[2] + line(4, "error") + END
    assert await read(following, run, 3) == line(4, "error") + END
    assert await read(following, run, 4) == END
    assert [await read(following, run, number) for number in (5, 6, 99)] == [b""] * 3


async def test_a_log_that_is_lost() -> None:
    """Whoever waits for more is told the end instead of waiting for ever (★S32)."""
    following, _ = follow(Shelf(), ended(RUN, "completed", "end_turn", NOW, Usage()))
    assert await read(following, RUN, 50) == line(51, "end_turn") + END


async def test_a_run_that_is_deleted_while_it_is_read() -> None:
    """Its readers get an end, here and in another process."""
    shelf = Shelf()
    shelf.keep("run-1", Frames(1, 2, b"".join(WHOLE[:2])))
    following, store = follow(shelf, RUN)
    portions = following(RUN, 0, poll=0.001)
    assert (await anext(portions)).data == b"".join(WHOLE[:2])
    store.runs.gone = True
    assert b"".join([portion.data async for portion in portions]) == line(3, "end") + END
    tape = Tape(Numbers(), lambda _: None, saved_first=False)
    for _ in range(3 * WINDOW // 1000):
        tape.emit(TextDelta("message-1", "step-1", 0, "x" * 1000))
    tape.mark_saved(tape.last)
    shelf.saved.clear()
    following, _ = follow(shelf, RUN, Ongoing(RUN, tape))
    assert await read(following, Ongoing(RUN, tape)) == line(1, "end") + END


async def test_the_database_is_away_for_a_reader() -> None:
    """It waits, and misses nothing."""
    shelf = Shelf()
    shelf.keep("run-1", Frames(1, 12, b"".join(WHOLE)))
    following, store = follow(shelf, ended(RUN, "completed", "end_turn", NOW, Usage()))
    store.runs.away = 1
    assert await read(following, store.runs.run) == b"".join(WHOLE)


async def test_a_run_of_another_process() -> None:
    """Its frames come as they are saved, and its end when it is there; a long silence is told."""
    shelf = Shelf()
    shelf.keep("run-1", Frames(1, 2, b"".join(WHOLE[:2])))
    following, store = follow(shelf, RUN)
    portions = following(RUN, 0, quiet=0.02, poll=0.001)
    assert (await anext(portions)).data == b"".join(WHOLE[:2])
    assert (await anext(portions)).data == b""
    shelf.keep("run-1", Frames(3, 1, WHOLE[2]))
    async with asyncio.timeout(5):
        while not (portion := await anext(portions)).data:
            pass
    assert (portion.last, portion.data) == (3, WHOLE[2])
    shelf.keep("run-1", Frames(4, 9, b"".join(WHOLE[3:])))
    store.runs.run = ended(RUN, "completed", "end_turn", NOW, Usage())
    assert b"".join([portion.data async for portion in portions]) == b"".join(WHOLE[3:])


async def test_a_reader_slower_than_memory() -> None:
    """It reads from the log what memory has dropped, and goes on live; the others are not slowed."""
    shelf = Shelf()
    pressing = Press(shelf, lambda _: None)
    tape = Tape(Numbers(), pressing.more, saved_first=False)
    pressing.serve(RUN, tape)
    ongoing = Ongoing(RUN, tape)
    following, _ = follow(shelf, RUN, ongoing)
    slow = following(ongoing)
    tape.emit(TextDelta("message-1", "step-1", 0, "first"))
    got = (await anext(slow)).data
    for _ in range(3 * WINDOW // 1000):
        tape.emit(TextDelta("message-1", "step-1", 0, "x" * 1000))
    async with asyncio.timeout(5):
        while tape.saved < tape.last:
            await asyncio.sleep(0.001)
    tape.close([END], saved=True)
    got += b"".join([portion.data async for portion in slow])
    assert got == shelf.data("run-1") + END
    await pressing.close()
