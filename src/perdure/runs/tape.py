"""A run's events on their way to readers inside this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from perdure.domain.events import Event, RunEnded


class Channel:
    """Keeps a run's events in order; any number of readers, each from the start, none of them waited for."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._readers: set[asyncio.Event] = set()

    def emit(self, event: Event) -> None:
        """Add an event and wake the readers."""
        self._events.append(event)
        for reader in self._readers:
            reader.set()

    async def batches(self, quiet: float | None = None) -> AsyncIterator[list[Event]]:
        """All events from the first to `RunEnded`, as many at a time as there are.

        An empty list means that nothing happened for `quiet` seconds.
        """
        at, more = 0, asyncio.Event()
        self._readers.add(more)
        try:
            while True:
                more.clear()
                batch = self._events[at:]
                at += len(batch)
                if batch:
                    yield batch
                    if isinstance(batch[-1], RunEnded):
                        return
                elif not await _set_within(more, quiet):
                    yield []
        finally:
            self._readers.discard(more)


async def _set_within(event: asyncio.Event, seconds: float | None) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await event.wait()
    return False
