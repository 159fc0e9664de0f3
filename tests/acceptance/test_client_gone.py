"""Clients that go away, at every stage of an answer: the run goes on, its result is stored, and nothing is left behind.

The client is a bare socket, so that it can stop anywhere. The model says each word when the story tells it to.
"""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import letta_client
import pytest
from acceptance import bell
from acceptance.bell import Rung
from acceptance.rest import at_rest, tasks_of_the_server
from acceptance.stage import Cast, Frames, Stage, types_of
from acceptance.twin import Speech, Twin, twin
from postgres import TestServer

from perdure.models.openai import OpenAIProvider

pytestmark = pytest.mark.anyio

RENDERINGS: dict[str, dict[str, Any]] = {
    "json": {},
    "steps": {"streaming": True},
    "tokens": {"streaming": True, "stream_tokens": True},
    "background": {"streaming": True, "stream_tokens": True, "background": True},
}
STREAMS = [name for name in RENDERINGS if name != "json"]
BY_TOKENS = ["tokens", "background"]
END = ["stop_reason", "usage_statistics"]
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing the socket sends a reset instead of an orderly end."""


class Line:
    """A client's connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self.seen = b""
        """What was read of the body, chunk sizes taken out."""

    async def ask(self, path: str, body: Any, *, only: int | None = None) -> None:
        """Send a request, or the first `only` bytes of its body."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        self._writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data[:only])
        await self._writer.drain()

    async def headers(self) -> None:
        """Read to the end of the headers."""
        await self._reader.readuntil(b"\r\n\r\n")

    async def read_until(self, words: bytes) -> None:
        """Read the body until it ends with these bytes."""
        while not self.seen.endswith(words):
            size = int((await self._reader.readline()).strip() or b"0", 16)
            self.seen += await self._reader.readexactly(size)
            await self._reader.readexactly(2)

    def leave(self, how: str) -> None:
        """Hang up: with a `reset`, or in an orderly way (`close`)."""
        if how == "reset":
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._writer.close()


@pytest.fixture(scope="module")
async def model(anyio_backend: str) -> AsyncIterator[Twin]:
    """The model of all stories here, and the bell."""
    async with twin() as made:
        yield made


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database of this file's own."""
    if request.param == "sqlite":
        path: Path = tmp_path_factory.mktemp("gone") / "perdure.db"
        yield f"sqlite:///{path}"
        return
    server: TestServer = request.getfixturevalue("postgres")
    made = server.create()
    yield made
    server.drop(made)


@pytest.fixture(scope="module")
async def rung(model: Twin, database: str) -> AsyncIterator[Rung]:
    """The server."""
    providers = [OpenAIProvider("openai", model.url, None)]
    async with bell.served(database, providers, model.bell_url, watching=False, synchronous="NORMAL") as served:
        yield served


@pytest.fixture
async def stage(rung: Rung, model: Twin) -> AsyncIterator[Stage]:
    """The stage of one story. When it is over, no task is left of what it began."""
    model.clear()
    async with aiohttp.ClientSession() as http:
        stage = Stage(rung, http, Cast())  # type: ignore[arg-type]
        await stage.get("/v1/health/")
        before = tasks_of_the_server()
        yield stage
        assert (await stage.get("/v1/runs/active")).json == []
        await at_rest(before)
    assert model.left == 0


async def line(stage: Stage) -> Line:
    """A connection to the server."""
    place = urlsplit(stage.running.base_url)
    return Line(*await asyncio.open_connection(place.hostname, place.port))


async def asked(stage: Stage, rendering: str, *turns: Any) -> tuple[str, Line]:
    """An agent, and a connection on which it was sent a message."""
    agent, client = await stage.agent(tools=["ring"]), await line(stage)
    await client.ask(path_of(agent), {"input": "hi", **RENDERINGS[rendering]})
    return agent, client


def path_of(agent: str) -> str:
    """Where messages go."""
    return f"/v1/agents/{agent}/messages"


async def over(stage: Stage, agent: str) -> Any:
    """The agent's only run, once it has ended."""
    async with asyncio.timeout(5):
        while not (runs := await stage.runs(agent)) or runs[0]["completed_at"] is None:
            await asyncio.sleep(0.005)
    (run,) = runs
    return run


async def check(stage: Stage, model: Twin, agent: str, client: Line, rendering: str, *contents: str) -> None:
    """The run completed, its result is listed, it can be resumed if it is a background run, the next message works."""
    run = await over(stage, agent)
    assert (run["status"], run["stop_reason"]) == ("completed", "end_turn")
    said = [message.get("content", message["message_type"]) for message in await stage.history(agent)]
    assert said == ["hi", *contents]
    await check_resuming(stage, run["id"], client, background=rendering == "background")
    model.play({"content": "Again."})
    assert (await stage.send(agent, "again")).stop == "end_turn"


async def check_resuming(stage: Stage, run_id: str, client: Line, *, background: bool) -> None:
    """Foreground: 400. Background: what was seen byte for byte, and then the rest, from any number on."""
    path = f"/v1/runs/{run_id}/stream"
    if not background:
        for method in ("POST", "GET"):
            refused = await stage.call(method, path)
            assert (refused.status, "not in background mode" in refused["detail"]) == (400, True)
        return
    whole: str = (await stage.call("POST", path)).json
    assert whole.encode().startswith(client.seen)
    frames = Frames(whole)
    assert (frames.types[0], frames.types[-2:], frames.done) == ("ping", END, True)
    for last in range(whole.count("\n\n") + 1):
        rest = "".join(part + "\n\n" for part in whole.split("\n\n")[last:-1])
        assert (await stage.call("GET", path, starting_after=last)).json == rest


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("rendering", RENDERINGS)
async def test_before_the_headers(stage: Stage, model: Twin, rendering: str, how: str) -> None:
    """Gone while the model has not said a word: the run goes on all the same (46)."""
    speech = Speech()
    model.play(speech)
    agent, client = await asked(stage, rendering)
    async with asyncio.timeout(5):
        await speech.begun.wait()
    client.leave(how)
    speech.say("Hel", "lo")
    speech.end()
    await check(stage, model, agent, client, rendering, "Hello")


@pytest.mark.parametrize("rendering", RENDERINGS)
async def test_at_once(stage: Stage, model: Twin, rendering: str) -> None:
    """Gone right after the last byte of the request: it came in whole, so it is carried out."""
    speech = Speech()
    speech.say("Hello")
    speech.end()
    model.play(speech)
    agent, client = await asked(stage, rendering)
    client.leave("close")
    await check(stage, model, agent, client, rendering, "Hello")


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("rendering", STREAMS)
async def test_after_the_first_ping(stage: Stage, model: Twin, rendering: str, how: str) -> None:
    """Gone as soon as the run's id is known."""
    speech = Speech()
    model.play(speech)
    agent, client = await asked(stage, rendering)
    await client.headers()
    await client.read_until(b"\n\n")
    client.leave(how)
    speech.say("Hel", "lo")
    speech.end()
    await check(stage, model, agent, client, rendering, "Hello")


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("rendering", BY_TOKENS)
async def test_in_the_middle_of_words(stage: Stage, model: Twin, rendering: str, how: str) -> None:
    """Gone between two words: the rest is said and stored, too."""
    speech = Speech()
    model.play(speech)
    agent, client = await asked(stage, rendering)
    await client.headers()
    speech.say("Hel")
    await client.read_until(b'"content":"Hel"}\n\n')
    client.leave(how)
    speech.say("lo")
    speech.end()
    await check(stage, model, agent, client, rendering, "Hello")


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("rendering", RENDERINGS)
async def test_during_a_tool(stage: Stage, model: Twin, rendering: str, how: str) -> None:
    """Gone while a tool works: it is not disturbed, works once, and its result is used."""
    model.play(model.call("ring", {"word": "ding"}), {"content": "Hello"})
    agent, client = await asked(stage, rendering)
    async with asyncio.timeout(5):
        await model.rings.wait()
    client.leave(how)
    model.bell_answers.set()
    await check(stage, model, agent, client, rendering, "tool_call_message", "tool_return_message", "Hello")
    assert model.rung == ["ding"]


@pytest.mark.parametrize("rendering", RENDERINGS)
async def test_while_the_end_is_due(stage: Stage, model: Twin, rendering: str) -> None:
    """Gone at the very moment the model ends: whatever was sent of the end, it is recorded."""
    speech = Speech()
    speech.say("Hello")
    model.play(speech)
    agent, client = await asked(stage, rendering)
    async with asyncio.timeout(5):
        await speech.begun.wait()
    if rendering in BY_TOKENS:
        await client.headers()
        await client.read_until(b'"content":"Hello"}\n\n')
    speech.end()
    client.leave("reset")
    await check(stage, model, agent, client, rendering, "Hello")


@pytest.mark.parametrize("rendering", STREAMS)
async def test_within_the_terminal_frames(stage: Stage, model: Twin, rendering: str) -> None:
    """Gone after the stop reason, with the usage and [DONE] unread."""
    model.play({"content": "Hello"})
    agent, client = await asked(stage, rendering)
    await client.headers()
    await client.read_until(b"data: [DONE]\n\n")
    client.leave("reset")
    client.seen = client.seen[: client.seen.index(b"usage_statistics")]
    await check(stage, model, agent, client, rendering, "Hello")


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_with_half_a_body(stage: Stage, model: Twin, how: str) -> None:
    """A request that was never sent to its end is none: no run, nothing stored, and the agent is free."""
    agent, client = await stage.agent(), await line(stage)
    await client.ask(path_of(agent), {"input": "hi" * 100}, only=50)
    client.leave(how)
    model.play({"content": "Hello"})
    assert (await stage.send(agent, "whole")).stop == "end_turn"
    assert [message["content"] for message in await stage.history(agent)] == ["whole", "Hello"]
    assert len(await stage.runs(agent)) == 1


async def test_with_half_a_body_and_no_end(stage: Stage, model: Twin) -> None:
    """While half a body is waited for, others are served, the same agent included."""
    agent, client = await stage.agent(), await line(stage)
    await client.ask(path_of(agent), {"input": "hi" * 100}, only=50)
    model.play({"content": "Hello"})
    assert (await stage.send(agent, "whole")).stop == "end_turn"
    client.leave("reset")
    assert len(await stage.runs(agent)) == 1


@pytest.mark.parametrize("rendering", BY_TOKENS)
async def test_a_client_that_never_reads(stage: Stage, model: Twin, rendering: str) -> None:
    """Megabytes for somebody who takes none of them: the run ends as soon as the model does, and others can read it."""
    words = ["x" * 2**16] * 128
    speech = Speech()
    speech.say(*words)
    speech.end()
    model.play(speech)
    agent, client = await asked(stage, rendering)
    run = await over(stage, agent)
    assert (run["status"], (await stage.history(agent))[-1]["content"] == "".join(words)) == ("completed", True)
    if rendering == "background":
        resumed = Frames((await stage.call("POST", f"/v1/runs/{run['id']}/stream")).json)
        assert [len(frame["content"]) for frame in resumed.of("assistant_message")] == [2**16] * 128
        assert resumed.done
    client.leave("reset")
    model.play({"content": "Again."})
    assert (await stage.send(agent, "again")).stop == "end_turn"


async def test_other_readers_are_not_affected(stage: Stage, model: Twin) -> None:
    """Of three readers of a background run two leave in the middle; the third sees every frame as it comes."""
    speech = Speech()
    model.play(speech)
    agent, first = await asked(stage, "background")
    await first.headers()
    await first.read_until(b"\n\n")
    run_id = json.loads(first.seen[6:])["run_id"]
    second, third = await line(stage), await line(stage)
    for client in (second, third):
        await client.ask(f"/v1/runs/{run_id}/stream", {"starting_after": 0})
        await client.headers()
    speech.say("Hel")
    for client in (first, second, third):
        await client.read_until(b'"content":"Hel"}\n\n')
    first.leave("reset")
    second.leave("close")
    speech.say("lo")
    await third.read_until(b'"content":"lo"}\n\n')
    speech.end()
    await third.read_until(b"data: [DONE]\n\n")
    assert third.seen.startswith(first.seen)
    assert first.seen == second.seen
    assert Frames(third.seen.decode()).types == ["ping", "assistant_message", "assistant_message", *END]
    third.leave("close")
    await check(stage, model, agent, third, "background", "Hello")


async def test_all_readers_leave_and_one_returns(stage: Stage, model: Twin) -> None:
    """A run that nobody reads any more goes on; who returns before its end gets what was missed and then what comes."""
    speech = Speech()
    model.play(speech)
    agent, client = await asked(stage, "background")
    await client.headers()
    speech.say("one ")
    await client.read_until(b'"content":"one "}\n\n')
    client.leave("reset")
    run_id = json.loads(client.seen[6 : client.seen.index(b"\n\n")])["run_id"]
    speech.say("two ")
    back = await line(stage)
    await back.ask(f"/v1/runs/{run_id}/stream", {"starting_after": 2})
    await back.headers()
    await back.read_until(b'"content":"two "}\n\n')
    speech.say("three")
    speech.end()
    await back.read_until(b"data: [DONE]\n\n")
    frames = Frames(back.seen.decode())
    assert [frame["content"] for frame in frames.of("assistant_message")] == ["two ", "three"]
    assert [frame["seq_id"] for frame in frames.of("assistant_message")] == [3, 4]
    back.leave("close")
    await check(stage, model, agent, client, "background", "one two three")


async def test_the_sdk_stops_reading(stage: Stage, model: Twin) -> None:
    """The SDK's stream is closed after its first words: the run completes."""
    speech = Speech()
    speech.say("Hel")
    model.play(speech)
    agent = await stage.agent()
    async with letta_client.AsyncLetta(base_url=stage.running.base_url, max_retries=0) as sdk:
        stream = await sdk.agents.messages.create(agent, input="hi", streaming=True, stream_tokens=True)
        async with aclosing(aiter(stream)) as frames:  # type: ignore[type-var]
            assert [(await anext(frames)).message_type for _ in range(2)] == ["ping", "assistant_message"]
        await stream.close()
        speech.say("lo")
        speech.end()
        run = await over(stage, agent)
    assert run["status"] == "completed"
    assert types_of(await stage.history(agent)) == ["user_message", "assistant_message"]
