"""SQLite: a file in WAL mode, one writing thread with group commit, two reading threads.

Everything that waits while a commit is on its way to the disk goes into the next one, so the price of a durable
commit is shared by all who write at once. Above is `open.py`, beside it `postgres.py`.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from perdure.domain.errors import Unavailable
from perdure.store.database import Database, Inbox, Job, Lane, deliver

LONGEST_GROUP = 256
"""Jobs in one transaction at most, so that the first of them does not wait for ever."""
BUSY_SECONDS = 10
"""How long another program, such as a backup, may hold the file before a write is refused."""
READERS = 2
SYNCHRONOUS = ("FULL", "NORMAL", "EXTRA")
Error = sqlite3.Error


def open_file(path: Path, synchronous: str, release: Callable[[], None]) -> Database:
    """The database in an existing, migrated file. `release` is called once it is closed."""
    writing = engine(path, f"synchronous={synchronous}")
    reading = engine(path, "query_only=ON")
    return Database(
        (writing, reading),
        writers=Lane("writer", [partial(_write, writing.connect())]),
        readers=Lane("reader", [partial(_read, reading.connect()) for _ in range(READERS)]),
        on_close=release,
    )


def engine(path: Path, *pragmas: str) -> Engine:
    """An engine whose driver begins no transactions: `transaction` does."""
    made = create_engine(
        f"sqlite:///{path}", poolclass=NullPool,
        # Opened where failures can be told, then used by one thread each.
        connect_args={
            "timeout": BUSY_SECONDS, "isolation_level": None, "cached_statements": 256, "check_same_thread": False,
        },
    )  # fmt: skip

    def connected(raw: sqlite3.Connection, _record: Any) -> None:
        # SQLite's own lower() knows ASCII only; searches shall ignore case in every script, as on PostgreSQL.
        raw.create_function("lower", 1, _lower, deterministic=True)
        # fullfsync: on macOS a plain fsync leaves the data in the drive's cache.
        for pragma in ("foreign_keys=ON", "cache_size=-8000", "temp_store=MEMORY", "fullfsync=ON", *pragmas):
            raw.execute(f"PRAGMA {pragma}")

    event.listen(made, "connect", connected)
    return made


@contextlib.contextmanager
def transaction(connection: Connection, begin: str) -> Iterator[None]:
    """A transaction that starts with `begin`: BEGIN to read, BEGIN IMMEDIATE to write.

    Not an event of the engine, since any such event makes every statement slower.
    """
    raw_of(connection).execute(begin)
    with connection.begin():
        yield


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def raw_of(connection: Connection) -> sqlite3.Connection:
    """The driver's connection, for what is no statement of ours."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def claim(path: Path) -> Callable[[], None]:
    """Make this process the only one that serves the file; answers how to let go. Raises Unavailable.

    The claim is a transaction left open on a file beside it, so the system ends it with the process, however it dies.
    """
    held = sqlite3.connect(f"{path}.lock", isolation_level=None, timeout=0, check_same_thread=False)
    try:
        held.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        held.close()
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Unavailable(
                f"The file {path}.lock cannot be written ({error}). Check the disk's space and the folder's rights."
            ) from error
        raise Unavailable(
            f"Another Perdure is already serving {path}. Stop that one, or give this one another database."
        ) from error
    return held.close


def create(path: Path) -> None:
    """Make the file, readable by its owner only (it will hold secrets), and switch it to WAL for good."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as raw:
        raw.execute("PRAGMA journal_mode=WAL")


def back_up(path: Path, folder: Path, revision: str, now: datetime) -> Path:
    """A complete copy of the file as `<folder>/<name>-<revision>-<time>.db`."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{path.stem}-{revision}-{now:%Y%m%dT%H%M%S%f}.db"
    os.close(os.open(copy, os.O_CREAT | os.O_RDWR, 0o600))
    with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def _write(connection: Connection, inbox: Inbox) -> None:
    """The writing thread."""
    with connection:
        going = True
        while going:
            group, going = _next_group(inbox)
            wanted = [job for job in group if not job.future.cancelled()]
            if wanted:
                _commit_group(connection, wanted)
                deliver(wanted)
        with contextlib.suppress(sqlite3.Error):  # only advice to the query planner
            raw_of(connection).execute("PRAGMA optimize")


def _next_group(inbox: Inbox) -> tuple[list[Job], bool]:
    """All that waits, at least one job unless the thread shall end; and whether to go on after it."""
    group: list[Job] = []
    job = inbox.get()
    while job is not None:
        group.append(job)
        if len(group) == LONGEST_GROUP:
            return group, True
        try:
            job = inbox.get_nowait()
        except Empty:
            return group, True
    return group, False


def _commit_group(connection: Connection, group: Sequence[Job]) -> None:
    """Do the jobs in one transaction: each gets its own result or error, and none is answered before the commit."""
    try:
        with transaction(connection, "BEGIN IMMEDIATE"):
            if len(group) == 1:
                _run_alone(connection, group[0])
            else:
                _run_each(connection, group)
    except _Abandoned:
        pass  # the only job failed; its error is already with it
    except Exception as error:  # whatever it was, nobody may be left waiting and the thread must live
        for job in group:
            job.error = job.error or translated(error)


class _Abandoned(Exception):
    """Rolls back a transaction that has nothing to save."""


def _run_alone(connection: Connection, job: Job) -> None:
    if not job.run(connection):
        job.error = job.error and translated(job.error)
        raise _Abandoned


def _run_each(connection: Connection, group: Sequence[Job]) -> None:
    raw = raw_of(connection)
    for job in group:
        raw.execute("SAVEPOINT job")
        if not job.run(connection):
            job.error = job.error and translated(job.error)
            if job.error and not raw.in_transaction:  # a full disk or an I/O error ended it: all of it has failed
                raise job.error
            raw.execute("ROLLBACK TO job")
        raw.execute("RELEASE job")


def _read(connection: Connection, inbox: Inbox) -> None:
    """A reading thread."""
    with connection:
        while (job := inbox.get()) is not None:
            if job.future.cancelled():
                continue
            try:
                with transaction(connection, "BEGIN"):
                    job.run(connection)
            except Exception as error:  # as above
                job.error = job.error or error
            job.error = job.error and translated(job.error)
            deliver([job])


def translated(error: Exception) -> Exception:
    """What the caller shall see: trouble with the file (busy, full, unreadable) as Unavailable, the rest as it is."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, sqlite3.OperationalError) or cause.sqlite_errorcode == sqlite3.SQLITE_ERROR:
        return error
    refusal = Unavailable(f"The database could not do this ({cause}). Nothing was saved; try again.")
    refusal.__cause__ = error
    return refusal
