"""What tests of models share: the twin of a model server, providers that talk to it, and an ear for their pieces."""

from collections.abc import AsyncIterator

import pytest
from hearing import KEY, Pauses
from twin import Twin

from perdure.models.openai import OpenAIProvider


@pytest.fixture
async def twin(anyio_backend: str) -> AsyncIterator[Twin]:
    """A model server on a free port."""
    twin = Twin()
    await twin.server.start_server(shutdown_timeout=0.1)
    yield twin
    await twin.server.close()


@pytest.fixture
def pauses() -> Pauses:
    """The pauses a client made before it asked again; none of them takes any time."""
    return Pauses()


@pytest.fixture
async def provider(twin: Twin, pauses: Pauses) -> AsyncIterator[OpenAIProvider]:
    """A provider of the twin's models, with a key and a second's patience."""
    provider = OpenAIProvider("twin", twin.base_url, KEY, idle=1.0, sleep=pauses)
    yield provider
    await provider.close()
