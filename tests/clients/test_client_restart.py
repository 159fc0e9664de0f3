"""The unchanged SDKs across a restart: what was streamed before the server was killed is read again, then an end."""

import contextlib
from pathlib import Path

import pytest
from acceptance.stage import Json, types_of
from acceptance.test_crash import Server, served
from acceptance.twin import HANG, Twin, twin
from clients.sdk import Refused, Sdk

pytestmark = pytest.mark.anyio

CREATE = "agents.messages.create"
RESUME = "runs.messages.stream"
IN_BACKGROUND = {"streaming": True, "stream_tokens": True, "background": True}


async def at(sdk: Sdk, server: Server) -> Sdk:
    """The SDK, speaking to this server."""
    async with server.http.get("/v1/health/") as answer:
        return sdk.another(base_url=str(answer.url.origin()))


async def cut_off(sdk: Sdk, server: Server, model: Twin, agent: str) -> list[Json]:
    """What a reader got before the server was killed in the middle of the model's answer."""
    chunks: list[Json] = []
    with contextlib.suppress(Refused):
        async for chunk in sdk.stream(CREATE, agent, input="hi", **IN_BACKGROUND):
            chunks.append(chunk)
            if chunk["message_type"] == "assistant_message":
                await model.fell_silent()
                await server.kill()
    return chunks


async def test_read_on_after_a_restart(tmp_path: Path, sdk: Sdk) -> None:
    """A finished run is read again as it was; a run that was cut off goes on with its end, an error that says why."""
    async with twin() as model:
        async with served(tmp_path, model) as server:
            before = await at(sdk, server)
            agent = (await before.call("agents.create", model="openai/twin"))["id"]
            model.play({"content": "Hello."}, HANG)
            finished = await before.read(CREATE, agent, input="hi", **IN_BACKGROUND)
            received = await cut_off(before, server, model, agent)
            assert types_of(received) == ["ping", "assistant_message"]
        async with served(tmp_path, model) as server:
            after = await at(sdk, server)
            assert await after.read(RESUME, finished[0]["run_id"], starting_after=1) == finished[1:]
            for start in (0, 1, 2):
                rest, failure = await after.broken(RESUME, received[0]["run_id"], starting_after=start)
                assert rest[:-1] == received[start:]
                assert (rest[-1]["message_type"], rest[-1]["stop_reason"]) == ("stop_reason", "error")
                assert failure.body["run_id"] == received[0]["run_id"]
                assert failure.body["message"].startswith("The server stopped")
            assert (await after.call("runs.retrieve", received[0]["run_id"]))["status"] == "failed"
