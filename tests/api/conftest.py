"""One server for all tests of this folder; each test works on things of its own."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from api.served import Client, made_deps, serving

from perdure.api.app import create_app
from perdure.api.deps import Deps


@pytest.fixture(scope="session")
async def deps(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deps]:
    """What the server is made of."""
    async with made_deps(tmp_path_factory.mktemp("api")) as made:
        yield made


@pytest.fixture(scope="session")
async def client(anyio_backend: str, deps: Deps) -> AsyncIterator[Client]:
    """A client of one server that all tests of this folder share; each works on things of its own."""
    async with serving(create_app(deps)) as base, aiohttp.ClientSession() as session:
        yield Client(base, session)
