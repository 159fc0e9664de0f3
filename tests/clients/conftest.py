"""One server for all stories; each is told twice, through the Python SDK and through the npm SDK in Node."""

import logging
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import structlog
from acceptance.stage import Cast, Stage
from clients.node import Node, NodeSdk, missing
from clients.sdk import Options, PythonSdk, Sdk

from perdure import testing
from perdure.testing import Running


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """Failures that a story provokes are not told."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def cast() -> Cast:
    """What the model says."""
    return Cast()


@pytest.fixture(scope="session")
async def shared(anyio_backend: str, cast: Cast) -> AsyncIterator[Running]:
    """The server."""
    async with testing.server(script=cast) as running:
        yield running


@pytest.fixture(scope="session")
async def node(anyio_backend: str) -> AsyncIterator[Node]:
    """The Node process, which the first story that needs it starts."""
    made = Node()
    yield made
    await made.stop()


@pytest.fixture
async def stage(anyio_backend: str, shared: Running, cast: Cast) -> AsyncIterator[Stage]:
    """The stage of one story. All turns that it gives the model must be played."""
    cast.clear()
    async with aiohttp.ClientSession() as http:
        yield Stage(shared, http, cast)
    assert cast.left() == 0, f"{cast.left()} turns were not played"


@pytest.fixture(params=["python", "node"])
async def sdk(anyio_backend: str, request: pytest.FixtureRequest, shared: Running, node: Node) -> Sdk:
    """The SDK that the story is told through, with its defaults."""
    options = Options(shared.base_url)
    if request.param == "python":
        return PythonSdk(options)
    if reason := missing():
        pytest.skip(reason)
    await node.start()
    return NodeSdk(options, node)
