"""A run under way in this process, and what it tells: frames to a tape, whole messages to who waits for the outcome."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from perdure.agent.turn import Emit
from perdure.domain.events import Event, RunEnded, StepCommitted
from perdure.domain.frames import Frames
from perdure.domain.messages import Message
from perdure.domain.records import Run
from perdure.runs.tape import Tape


@dataclass(frozen=True)
class Outcome:
    """What came of a run: the messages it made, and how it ended."""

    messages: Sequence[Message]
    ended: RunEnded


@dataclass(frozen=True)
class Carried:
    """Events that a transaction of the run makes true, and their frames; `frames` go into the log with it."""

    events: Sequence[Event]
    rendered: list[bytes] = field(default_factory=list)
    frames: Frames | None = None


class Ongoing:
    """A run under way. Whoever cancels it waits for `over`: then how it ended is recorded and told."""

    def __init__(self, run: Run, tape: Tape | None, listener: Emit | None = None):
        self.run, self.tape, self._listener = run, tape, listener
        self.task: asyncio.Task[None] | None = None
        self.over = asyncio.Event()
        self.ended: RunEnded | None = None
        self.messages: list[Message] = []
        """What it has made so far, kept only if nobody reads frames."""
        self.ending = self.ousted = self.parked = False

    def cancel(self) -> None:
        """Stop the work, unless it is ending: how a run ended must be recorded and told whoever else cancels it."""
        # Not at once: a task that is cancelled before its first step never gets to record anything.
        asyncio.get_running_loop().call_soon(self._cancel)

    def oust(self) -> None:
        """Stop the work, because the run was ended by somebody else."""
        self.ousted = True
        self.cancel()

    def park(self) -> None:
        """Stop the work and leave the run as it is, to be taken up after a restart."""
        self.parked = True
        self.cancel()

    def _cancel(self) -> None:
        if self.task and not self.ending:
            self.ending = True
            self.task.cancel()

    def emit(self, event: Event) -> None:
        """Tell an event that passes through without being stored."""
        if self.tape:
            self.tape.emit(event)
        if self._listener:
            self._listener(event)

    @asynccontextmanager
    async def carrying(self, events: Sequence[Event]) -> AsyncIterator[Carried]:
        """Have a transaction take along the frames of these events and all that is unsaved before them.

        If it goes through the events are told; if it raises they have never been.
        """
        if self.tape is None:
            carried = Carried(events)
            yield carried
        else:
            while self.tape.saving:  # or the log could have a gap, should we be killed between the two
                await asyncio.shield(self.tape.saving)  # it is everybody's: a cancel of this run must not end it
            rendered = self.tape.render(events)
            carried = Carried(events, rendered, self.tape.pending(rendered))
            self.tape.carried = True
            try:
                yield carried
            finally:
                self.tape.release()
        self._tell(carried, saved=True)

    def tell(self, events: Sequence[Event]) -> None:
        """Tell events that nothing could save: the run is over, and readers must know it."""
        self._tell(Carried(events, self.tape.render(events) if self.tape else []), saved=False)

    def cut(self, ended: RunEnded, closing: Callable[[int], list[bytes]]) -> None:
        """Tell how somebody else has ended the run; `closing` makes the last frames, numbered from its argument."""
        self.ended = ended
        if self._listener:
            self._listener(ended)
        if self.tape:
            self.tape.cut(closing)

    def _tell(self, carried: Carried, *, saved: bool) -> None:
        for event in carried.events:
            if isinstance(event, RunEnded):
                self.ended = event
            elif isinstance(event, StepCommitted) and self.tape is None:
                self.messages.extend(event.messages)
            if self._listener:
                self._listener(event)
        if self.tape and self.ended:
            self.tape.close(carried.rendered, saved=saved)
        elif self.tape:
            self.tape.commit(carried.rendered)
