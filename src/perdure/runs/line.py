"""The line before a context: runs of this process that wait until it is free."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from perdure.domain.errors import Unavailable
from perdure.domain.ports import Accepted, Runs
from perdure.domain.records import Run

LOOK = 0.25
"""Seconds between two looks for a context that another process may have given back."""


class Line:
    """Wakes those who wait. Who is first is decided in the database."""

    def __init__(self, runs: Runs):
        self._runs = runs
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._held: Counter[str] = Counter()

    async def turn_of(self, run: Run, on_start: Callable[[], None]) -> Accepted:
        """Wait until the run has its context; `on_start` is told then, even if this is cancelled in that moment.

        Raises Fenced if the run was ended or taken over while it waited.
        """
        moved = asyncio.Event()
        waiting = self._waiting.setdefault(run.context_id, set())
        waiting.add(moved)
        try:
            while True:
                if not self._held[run.context_id] and (accepted := await self._try(run, on_start)):
                    return accepted
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await moved.wait()
                moved.clear()
        finally:
            waiting.discard(moved)
            if not waiting and self._waiting.get(run.context_id) is waiting:
                del self._waiting[run.context_id]

    async def _try(self, run: Run, on_start: Callable[[], None]) -> Accepted | None:
        trying = asyncio.ensure_future(self._runs.promote(run))
        accepted: Accepted | None = None
        try:
            accepted = await asyncio.shield(trying)
        except asyncio.CancelledError:
            accepted = await trying
            raise
        except Unavailable:  # the database is away: who waits goes on waiting
            pass
        finally:
            if accepted:
                on_start()
        return accepted

    def moved(self, context_id: str) -> None:
        """A run of this context has ended, so the next one may go."""
        for event in self._waiting.get(context_id, ()):
            event.set()

    @contextlib.contextmanager
    def held(self, context_id: str) -> Iterator[None]:
        """Let nobody of this process go meanwhile: somebody goes before them all."""
        self._held[context_id] += 1
        try:
            yield
        finally:
            self._held[context_id] -= 1
            if not self._held[context_id]:
                del self._held[context_id]
            self.moved(context_id)
