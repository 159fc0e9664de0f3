"""From a URL to a store: find the database, bring its schema up to date, start its threads."""

import asyncio
import contextlib
from pathlib import Path

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from perdure.domain.clock import Clock, SystemClock
from perdure.domain.errors import Invalid, Unavailable
from perdure.domain.ids import DEFAULT_TENANT
from perdure.store import sqlite
from perdure.store.agents import SqlAgents
from perdure.store.blocks import SqlBlocks
from perdure.store.contexts import SqlContexts
from perdure.store.conversations import SqlConversations
from perdure.store.database import Database
from perdure.store.log import SqlLog
from perdure.store.messages import SqlMessages
from perdure.store.runs import SqlRuns
from perdure.store.tools import SqlTools
from perdure.store.upgrade import FOLDER, Migrations

UPGRADE_LOCK = 0x7065726475726531
"""The advisory lock (the letters `perdure1`) under which one server upgrades while others wait."""


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
        self.conversations = SqlConversations(db, tenant)
        self.runs = SqlRuns(db, tenant, clock)
        self.log = SqlLog(db, tenant)

    def scoped(self, tenant: str) -> "SqlStore":
        """The store of another tenant in the same database; closing either closes the database."""
        return SqlStore(self.db, clock=self._clock, tenant=tenant)

    async def close(self) -> None:
        """Finish what is queued and give everything back."""
        await self.db.close()


async def open_store(
    url: str, *, backups: Path | None = None, synchronous: str = "FULL", pool_size: int = 8,
    clock: Clock | None = None, migrations: Path = FOLDER,
) -> SqlStore:
    """Open `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://…`, making or upgrading the schema.

    An SQLite file is copied to `backups` (default: `backups` beside it) before it is upgraded. `synchronous` is
    SQLite's; with less than FULL a power failure can take acknowledged writes. `pool_size` is the number of
    PostgreSQL connections. `migrations` is the folder of Alembic's steps.
    Raises Invalid (url, foreign tables), SchemaTooNew, Unavailable (no connection; file served by another process).
    """
    clock = clock or SystemClock()
    place = _place(url)
    if place.get_backend_name() == "sqlite":
        db = await asyncio.to_thread(_open_sqlite, place, Migrations(migrations), backups, synchronous, clock)
    else:
        db = await asyncio.to_thread(_open_postgres, place, Migrations(migrations), pool_size)
    return SqlStore(db, clock=clock)


def schema_revision(url: str, migrations: Migrations) -> str | None:
    """The schema of a database, which is only read; None if there is none yet.

    Raises Invalid, SchemaTooNew, and what the driver raises.
    """
    place = _place(url)
    if place.get_backend_name() == "sqlite":
        path = Path(str(place.database)).absolute()
        if not path.exists():
            return None
        engine = sqlite.engine(path, "query_only=ON")
    else:
        from perdure.store import postgres  # psycopg is loaded only by those who use it

        engine = postgres.engine(place)
    with engine.connect() as connection:
        return migrations.revision_of(connection)


def _place(url: str) -> URL:
    """The URL in parts. Raises Invalid for one that names no database we know, without showing its password."""
    if url.startswith("postgres://"):
        url = "postgresql://" + url.removeprefix("postgres://")
    shown = "the URL given"
    with contextlib.suppress(ArgumentError, ValueError):
        place = make_url(url)
        shown = place.render_as_string()
        known = {"postgresql": True, "sqlite": place.database not in (None, "", ":memory:")}
        if known.get(place.get_backend_name()):
            return place
    raise Invalid(
        f"Not a database that Perdure can use: {shown}. "
        "Write sqlite:///path/to/file.db or postgresql://user:password@host/database."
    )


def _open_sqlite(
    place: URL, migrations: Migrations, backups: Path | None, synchronous: str, clock: Clock
) -> Database:
    if synchronous not in sqlite.SYNCHRONOUS:
        raise Invalid(f"synchronous is {synchronous!r}; choose one of {', '.join(sqlite.SYNCHRONOUS)}.")
    path = Path(str(place.database)).absolute()
    with contextlib.ExitStack() as undo:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            release = sqlite.claim(path)
            undo.callback(release)
            sqlite.create(path)
            _upgrade_file(path, migrations, backups or path.parent / "backups", clock)
            db = sqlite.open_file(path, synchronous, release)
        except (OSError, DBAPIError, sqlite.Error) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise Unavailable(f"Cannot open the database {path}: {cause}. Check the path and its rights.") from error
        undo.pop_all()
        return db


def _upgrade_file(path: Path, migrations: Migrations, backups: Path, clock: Clock) -> None:
    # Rebuilding a table, as SQLite's ALTER needs it, must not fire the references to it: they are off here.
    made = sqlite.engine(path, "foreign_keys=OFF")
    with made.connect() as connection:
        with sqlite.transaction(connection, "BEGIN"):
            revision = migrations.revision_of(connection)
        if revision == migrations.newest:
            return
        if revision is not None:
            sqlite.back_up(path, backups, revision, clock.now())
        with sqlite.transaction(connection, "BEGIN IMMEDIATE"):
            migrations.run(connection)


def _open_postgres(place: URL, migrations: Migrations, pool_size: int) -> Database:
    from perdure.store import postgres  # psycopg is loaded only by those who use it

    try:
        with postgres.engine(place).connect() as connection:
            with connection.begin():
                revision = migrations.revision_of(connection)
            if revision != migrations.newest:
                with connection.begin():
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
                    migrations.run(connection)
    except DBAPIError as error:
        raise Unavailable(f"Cannot use the PostgreSQL database: {error.orig}. Check the URL and the server.") from error
    return postgres.open_server(place, pool_size)
