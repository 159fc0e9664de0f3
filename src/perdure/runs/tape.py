"""A run's frames inside the process that works on it, on their way to the log and to readers.

The run never waits for a reader. What is saved and read by all is dropped; a reader that falls behind by more than
`WINDOW` bytes finds the rest in the log. So a stream takes a bounded amount of memory, however slow its readers are.
"""

import asyncio
from collections.abc import Callable, Sequence

from perdure.domain.events import Event
from perdure.domain.frames import Frames
from perdure.runs.order import Rendering

WINDOW = 64 * 2**10
"""Bytes of saved frames that are kept for readers who have not read them yet."""


class Tape:
    """Frames in order, numbered from 1; `last` is the newest, `saved` the newest in the log.

    With `saved_first` readers get a frame only once it is saved, so that whatever they saw can be replayed.
    """

    def __init__(self, rendering: Rendering, on_more: Callable[["Tape"], None], *, saved_first: bool, last: int = 0):
        self._rendering, self._on_more, self.saved_first = rendering, on_more, saved_first
        self._frames: list[bytes] = []
        self._size = 0
        self.last = self.saved = last
        self.unsaved = 0
        """Bytes not yet in the log."""
        self.ended = False
        self.saving: asyncio.Future[None] | None = None
        """Under way while a part of it is being written to the log."""
        self.carried = False
        """A transaction of the run is taking along what is unsaved, so nobody else may save it."""
        self._readers: set[Reader] = set()

    def emit(self, event: Event) -> None:
        """Render an event and pass it on."""
        self.add(self._rendering.frames(event, self.last + 1))

    def render(self, events: Sequence[Event]) -> list[bytes]:
        """The frames of events to come, numbered after the last; nothing is kept."""
        frames: list[bytes] = []
        for event in events:
            frames += self._rendering.frames(event, self.last + 1 + len(frames))
        return frames

    def add(self, frames: list[bytes]) -> None:
        """Pass frames on that are numbered after the last."""
        if not frames:
            return
        self._put(frames)
        self._on_more(self)
        if not self.saved_first:
            self._wake()

    def _put(self, frames: list[bytes]) -> None:
        self._frames.extend(frames)
        self.last += len(frames)
        size = sum(map(len, frames))
        self._size += size
        self.unsaved += size

    def pending(self, more: Sequence[bytes] = ()) -> Frames | None:
        """What is not in the log yet, and `more` after it; None if that is nothing."""
        count = self.last - self.saved
        if not count and not more:
            return None
        late = self._frames[len(self._frames) - count :]
        return Frames(self.saved + 1, count + len(more), b"".join([*late, *more]))

    def mark_saved(self, last: int) -> None:
        """Everything up to `last` is in the log."""
        late = self._frames[len(self._frames) - (self.last - last) :]
        self.saved, self.unsaved = last, sum(map(len, late))
        if self.saved_first:
            self._wake()
        self._trim()

    def release(self) -> None:
        """No transaction takes anything along any more; if it failed, what is unsaved is to be saved otherwise."""
        self.carried = False
        if self.last > self.saved:
            self._on_more(self)

    def commit(self, frames: list[bytes]) -> None:
        """Frames that are in the log already, with all before them."""
        self._put(frames)
        self.mark_saved(self.last)
        self._wake()

    def close(self, frames: list[bytes], *, saved: bool) -> None:
        """The end, with its last frames; readers get everything, even what could not be `saved`."""
        self._put(frames)
        if saved:
            self.saved, self.unsaved = self.last, 0
        self.ended = True
        self._wake()

    def cut(self, run_closing: Callable[[int], list[bytes]]) -> None:
        """End a tape whose run was ended by somebody else: what the log refused has never been, if it was not sent."""
        if self.saved_first:
            del self._frames[len(self._frames) - (self.last - self.saved) :]
            self.last = self.saved
        self.close(run_closing(self.last + 1), saved=False)

    def after(self, at: int) -> tuple[int, bytes] | None:
        """The frames above number `at` that readers may have, as (last number, bytes); None if they are in the log."""
        limit = self.last if self.ended or not self.saved_first else self.saved
        first = self.last - len(self._frames) + 1
        if at >= limit:
            return at, b""
        if at + 1 < first:
            return None
        return limit, b"".join(self._frames[at + 1 - first : limit + 1 - first])

    def reader(self, at: int) -> "Reader":
        """A new reader that has everything up to number `at`."""
        reader = Reader(self, at)
        self._readers.add(reader)
        return reader

    def leave(self, reader: "Reader") -> None:
        """The reader reads no more."""
        self._readers.discard(reader)

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()

    def _trim(self) -> None:
        """Drop what is saved and read by all, and of the rest what exceeds the window: a reader may be coming."""
        read = min((reader.at for reader in self._readers), default=0)
        number, drop = self.last - len(self._frames) + 1, 0
        while number <= self.saved and (number <= read or self._size - self.unsaved > WINDOW):
            self._size -= len(self._frames[drop])
            number, drop = number + 1, drop + 1
        del self._frames[:drop]


class Reader:
    """One reader's place. `more` waits without a timer per frame: one timer per stretch of `quiet` seconds."""

    __slots__ = ("_heard", "_tape", "_timer", "_waiting", "at")

    def __init__(self, tape: Tape, at: int):
        self._tape, self.at = tape, at
        self._waiting: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0

    def take(self) -> bytes | None:
        """What there is to read now, empty for nothing; None if the log has it."""
        found = self._tape.after(self.at)
        if found is None:
            return None
        self.at = found[0]
        return found[1]

    async def more(self, quiet: float | None) -> bool:
        """Wait for more; False if there was nothing for `quiet` seconds."""
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        if quiet is not None and self._timer is None:
            self._timer = loop.call_at(self._heard + quiet, self._tick, quiet)
        self._waiting = loop.create_future()
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def wake(self) -> None:
        """There may be more."""
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(True)

    def close(self) -> None:
        """Read no more."""
        self._tape.leave(self)
        if self._timer:
            self._timer.cancel()

    def _tick(self, quiet: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if not self._waiting or self._waiting.done():
            return  # reading: the next wait sets a timer
        due = self._heard + quiet
        if loop.time() >= due:
            self._waiting.set_result(False)
        else:
            self._timer = loop.call_at(due, self._tick, quiet)
