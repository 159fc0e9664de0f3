"""The public test kit: what it promises to those who test their own agents with it."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from letta_client import APIStatusError, AsyncLetta, AuthenticationError
from letta_client.types.agents import LettaResponse

from perdure.agent.turn import Options
from perdure.domain.clock import SystemClock
from perdure.domain.events import RunEnded, RunStarted, StepCommitted, TextDelta
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text, Usage
from perdure.domain.ports import ModelRequest
from perdure.runs.order import Order
from perdure.testing import Call, Recorder, Running, Say, record, server

pytestmark = pytest.mark.anyio


async def test_a_server_plays_a_script_to_the_real_sdk() -> None:
    """Two model calls with a tool between them; the requests can be looked at afterwards."""
    append = Call("core_memory_append", {"label": "human", "content": "Likes tea."})
    async with server(Say(calls=[append]), Say("Noted.")) as running, AsyncLetta(base_url=running.base_url) as client:
        agent = await client.agents.create(
            model=running.handle, memory_blocks=[{"label": "human", "value": "Ada."}], tools=["core_memory_append"]
        )
        reply = await client.agents.messages.create(agent.id, input="I like tea.")
        assert [message.message_type for message in reply.messages] == [
            "tool_call_message", "tool_return_message", "assistant_message",
        ]  # fmt: skip
        running.model.assert_done()
        assert len(running.model.requests) == 2
        assert [block.value for block in (await running.store.agents.get(agent.id)).blocks] == ["Ada.\nLikes tea."]


async def test_a_function_can_play_instead_of_a_list(server: Running) -> None:
    """The fixture's model takes turns while it runs."""
    async with AsyncLetta(base_url=server.base_url) as client:
        agent = await client.agents.create(model=server.handle)
        for words in ("One.", "Two."):
            server.model.play(Say(words))
            assert (await client.agents.messages.create(agent.id, input="?")).messages[-1].content == words


async def test_nothing_of_a_server_outlives_its_block() -> None:
    """A run that hangs is cancelled, and its client is told; the port is closed."""
    asked = asyncio.Event()

    def never(_: ModelRequest) -> Say:
        asked.set()
        return Say(hang=True)

    async with AsyncExitStack() as last, server(script=never) as running:
        client = await last.enter_async_context(AsyncLetta(base_url=running.base_url, max_retries=0))
        agent = await client.agents.create(model=running.handle)
        waiting = asyncio.create_task(client.agents.messages.create(agent.id, input="?"))
        await asked.wait()
        last.push_async_callback(lambda: told(waiting))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*running.base_url.removeprefix("http://").split(":"))


async def told(waiting: asyncio.Task[LettaResponse]) -> None:
    """The end of a cancelled run, as its client sees it."""
    assert (await waiting).stop_reason.stop_reason == "cancelled"


async def test_a_server_can_have_a_password_and_other_settings() -> None:
    """Whatever the environment says, only what the test says counts."""
    async with server(password="sesame", max_body_bytes=2048) as running:
        async with AsyncLetta(base_url=running.base_url) as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.agents.list()
        async with AsyncLetta(base_url=running.base_url, api_key="sesame", max_retries=0) as friend:
            with pytest.raises(APIStatusError, match="larger than"):
                await friend.blocks.create(label="x", value="v" * 4096)


async def test_the_recorder_keeps_what_a_run_tells() -> None:
    """Events in order, the words as they were streamed, and exactly one end."""
    async with server(Say(["Hel", "lo."])) as running, AsyncLetta(base_url=running.base_url) as client:
        agent = (await client.agents.create(model=running.handle)).id
        said = Message(id=new_id("message"), role="user", created_at=SystemClock().now(), content=(Text("Hi"),))
        recorder = await record(running.program.executor, Order(agent, [said], b"{}", Options(deltas=True)))
    assert [type(event) for event in recorder] == [RunStarted, TextDelta, TextDelta, StepCommitted, RunEnded]
    assert recorder.text == "Hello."
    assert recorder.ended.stop_reason == "end_turn"


async def test_the_recorder_refuses_a_run_without_an_end() -> None:
    """Or with two."""
    recorder, end = Recorder(), RunEnded("end_turn", Usage(), 1)
    recorder(RunStarted("run-1"))
    with pytest.raises(AssertionError, match="the last event is RunStarted"):
        _ = recorder.ended
    recorder(end)
    assert recorder.ended is end
    recorder(end)
    with pytest.raises(AssertionError, match="a run ends once"):
        _ = recorder.ended
