"""What all tests share: no network but this machine, one kind of event loop, a running server on request."""

from collections.abc import AsyncIterator, Iterator

import network_lock
import pytest
from postgres import postgres, postgres_url

from perdure import testing
from perdure.testing import Running

__all__ = ["postgres", "postgres_url"]

network_lock.close()


@pytest.fixture(autouse=True)
def stays_on_this_machine() -> Iterator[None]:
    """Fails a test that tried to leave this machine, even if the code under test hid the error."""
    network_lock.attempts.clear()
    yield
    tried = list(network_lock.attempts)
    network_lock.attempts.clear()
    if tried:
        pytest.fail(f"The test tried to {', '.join(tried)}.", pytrace=False)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The server runs on asyncio only."""
    return "asyncio"


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[Running]:
    """A server of this test's own, on SQLite; `server.model.play(...)` gives its model turns."""
    async with testing.server() as running:
        yield running
