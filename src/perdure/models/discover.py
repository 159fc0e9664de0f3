"""Model servers that run on this machine: found by their usual ports, so that they need no configuration."""

import asyncio
from collections.abc import Sequence

from perdure.domain.errors import ModelError
from perdure.models.openai import OpenAIProvider

USUAL = (
    ("ollama", 11434, "ollama"),
    ("lmstudio", 1234, "lmstudio_openai"),
    ("llamacpp", 8080, "openai"),
    ("vllm", 8000, "vllm"),
)
PATIENCE = 0.3
"""Seconds for all of them together; nobody waits for a server that is not there."""


async def probe_local(
    taken: Sequence[str] = (), *, except_port: int | None = None, servers: Sequence[tuple[str, int, str]] = USUAL
) -> list[OpenAIProvider]:
    """Providers for the loopback ports that accept a connection and list models; names in `taken` are left alone."""
    wanted = [row for row in servers if row[0] not in taken and row[1] != except_port]
    found = await asyncio.gather(*(_probe(*row) for row in wanted))
    return [provider for provider in found if provider]


async def _probe(name: str, port: int, provider_type: str) -> OpenAIProvider | None:
    provider, found = OpenAIProvider(name, f"http://127.0.0.1:{port}/v1", None, provider_type=provider_type), False
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            found = bool(await provider.list_models())
    except (OSError, TimeoutError, ModelError):
        pass  # whatever listens there and is no model server is none of our business
    finally:
        if not found:
            await provider.close()
    return provider if found else None
