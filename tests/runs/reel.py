"""A log in memory, and a rendering whose frames say their numbers: what tapes are tried with."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

from perdure.domain.errors import Unavailable
from perdure.domain.events import Event, RunEnded, StepCommitted, TextDelta
from perdure.domain.frames import Batch, Frames
from perdure.domain.records import Run

END = b"data: [DONE]\n\n"


class Numbers:
    """A frame per fragment, one per message of a step, and two for the end."""

    last_frame = END

    def frames(self, event: Event, number: int) -> list[bytes]:
        if isinstance(event, TextDelta):
            return [b"data: %d %b\n\n" % (number, event.text.encode())]
        if isinstance(event, StepCommitted):
            return [b"data: %d step\n\n" % number]
        return [b"data: %d end\n\n" % number, END] if isinstance(event, RunEnded) else []

    def closing(self, run: Run, number: int) -> list[bytes]:
        return [b"data: %d %b\n\n" % (number, str(run.stop_reason).encode()), END]


class Shelf:
    """A log (port `Log`). It fails `away` times; `gate` holds back what it is given; runs in `refusing` refuse."""

    def __init__(self) -> None:
        self.saved: dict[str, list[Frames]] = {}
        self.transactions: list[int] = []
        self.away = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusing: set[str] = set()

    async def append(self, batches: Sequence[Batch]) -> set[str]:
        await self.gate.wait()
        if self.away:
            self.away -= 1
            raise Unavailable("The log is away.")
        self.transactions.append(len(batches))
        for batch in batches:
            if batch.run_id not in self.refusing:
                self.keep(batch.run_id, batch.frames)
        return {batch.run_id for batch in batches} & self.refusing

    def keep(self, run_id: str, frames: Frames | None) -> None:
        """What a transaction of a run takes along."""
        shelf = self.saved.setdefault(run_id, [])
        if frames:
            assert frames.first == (shelf[-1].last + 1 if shelf else 1), "a gap, or twice the same"
            shelf.append(frames)

    def data(self, run_id: str) -> bytes:
        """All that is saved of a run."""
        return b"".join(frames.data for frames in self.saved.get(run_id, []))

    async def read(self, run_id: str, after: int, limit: int) -> list[Frames]:
        return [frames for frames in self.saved.get(run_id, []) if frames.last > after][:2]

    async def prune(self, ended_before: datetime) -> int:
        return 0
