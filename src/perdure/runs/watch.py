"""Where several processes work on one database: keeps this one's leases alive, notices what others did to its runs, and
takes over what a dead process left.

A process is dead when its beat has not moved for `SILENCE` seconds by our own watch, looking all the while: clocks of
machines differ, and while the database is away nobody can beat.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from datetime import datetime

import structlog

from perdure.domain.clock import Clock
from perdure.domain.errors import PerdureError
from perdure.domain.frames import Lease, Waiting
from perdure.domain.ports import Runs

log = structlog.get_logger()

LOOK = 0.5
"""Seconds between two looks; so much later at most a run stops that another process has cancelled."""
SILENCE = 3.5
REASON = "The server stopped while this run was under way. Send the message again."


class Watch:
    """One process's watch. `mine`: ids of its open runs; `oust` stops one that is over; `adopt` takes over runs."""

    def __init__(
        self, runs: Runs, worker: str, clock: Clock, *, mine: Callable[[], Collection[str]],
        oust: Callable[[str], None], adopt: Callable[[Sequence[Waiting]], None], silence: float = SILENCE,
    ):  # fmt: skip
        self._runs, self._worker, self._clock, self._silence = runs, worker, clock, silence
        self._mine, self._oust, self._adopt = mine, oust, adopt
        self._seen: dict[str, tuple[str, datetime | None, float]] = {}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except Exception as error:  # whatever it is, the next look may go through, and nobody else looks
                known = isinstance(error, PerdureError)
                log.warning("could not look after the leases of runs", reason=str(error), exc_info=not known)
            await asyncio.sleep(LOOK)

    async def look(self) -> None:
        """One look at all open runs."""
        mine = set(self._mine())
        if mine:
            await self._runs.beat(self._worker, self._clock.now())
        try:
            leases = await self._runs.leases()
        except Exception:
            self._seen.clear()  # what was seen before the database came back says nothing
            raise
        for run_id in mine - {lease.run_id for lease in leases if lease.worker == self._worker}:
            self._oust(run_id)
        dead = self._dead([lease for lease in leases if lease.worker != self._worker])
        if dead:
            await self.take_over(dead)

    async def take_over(self, dead: Sequence[Lease] | None) -> None:
        """End runs of these dead processes that were under way, and take over those that wait; None: of all."""
        if count := await self._runs.interrupt(dead, REASON):
            log.warning("ended runs that a dead process left open", runs=count)
        if waiting := await self._runs.adopt(self._worker, dead):
            log.warning("took over runs that wait from a dead process", runs=len(waiting))
            self._adopt(waiting)

    def _dead(self, leases: Sequence[Lease]) -> list[Lease]:
        """Those whose process has been silent for too long."""
        now = asyncio.get_running_loop().time()
        self._seen = {lease.run_id: self._since(lease, now) for lease in leases}
        return [lease for lease in leases if now - self._seen[lease.run_id][2] >= self._silence]

    def _since(self, lease: Lease, now: float) -> tuple[str, datetime | None, float]:
        """The worker and beat of a lease, and when they were first seen."""
        before = self._seen.get(lease.run_id)
        if before and before[:2] == (lease.worker, lease.beat_at):
            return before
        return lease.worker, lease.beat_at, now
