"""The store's tests run on both databases: each test that takes `store` or `url` runs twice."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from postgres import TestServer

from perdure.store import SqlStore, open_store


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy; migrating anew for each test would take longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "perdure.db"

    async def migrate() -> None:
        store = await open_store(f"sqlite:///{path}")
        await store.close()

    asyncio.run(migrate())
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh, migrated database."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "perdure.db")
        yield f"sqlite:///{tmp_path / 'perdure.db'}"
        return
    server: TestServer = request.getfixturevalue("postgres")
    made = server.create()
    yield made
    server.drop(made)


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqlStore]:
    """An open store on a fresh database."""
    opened = await open_store(url, pool_size=4)
    yield opened
    await opened.close()
