"""PostgreSQL: a few threads, each with a connection of its own, one transaction per unit of work.

A connection that the server cut is noticed when it is used. Until COMMIT is sent the server has kept nothing, so the
whole unit is done again on a new connection; if COMMIT itself is cut nobody knows, and the caller is told so.
Above is `open.py`, beside it `sqlite.py`.
"""

import random
import time
from functools import partial
from typing import Any

import structlog
from psycopg import IsolationLevel
from psycopg import OperationalError as PsycopgOperationalError
from psycopg.errors import DeadlockDetected, SerializationFailure
from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from perdure.domain.errors import Unavailable
from perdure.store.database import Database, Inbox, Job, Lane, deliver

log = structlog.get_logger()

ATTEMPTS = 4
CONNECT_SECONDS = 5


def open_server(url: URL, threads: int) -> Database:
    """The database at `url`, already migrated, used by so many connections at most."""
    made = engine(url)
    lane = Lane("postgres", [partial(_serve, made)] * threads)
    return Database((made,), writers=lane, readers=lane, on_close=lambda: None)


def engine(url: URL) -> Engine:
    """An engine without a pool: the threads keep their connections themselves."""
    settings = {"connect_timeout": str(CONNECT_SECONDS), "application_name": "perdure", **url.query}
    return create_engine(
        url.set(drivername="postgresql+psycopg", query=settings), poolclass=NullPool, use_native_hstore=False
    )  # fmt: skip


def _serve(made: Engine, inbox: Inbox) -> None:
    """A thread: one job after another on one connection, made anew when it breaks."""
    session = Session(made)
    while (job := inbox.get()) is not None:
        if job.future.cancelled():
            continue
        session.do(job)
        deliver([job])
    session.drop()


class Session:
    """One thread's connection."""

    def __init__(self, made: Engine):
        self._engine = made
        self._connection: Connection | None = None
        self._reads_only: bool | None = None

    def do(self, job: Job) -> None:
        """Do the job in a transaction; again if the connection broke before COMMIT, or two transactions collided."""
        for left in reversed(range(ATTEMPTS)):
            kept_connection = self._connection is not None
            committing = self._attempt(job)
            if job.error is None:
                return
            broken = _is_broken(job.error) and kept_connection and not committing
            collided = _collided(job.error)
            if not left or not (broken or collided):
                job.error = _translated(job.error, committing)
                return
            if collided:  # or the same two would collide again
                time.sleep(random.uniform(0.002, 0.02))  # noqa: S311

    def _attempt(self, job: Job) -> bool:
        """One transaction; answers whether its COMMIT was sent."""
        committing = False
        try:
            connection = self._begin(job)
            if job.run(connection):
                committing = True
                connection.commit()
            else:
                connection.rollback()
                if _is_broken(job.error):
                    self.drop()
        except Exception as error:  # nobody may be left waiting and the thread must live
            job.error = error
            self.drop()
        return committing

    def _begin(self, job: Job) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            self._reads_only = None
        if self._reads_only != job.read_only:  # goes along with BEGIN: no round trip
            raw: Any = self._connection.connection.driver_connection
            raw.isolation_level = IsolationLevel.REPEATABLE_READ if job.read_only else IsolationLevel.READ_COMMITTED
            raw.read_only = self._reads_only = job.read_only
        self._connection.begin()
        return self._connection

    def drop(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _is_broken(error: Exception | None) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _collided(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and isinstance(error.orig, DeadlockDetected | SerializationFailure)


def _translated(error: Exception, committing: bool) -> Exception:
    """What the caller shall see: a lost or overloaded server as Unavailable, everything else as it is."""
    if not isinstance(error, DBAPIError) or not (error.connection_invalidated or _is_trouble(error)):
        return error
    known = "It is not known whether this was saved" if committing else "Nothing was saved"
    log.warning("the database could not do something", reason=str(error.orig))  # addresses are not for clients
    refusal = Unavailable(f"The database cannot be reached, or is overloaded. {known}; try again.")
    refusal.__cause__ = error
    return refusal


def _is_trouble(error: DBAPIError) -> bool:
    """Connection failures have no SQLSTATE; classes 08, 40, 53, 57, 58 are the server's own difficulties."""
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return isinstance(error.orig, PsycopgOperationalError)
    return state[:2] in ("08", "40", "53", "57", "58")
