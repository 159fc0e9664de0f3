"""Units of work on database threads. Knows nothing of tables; `sqlite.py` and `postgres.py` serve the lanes.

A unit of work is one plain function `work(connection, *arguments)` that does all its statements in one transaction
and answers plain values. The event loop only hands it over and gets the result back: one hop per transaction, not
one per statement.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy import Connection, Engine, event

from perdure.domain.errors import Unavailable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Job:
    """One unit of work and the future that waits for it."""

    __slots__ = ("arguments", "error", "future", "loop", "read_only", "result", "work")

    def __init__(self, work: Callable[..., Any], arguments: tuple[Any, ...], *, read_only: bool = False):
        self.work, self.arguments, self.read_only = work, arguments, read_only
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.error: Exception | None = None

    def run(self, connection: Connection) -> bool:
        """Do the work and keep what came of it; answers whether it succeeded."""
        try:
            self.result, self.error = self.work(connection, *self.arguments), None
        except Exception as error:  # whatever the work raised belongs to the one who awaits it
            self.error = error
        return self.error is None


Inbox = SimpleQueue[Job | None]
"""Jobs for a lane's threads. None ends one thread."""


class Lane:
    """Threads that serve one queue. Each of `lives` is what a thread does with it, until it takes a None."""

    def __init__(self, name: str, lives: Sequence[Callable[[Inbox], None]]):
        self._inbox: Inbox = SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=live, args=(self._inbox,), name=f"perdure-{name}-{n}", daemon=True)
            for n, live in enumerate(lives)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Unavailable after `close`."""
        if self._closed:
            raise Unavailable("The database is closed because the server is shutting down. Try again later.")
        self._inbox.put(job)

    async def close(self) -> None:
        """Let the threads finish what is queued, then end them."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._inbox.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)


def deliver(jobs: Sequence[Job]) -> None:
    """Hand results to those who wait: one wake-up per event loop, however many jobs."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, settled in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits any more
            loop.call_soon_threadsafe(_settle, settled)


def _settle(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.future.done():  # the waiting task was cancelled; the work stands as it is
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


@dataclass
class Tally:
    """What was sent to the database while counting: statements in order, and how many transactions began."""

    statements: list[str] = field(default_factory=list)
    transactions: int = 0


class Database:
    """Where units of work go. `engines` are those behind the lanes, for counting."""

    def __init__(self, engines: Sequence[Engine], *, writers: Lane, readers: Lane, on_close: Callable[[], None]):
        self.dialect = engines[0].dialect.name
        self._engines, self._writers, self._readers, self._on_close = engines, writers, readers, on_close

    async def write(self, work: Callable[[Connection, *Ts], T], *arguments: *Ts) -> T:
        """Run `work(connection, …)` in a transaction that may write; when this returns, it is durable.

        If the caller is cancelled before a thread takes it up, nothing is done; later, it is done all the same.
        """
        job = Job(work, arguments)
        self._writers.submit(job)
        result: T = await job.future
        return result

    async def read(self, work: Callable[[Connection, *Ts], T], *arguments: *Ts) -> T:
        """Run `work(connection, …)` in a transaction that only reads, all of it from one snapshot."""
        job = Job(work, arguments, read_only=True)
        self._readers.submit(job)
        result: T = await job.future
        return result

    @contextlib.contextmanager
    def tally(self) -> Iterator[Tally]:
        """Count statements and transactions for as long as the context is open; costs nothing otherwise."""
        tally = Tally()

        def executed(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
            tally.statements.append(statement)

        def began(_conn: Any) -> None:
            tally.transactions += 1

        for engine in self._engines:
            event.listen(engine, "before_cursor_execute", executed)
            event.listen(engine, "begin", began)
        try:
            yield tally
        finally:
            for engine in self._engines:
                event.remove(engine, "before_cursor_execute", executed)
                event.remove(engine, "begin", began)

    async def close(self) -> None:
        """Finish what is queued and give the connections back. Safe to call twice."""
        await self._writers.close()
        if self._readers is not self._writers:
            await self._readers.close()
        for engine in self._engines:
            engine.dispose()
        self._on_close()
