"""The run log: what a run told its readers, frame by frame, and the order of a run that waits (architecture.md).

A frame is opaque here: bytes that were sent, or may be sent, to a reader. Frames of a run are numbered 1, 2, 3, …
without gaps; the number of a frame never changes.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from perdure.domain.records import Run


class Frames(msgspec.Struct, frozen=True):
    """Consecutive frames of one run: the number of the first, how many, and their bytes one after another."""

    first: int
    count: int
    data: bytes

    @property
    def last(self) -> int:
        """The number of the last one."""
        return self.first + self.count - 1


class Batch(msgspec.Struct, frozen=True):
    """Frames of one run to be saved by the worker that holds this epoch."""

    run_id: str
    epoch: int
    frames: Frames


class Lease(msgspec.Struct, frozen=True):
    """An open run (`status` created: it waits its turn; running), the worker that has it, and that worker's last beat.

    `beat_at` is None if the worker has never beaten.
    """

    run_id: str
    status: str
    worker: str
    beat_at: datetime | None


class Waiting(msgspec.Struct, frozen=True):
    """A run that waits its turn, and its encoded order."""

    run: Run
    order: bytes


class Log(Protocol):
    """The frames of all runs, kept until they are pruned."""

    async def append(self, batches: Sequence[Batch]) -> set[str]:
        """Save frames of many runs in one transaction; answers the ids of the runs that refused theirs.

        A run refuses when it has ended or another worker has taken it; nothing of that run's batch is saved then.
        """

    async def read(self, run_id: str, after: int, limit: int) -> list[Frames]:
        """Saved frames with numbers above `after`, in order, about `limit` bytes of them, at least one batch.

        The first batch may begin at or below `after`: batches are answered as they were saved.
        """

    async def prune(self, ended_before: datetime) -> int:
        """Remove the frames of runs that ended before then; answers of how many runs."""
