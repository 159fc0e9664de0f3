"""Frames inside the process: readers of any speed, bounded memory, nothing shown that could be lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs.reel import END, Numbers

from perdure.domain.events import RunEnded, TextDelta
from perdure.domain.messages import Usage
from perdure.runs.tape import WINDOW, Tape

pytestmark = pytest.mark.anyio

ENDED = RunEnded("end_turn", Usage(), 1)


def tape_of(*, saved_first: bool = False) -> Tape:
    """A tape that nobody saves."""
    return Tape(Numbers(), lambda _: None, saved_first=saved_first)


def delta(text: str) -> TextDelta:
    """A fragment."""
    return TextDelta("message-1", "step-1", 0, text)


def end(tape: Tape) -> None:
    """The terminal frames, saved."""
    tape.close(tape.render([ENDED]), saved=True)


def test_frames_are_numbered_without_gaps() -> None:
    """Also those that are rendered ahead for a transaction, which count only when it has gone through."""
    tape = tape_of()
    tape.emit(delta("a"))
    assert tape.render([delta("b"), delta("c")]) == [b"data: 2 b\n\n", b"data: 3 c\n\n"]
    tape.emit(delta("d"))
    assert tape.after(0) == (2, b"data: 1 a\n\ndata: 2 d\n\n")


def test_a_resumable_stream_shows_only_what_is_saved() -> None:
    """What a reader has seen can be replayed after a crash."""
    tape = tape_of(saved_first=True)
    tape.emit(delta("a"))
    tape.emit(delta("b"))
    assert tape.after(0) == (0, b"")
    tape.mark_saved(1)
    assert tape.after(0) == (1, b"data: 1 a\n\n")
    end(tape)
    assert tape.after(1) == (4, b"data: 2 b\n\ndata: 3 end\n\n" + END)


def test_what_is_saved_and_read_is_dropped() -> None:
    """However long a stream is, memory holds the window and what is not saved yet."""
    tape = tape_of()
    reader = tape.reader(0)
    for number in range(1, 2001):
        tape.emit(delta("x" * 500))
        if number % 10 == 0:
            reader.take()
            tape.mark_saved(number)
            assert tape.after(number - 1) is None
    assert tape.unsaved == 0
    reader.close()


def test_a_reader_that_lags_is_sent_to_the_log() -> None:
    """What it has not read is kept up to the window, and not beyond."""
    tape = tape_of()
    lagging = tape.reader(0)
    for _ in range(2000):
        tape.emit(delta("x" * 500))
    tape.mark_saved(2000)
    assert lagging.take() is None
    late = tape.reader(1950)
    assert len(late.take() or b"") == 50 * len(b"data: 1950 " + b"x" * 500 + b"\n\n")
    assert (WINDOW // 600) < 200, "the story above assumes a small window"


def test_a_run_ended_elsewhere() -> None:
    """What the log refused has never been for readers who had not seen it; the numbers of the end follow the log's."""
    tape = tape_of(saved_first=True)
    for text in "abc":
        tape.emit(delta(text))
    tape.mark_saved(1)
    tape.cut(lambda number: [b"data: %d cancelled\n\n" % number, END])
    assert tape.after(0) == (3, b"data: 1 a\n\ndata: 2 cancelled\n\n" + END)


async def test_silence_is_told() -> None:
    """Waiting ends when there is more, or after so many quiet seconds."""
    tape = tape_of()
    reader = tape.reader(0)
    assert await reader.more(0.01) is False
    waiting = asyncio.create_task(reader.more(5))
    await asyncio.sleep(0)
    tape.emit(delta("a"))
    assert await waiting is True
    assert reader.take() == b"data: 1 a\n\n"
    assert await reader.more(0.01) is False
    reader.close()


@given(
    texts=st.lists(st.text("ab", max_size=3), max_size=12), steps=st.lists(st.sampled_from("erste"), max_size=40),
    saved_first=st.booleans(), lag=st.integers(0, 12),
)  # fmt: skip
def test_any_interleaving_reads_the_same(texts: list[str], steps: list[str], *, saved_first: bool, lag: int) -> None:
    """Whenever frames come, are saved and are read, a reader gets exactly those above its place."""
    tape, rest = tape_of(saved_first=saved_first), list(texts)
    reader, got = tape.reader(min(lag, len(texts))), b""
    for step in steps:
        if step == "e" and rest:
            tape.emit(delta(rest.pop(0)))
        elif step == "s":
            tape.mark_saved(tape.last)
        elif step == "r":
            got += reader.take() or b""
    for text in rest:
        tape.emit(delta(text))
    end(tape)
    got += reader.take() or b""
    whole = [b"data: %d %b\n\n" % (n, text.encode()) for n, text in enumerate(texts, 1)]
    whole += [b"data: %d end\n\n" % (len(texts) + 1), END]
    assert got == b"".join(whole[min(lag, len(texts)) :])
