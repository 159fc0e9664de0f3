"""Who may run: one run per context, the same request only once, and what happens when a context is busy.

One component for every entry point (spec §6.1, §6.2, §12.7). The lease itself is the run's row (decision 0002); this
decides about repeats, the line of those who wait, and interrupting.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from weakref import WeakValueDictionary

import msgspec

from perdure.domain.clock import Clock
from perdure.domain.errors import Busy
from perdure.domain.ports import Accepted, MessageQuery, Page, Store
from perdure.domain.records import Run
from perdure.runs.line import Line
from perdure.runs.order import Order

REMEMBERED = timedelta(hours=3)
"""How long a request is known by its otids."""
RETRIED = timedelta(minutes=10)
"""How long after its end a run answers the caller's own retries of its request (★S61)."""
LONGEST_LINE = 100
"""Runs that may wait for one context."""
PATIENCE = 10.0
"""Seconds that interrupting may take before it counts as refused."""


@dataclass(frozen=True)
class Admitted:
    """A run that may begin now; without `accepted` it waits its turn."""

    run: Run
    accepted: Accepted | None = None


class Admission:
    """Admits orders. `stop` ends a run, wherever it is, and returns when that is recorded."""

    def __init__(self, store: Store, clock: Clock, line: Line, stop: Callable[[str, str], Awaitable[str]]):
        self._store, self._clock, self._line, self._stop = store, clock, line, stop
        self._copies: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def admit(self, order: Order, run: Run) -> Admitted | Run:
        """The run, durable with its request; or the run that the same request already made.

        Raises NotFound, Busy.
        """
        if not (order.otids or order.retry):
            return await self._take(order, run)
        # Copies that come at once are looked at one after the other, so that the second finds the first one's run.
        async with self._copies.setdefault(order.context_id, asyncio.Lock()):
            return await self._repeated(order) or await self._take(order, run)

    async def _take(self, order: Order, run: Run) -> Admitted | Run:
        try:
            return Admitted(run, await self._store.runs.accept(run, order.request))
        except Busy as busy:
            if found := await self._repeated(order):  # another process has taken a copy
                return found
            if order.on_busy == "enqueue":
                return await self._enqueue(order, run)
            if order.on_busy == "interrupt":
                with self._line.held(order.context_id):
                    return await self._interrupt(order, run)
            raise await self._refusal(order, busy) from None

    async def _repeated(self, order: Order) -> Run | None:
        """The run of the same request. One that failed and left nothing behind does not count: it is tried again."""
        runs, now = self._store.runs, self._clock.now()
        if order.otids:
            found = await runs.with_otid(order.context_id, order.otids[0], now - REMEMBERED)
            if found and found.otids == order.otids and await self._left_something(found):
                return found
        if order.retry:
            found = await runs.with_request(order.context_id, order.request, now - RETRIED)
            if found and (found.status == "cancelled" or await self._left_something(found)):
                return found
        return None

    async def _left_something(self, run: Run) -> bool:
        if run.status in ("created", "running", "completed"):
            return True
        return bool(await self._store.messages.find(MessageQuery(run_id=run.id, include_err=True), Page(limit=1)))

    async def _enqueue(self, order: Order, run: Run) -> Admitted | Run:
        run = msgspec.structs.replace(run, status="created")
        kept = msgspec.json.encode(dataclasses.replace(order, request=b""))
        try:
            await self._store.runs.enqueue(run, order.request, kept, limit=LONGEST_LINE)
        except Busy:
            if found := await self._repeated(order):
                return found
            raise
        return Admitted(run)

    async def _interrupt(self, order: Order, run: Run) -> Admitted | Run:
        """End whatever holds the context and take it, before all who wait."""
        until = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                return Admitted(run, await self._store.runs.accept(run, order.request, ahead=True))
            except Busy as busy:
                if found := await self._repeated(order):
                    return found
                if asyncio.get_running_loop().time() > until:
                    raise
                await self._stop(order.agent_id, busy.run_id)

    async def _refusal(self, order: Order, busy: Busy) -> Busy:
        """A refusal that clients do not repeat by themselves if the very same words were said a moment ago: their
        repeat would be taken for a retry of those (★S61), and the second message would be lost.
        """
        since = self._clock.now() - RETRIED
        said = await self._store.runs.with_request(order.context_id, order.request, since)
        return Busy(order.context_id, busy.run_id, final=said is not None)


def order_of(kept: bytes, request: bytes = b"") -> Order:
    """The order of a run that waited."""
    return dataclasses.replace(msgspec.json.decode(kept, type=Order), request=request)
