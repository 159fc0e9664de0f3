"""Who is dead, and what becomes of its runs: told by one process's own watch."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from perdure.domain.clock import SystemClock
from perdure.domain.errors import Unavailable
from perdure.domain.frames import Lease, Waiting
from perdure.domain.ports import Runs
from perdure.runs.watch import Watch

pytestmark = pytest.mark.anyio

BEAT = datetime.now(UTC)


class Book:
    """The leases there are, and what was done about them."""

    def __init__(self, *leases: Lease):
        self.open = list(leases)
        self.beats: list[str] = []
        self.ended: list[str] = []
        self.away = False

    async def leases(self) -> list[Lease]:
        if self.away:
            raise Unavailable("The database is away.")
        return self.open

    async def beat(self, worker: str, now: datetime) -> None:
        self.beats.append(worker)

    async def interrupt(self, leases: Sequence[Lease] | None, reason: str) -> int:
        self.ended += [lease.run_id for lease in leases or self.open]
        return 1

    async def adopt(self, worker: str, leases: Sequence[Lease] | None) -> list[Waiting]:
        return []


def lease(run_id: str, worker: str = "worker-2", beat: datetime | None = BEAT) -> Lease:
    """A running run."""
    return Lease(run_id, "running", worker, beat)


def watch(book: Book, mine: Sequence[str] = (), silence: float = 3.5) -> tuple[Watch, list[str]]:
    """The watch of worker-1, and the runs it stops."""
    ousted: list[str] = []
    made = Watch(
        cast(Runs, book), "worker-1", SystemClock(), mine=lambda: mine, oust=ousted.append, adopt=lambda _: None,
        silence=silence,
    )  # fmt: skip
    return made, ousted


async def test_a_process_that_beats_lives() -> None:
    """However long its runs take."""
    book = Book()
    one, _ = watch(book)
    for second in range(3):
        book.open = [lease("run-1", beat=BEAT + timedelta(seconds=second))]
        await one.look()
    assert book.ended == []


async def test_an_old_beat_alone_says_nothing() -> None:
    """Clocks differ, and a process that was idle for an hour has just taken a run."""
    book = Book(lease("run-1", beat=BEAT - timedelta(hours=1)))
    one, _ = watch(book)
    await one.look()
    assert book.ended == []


async def test_silence_counts_from_the_first_look() -> None:
    """A beat that does not move while we look is a dead process's; one that never beat likewise."""
    book = Book(lease("run-1"), lease("run-2", beat=None))
    one, _ = watch(book, silence=0)
    await one.look()
    assert book.ended == ["run-1", "run-2"]


async def test_what_was_seen_before_an_outage_does_not_count() -> None:
    """While the database is away nobody can beat."""
    book = Book(lease("run-1"))
    one, _ = watch(book, silence=0.05)
    await one.look()
    book.away = True
    with pytest.raises(Unavailable):
        await one.look()
    await asyncio.sleep(0.06)
    book.away = False
    await one.look()
    assert book.ended == []
    await asyncio.sleep(0.06)
    await one.look()
    assert book.ended == ["run-1"]


async def test_a_run_that_somebody_else_ended_is_stopped() -> None:
    """Cancelled by another process, or taken over: its work stops here within half a second."""
    book = Book(lease("run-1", worker="worker-1"), lease("run-2", worker="worker-2"))
    one, ousted = watch(book, mine=["run-1", "run-2", "run-3"])
    await one.look()
    assert (sorted(ousted), book.beats) == (["run-2", "run-3"], ["worker-1"])
