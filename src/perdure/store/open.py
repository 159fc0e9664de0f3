"""From a URL to a store: find the database, bring its schema up to date, start its threads."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from perdure.domain.clock import Clock, SystemClock
from perdure.domain.errors import Invalid, Unavailable
from perdure.domain.ids import DEFAULT_TENANT
from perdure.store import sqlite, upgrade
from perdure.store.agents import SqlAgents
from perdure.store.blocks import SqlBlocks
from perdure.store.contexts import SqlContexts
from perdure.store.database import Database
from perdure.store.messages import SqlMessages
from perdure.store.runs import SqlRuns
from perdure.store.schema import REVISION
from perdure.store.tools import SqlTools

UPGRADE_LOCK = 0x7065726475726531
"""The advisory lock that lets one server upgrade while others wait ("perdure1")."""


class SqlStore:
    """The store of one tenant (port `Store`). Tenants share the database through `scoped`."""

    def __init__(self, db: Database, *, clock: Clock, tenant: str = DEFAULT_TENANT):
        self.db, self.tenant, self._clock = db, tenant, clock
        self.exclusive = db.dialect == "sqlite"
        self.agents = SqlAgents(db, tenant)
        self.blocks = SqlBlocks(db, tenant)
        self.tools = SqlTools(db, tenant)
        self.messages = SqlMessages(db, tenant)
        self.contexts = SqlContexts(db, tenant)
        self.runs = SqlRuns(db, tenant, clock)

    def scoped(self, tenant: str) -> "SqlStore":
        """The store of another tenant in the same database; closing either closes the database."""
        return SqlStore(self.db, clock=self._clock, tenant=tenant)

    async def close(self) -> None:
        """Finish what is queued and give everything back."""
        await self.db.close()


async def open_store(
    url: str, *, backups: Path | None = None, synchronous: str = "FULL", pool_size: int = 8,
    clock: Clock | None = None,
) -> SqlStore:
    """Open `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://…`, making or upgrading the schema.

    An SQLite file is first copied to `backups` (default: `backups` beside it). `synchronous` is SQLite's; with less
    than FULL a power failure can take acknowledged writes. `pool_size` is the number of PostgreSQL connections.
    Raises Invalid (url, foreign tables), SchemaTooNew, Unavailable (no connection; file served by another process).
    """
    clock = clock or SystemClock()
    place = _place(url)
    if place.get_backend_name() == "sqlite":
        db = await asyncio.to_thread(_open_sqlite, place, backups, synchronous, clock)
    else:
        db = await asyncio.to_thread(_open_postgres, place, pool_size)
    return SqlStore(db, clock=clock)


def _place(url: str) -> URL:
    if url.startswith("postgres://"):
        url = "postgresql://" + url.removeprefix("postgres://")
    try:
        place = make_url(url)
    except ArgumentError:
        place = None
    if place is not None and place.get_backend_name() == "sqlite" and place.database not in (None, "", ":memory:"):
        return place
    if place is not None and place.get_backend_name() == "postgresql":
        return place
    raise Invalid(
        f"Not a database that Perdure can use: {place.render_as_string() if place else url!r}. "
        "Write sqlite:///path/to/file.db or postgresql://user:password@host/database."
    )


def _open_sqlite(place: URL, backups: Path | None, synchronous: str, clock: Clock) -> Database:
    if synchronous not in sqlite.SYNCHRONOUS:
        raise Invalid(f"synchronous is {synchronous!r}; choose one of {', '.join(sqlite.SYNCHRONOUS)}.")
    path = Path(str(place.database)).absolute()
    release: Callable[[], None] | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        release = sqlite.claim(path)
        _upgrade_file(path, backups or path.parent / "backups", clock.now())
        return sqlite.open_file(path, synchronous, release)
    except BaseException as error:
        if release:
            release()
        if isinstance(error, OSError | DBAPIError | sqlite.Error):
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise Unavailable(f"Cannot open the database {path}: {cause}. Check the path and its rights.") from error
        raise


def _upgrade_file(path: Path, backups: Path, now: datetime) -> None:
    sqlite.create(path)
    # Rebuilding a table, as SQLite's ALTER needs it, must not fire the references to it: they are off here.
    made = sqlite.engine(path, begin="BEGIN IMMEDIATE", pragmas=("foreign_keys=OFF",))
    try:
        with made.connect() as connection, connection.begin():
            revision = upgrade.revision_of(connection)
        if revision == REVISION:
            return
        if revision is not None:
            sqlite.back_up(path, backups, revision, now)
        _upgrade(made, lambda _: None)
    finally:
        made.dispose()


def _open_postgres(place: URL, pool_size: int) -> Database:
    from perdure.store import postgres  # psycopg is loaded only by those who use it

    made = postgres.engine(place)
    try:
        with made.connect() as connection, connection.begin():
            revision = upgrade.revision_of(connection)
        if revision != REVISION:
            _upgrade(made, _take_upgrade_lock)
    except DBAPIError as error:
        raise Unavailable(f"Cannot use the PostgreSQL database: {error.orig}. Check the URL and the server.") from error
    finally:
        made.dispose()
    return postgres.open_server(place, pool_size)


def _take_upgrade_lock(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})


def _upgrade(made: Engine, lock: Callable[[Connection], None]) -> None:
    """All missing steps in one transaction, unless another server has done them by the time we hold the lock."""
    with made.connect() as connection, connection.begin():
        lock(connection)
        if upgrade.revision_of(connection) != REVISION:
            upgrade.upgrade(connection)
