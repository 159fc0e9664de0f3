"""One server per database for all stories; each story works on agents of its own and gives the model its turns."""

import logging
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import structlog
from acceptance.stage import Cast, Stage
from postgres import TestServer, postgres, postgres_url

from perdure import testing
from perdure.domain.records import ModelInfo
from perdure.testing import Running, ScriptedModel, ScriptedProvider

__all__ = ["postgres", "postgres_url"]

LARGE = ModelInfo(
    handle="other/large", name="large", provider_name="other", provider_type="openai", endpoint_type="openai",
    context_window=1_000_000,
)  # fmt: skip
EMBEDDER = ModelInfo(
    handle="other/embedder", name="embedder", provider_name="other", provider_type="openai", endpoint_type="openai",
    kind="embedding", embedding_dim=8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """Failures that a story provokes are not told: printing a traceback with all its variables takes a second."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def cast() -> Cast:
    """What the model of these servers says."""
    return Cast()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Where the server keeps everything: None for an SQLite file of its own, or a fresh PostgreSQL database."""
    if request.param == "sqlite":
        yield None
        return
    server: TestServer = request.getfixturevalue("postgres")
    made = server.create()
    yield made
    server.drop(made)


@pytest.fixture(scope="session")
async def both(anyio_backend: str, cast: Cast, database_url: str | None) -> AsyncIterator[Running]:
    """A server on either database. Image URLs may lead to this machine, where the tests serve them."""
    other = ScriptedProvider(ScriptedModel(cast, LARGE), ScriptedModel(cast, EMBEDDER), name="other")
    async with testing.server(
        script=cast, providers=[other], database_url=database_url, egress_allow=["127.0.0.1"], max_body_bytes=2**19
    ) as running:
        yield running


@pytest.fixture
async def stage(anyio_backend: str, both: Running, cast: Cast) -> AsyncIterator[Stage]:
    """The stage of one story, which is told on both databases. All turns that it gives the model must be played."""
    cast.clear()
    async with aiohttp.ClientSession() as http:
        yield Stage(both, http, cast)
    assert cast.left() == 0, f"{cast.left()} turns were not played"
