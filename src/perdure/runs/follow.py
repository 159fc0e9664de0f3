"""Reading a run's frames from any number on: from the tape where this process works on the run, else from the log.

Whoever reads gets exactly the frames above the number given, and then the run's end. Where the log lacks the end
(the run was ended by a sweep, or by another process), it is made from the run's record, the same for everyone.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar, TypeVarTuple

import msgspec

from perdure.domain.errors import Gone, NotFound, Unavailable
from perdure.domain.events import RunEnded, RunStarted, StepCommitted
from perdure.domain.frames import Frames
from perdure.domain.messages import Usage
from perdure.domain.ports import Store
from perdure.domain.records import Run
from perdure.runs.ongoing import Ongoing
from perdure.runs.order import Rendering
from perdure.runs.outcome import made_by
from perdure.runs.tape import Tape

PORTION = 64 * 2**10
"""Bytes read from the log at once."""
POLL = 0.1
"""Seconds between two looks at the log of a run that another process works on."""
AWAY = 0.5
"""Seconds between two tries while the database is away."""
LONGEST_END = 3
"""Frames that a terminal sequence has at most."""
FRAME_END = b"\n\n"
DELETED = "The run was deleted while it was read. Nothing more is known of it."
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Portion(msgspec.Struct, frozen=True, gc=False):
    """Whole frames, and the number of the last one that was read; no data means that nothing happened for a while."""

    last: int
    data: bytes = b""


class Follow:
    """Reads runs. `live` finds a run of this process; `rendering` makes frames of a run's record."""

    def __init__(
        self, store: Store, live: Callable[[str], Ongoing | None], rendering: Callable[[Run], Rendering]
    ):  # fmt: skip
        self._store, self._live, self._rendering = store, live, rendering

    def __call__(
        self, started: Ongoing | Run, after: int = 0, *, quiet: float | None = None, poll: float = POLL
    ) -> AsyncGenerator[Portion, None]:
        """The frames above number `after`, to the end. Raises NotFound if the run is deleted meanwhile."""
        run, at = (started.run if isinstance(started, Ongoing) else started), after
        ongoing = started if isinstance(started, Ongoing) else self._live(run.id)
        tape = ongoing.tape if ongoing else None
        return self._from_tape(run, tape, at, quiet) if tape else self._from_log(run, at, quiet, poll)

    async def _from_tape(self, run: Run, tape: Tape, at: int, quiet: float | None) -> AsyncGenerator[Portion, None]:
        reader = tape.reader(at)
        try:
            while True:
                data = reader.take()
                if data is None:
                    before = reader.at
                    async for portion in self._saved(run.id, before):
                        reader.at = portion.last
                        yield portion
                    if reader.at == before:  # neither here nor in the log: the run is deleted
                        yield self._lost(run, before)
                        return
                elif data:
                    yield Portion(reader.at, data)
                elif tape.ended:
                    return
                elif not await reader.more(quiet):
                    yield Portion(reader.at)
        finally:
            reader.close()

    async def _from_log(self, run: Run, at: int, quiet: float | None, poll: float) -> AsyncGenerator[Portion, None]:
        loop = asyncio.get_running_loop()
        heard, over = loop.time(), False
        while True:
            async for portion in self._saved(run.id, at):
                at, heard = portion.last, loop.time()
                yield portion
            if over:
                break
            try:
                run = await self._present(self._store.runs.get, run.id)
            except NotFound:
                yield self._lost(run, at)
                return
            over = run.completed_at is not None  # and once more, for what was saved before it ended
            if over:
                continue
            if (ongoing := self._live(run.id)) and ongoing.tape:  # it was taken over by this process
                async with aclosing(self._from_tape(run, ongoing.tape, at, quiet)) as portions:
                    async for portion in portions:
                        yield portion
                return
            await asyncio.sleep(poll)
            if quiet is not None and loop.time() - heard >= quiet:
                heard = loop.time()
                yield Portion(at)
        async for portion in self._end(run, at):
            yield portion

    async def _end(self, run: Run, at: int) -> AsyncGenerator[Portion, None]:
        """What the log does not have, above number `at`, of a run that is over."""
        rendering = self._rendering(run)
        if not run.streamed:
            if at == 0:
                yield await self._retold(run, rendering)
            return
        tail = [frames async for frames in self.saved(run.id, max(at - LONGEST_END, 0))]
        if not tail and at > LONGEST_END and [frames async for frames in self.saved(run.id, 0)]:
            return  # a number that the stream never had
        last = tail[-1].last if tail else (at if at > LONGEST_END else 0)  # without any frame, the log is lost
        if not (tail and tail[-1].data.endswith(rendering.last_frame)):
            frames = rendering.closing(run, last + 1)[max(at - last, 0) :]
            if frames:
                yield Portion(max(at, last) + len(frames), b"".join(frames))

    async def _retold(self, run: Run, rendering: Rendering) -> Portion:
        """A run that was no stream, as one: whole messages, step by step."""
        frames = rendering.frames(RunStarted(run.id), 1)
        made = await made_by(self._store, run)
        for step_id in dict.fromkeys(message.step_id for message in made):
            step = StepCommitted(step_id or "", tuple(m for m in made if m.step_id == step_id))
            frames += rendering.frames(step, len(frames) + 1)
        frames += rendering.closing(run, len(frames) + 1)
        return Portion(len(frames), b"".join(frames))

    def _lost(self, run: Run, at: int) -> Portion:
        """The end for a reader whose run was deleted meanwhile."""
        frames = self._rendering(run).frames(RunEnded("error", Usage(), 0, None, Gone(DELETED)), at + 1)
        return Portion(at + len(frames), b"".join(frames))

    async def _saved(self, run_id: str, at: int) -> AsyncGenerator[Portion, None]:
        """What the log has above number `at`."""
        async for frames in self.saved(run_id, at):
            yield Portion(frames.last, above(frames, at))
            at = frames.last

    async def saved(self, run_id: str, at: int) -> AsyncGenerator[Frames, None]:
        """The log's batches above number `at`, as they were saved."""
        while batches := await self._present(self._store.log.read, run_id, at, PORTION):
            for frames in batches:
                yield frames
            at = batches[-1].last

    async def _present(self, ask: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
        """What the database answers, as soon as it is there: a reader waits for it, as it waits for the model."""
        while True:
            try:
                return await ask(*arguments)
            except Unavailable:
                await asyncio.sleep(AWAY)


def above(frames: Frames, at: int) -> bytes:
    """The bytes of those frames whose numbers are above `at`."""
    start = 0
    for _ in range(at - frames.first + 1):
        start = frames.data.index(FRAME_END, start) + len(FRAME_END)
    return frames.data[start:]
