"""Two servers on one PostgreSQL database: what either does is true for the other at once (architecture.md, leases)."""

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from acceptance.stage import Cast, Stage

from perdure.domain.clock import SystemClock
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text, text_of
from perdure.domain.records import Run
from perdure.runs.order import Order
from perdure.testing import Call, Say, server

pytestmark = pytest.mark.anyio


@pytest.fixture
async def pair(anyio_backend: str, postgres_url: str) -> AsyncIterator[tuple[Stage, Stage]]:
    """Two servers, each with a model of its own."""
    casts = Cast(), Cast()
    async with (
        server(script=casts[0], database_url=postgres_url) as one,
        server(script=casts[1], database_url=postgres_url) as two,
        aiohttp.ClientSession() as http,
    ):
        yield Stage(one, http, casts[0]), Stage(two, http, casts[1])


async def test_taking_turns(pair: tuple[Stage, Stage]) -> None:
    """However requests are spread, each sees all that was said and noted before, and nothing twice."""
    agent = await pair[0].agent(memory_blocks=[{"label": "human", "value": "start"}])
    for number in range(6):
        stage = pair[number % 2]
        insert = Call("memory_insert", {"label": "human", "new_string": f"note {number}"})
        await stage.send(agent, f"word {number}", Say(calls=[insert]), Say(f"answer {number}"))
    last = pair[1].requests[-2]
    said = [text_of(message.content) for message in last.messages if message.role == "user"]
    assert said == [f"word {number}" for number in range(6)]
    assert "\n".join(["start", *(f"note {number}" for number in range(5))]) in last.system
    assert await pair[0].block(agent, "human") == "\n".join(["start", *(f"note {number}" for number in range(6))])
    listed = await pair[0].history(agent)
    assert len({message["id"] for message in listed}) == len(listed) == 24


async def test_one_at_a_time(pair: tuple[Stage, Stage]) -> None:
    """An agent that one server works on is busy for the other; a reset by either is seen by both."""
    agent = await pair[0].agent()
    gate = asyncio.Event()
    sending = asyncio.create_task(pair[0].send(agent, "hi", Say("Hello.", gate=gate)))
    while not pair[0].requests:
        await asyncio.sleep(0.005)
    refused = await pair[1].send(agent, "me too")
    gate.set()
    assert (refused.status, (await sending).stop) == (409, "end_turn")
    assert (await pair[1].call("PATCH", f"/v1/agents/{agent}/reset-messages", {})).status == 200
    await pair[0].send(agent, "again", Say("Hello."))
    assert [text_of(message.content) for message in pair[0].requests[-1].messages] == ["again"]


async def background(stage: Stage, agent: str, *turns: Say) -> tuple[aiohttp.ClientResponse, bytes, str]:
    """A background stream, its first frame and its run."""
    stage.play(*turns)
    url = f"{stage.running.base_url}/v1/agents/{agent}/messages"
    body = {"input": "hi", "streaming": True, "stream_tokens": True, "background": True}
    response = await stage.http.post(url, json=body)
    first = await response.content.readuntil(b"\n\n")
    async with asyncio.timeout(5):
        while not stage.requests:
            await asyncio.sleep(0.005)
    run_id: str = json.loads(first[6:])["run_id"]
    return response, first, run_id


async def test_following_a_run_of_the_other_server(pair: tuple[Stage, Stage]) -> None:
    """Frames arrive while the run is under way, and both servers tell the same to the byte."""
    agent, gate = await pair[0].agent(), asyncio.Event()
    response, first, run_id = await background(pair[0], agent, Say(["Hel", "lo."], gate=gate))
    other = await pair[1].http.get(f"{pair[1].running.base_url}/v1/runs/{run_id}/stream?poll_interval=0.01")
    assert await other.content.readuntil(b"\n\n") == first
    gate.set()
    assert await other.read() == await response.read()
    assert (await pair[1].get(f"/v1/runs/{run_id}/stream", starting_after=1)).json.endswith("data: [DONE]\n\n")


async def test_cancelling_a_run_of_the_other_server(pair: tuple[Stage, Stage]) -> None:
    """The run is cancelled at once, its work stops with the next look, and every reader sees the same end."""
    agent = await pair[0].agent()
    response, first, run_id = await background(pair[0], agent, Say(hang=True))
    cancelled = await pair[1].call("POST", f"/v1/agents/{agent}/messages/cancel", {})
    assert cancelled.json == {run_id: "cancelled"}
    assert (await pair[1].send(agent, "next", Say("Hello."))).stop == "end_turn"
    await pair[0].running.program.executor.watch.look()
    rest = await response.read()
    assert rest.endswith(b'{"message_type":"stop_reason","stop_reason":"cancelled"}\n\ndata: [DONE]\n\n')
    for stage in pair:
        assert (await stage.get(f"/v1/runs/{run_id}/stream")).json == (first + rest).decode()


async def test_a_retry_that_reaches_the_other_server(pair: tuple[Stage, Stage]) -> None:
    """Behind a load balancer an SDK's retry may come out elsewhere: it joins the run all the same (★S61)."""
    agent, gate = await pair[0].agent(), asyncio.Event()
    first = asyncio.create_task(pair[0].send(agent, {"input": "hi"}, Say("Hello.", gate=gate)))
    async with asyncio.timeout(5):
        while not pair[0].requests:
            await asyncio.sleep(0.005)
    headers = {"x-stainless-retry-count": "1"}
    retry = asyncio.create_task(
        pair[1].call("POST", f"/v1/agents/{agent}/messages", {"input": "hi"}, headers=headers)
    )  # fmt: skip
    await asyncio.sleep(0.05)
    gate.set()
    assert (await first).json == (await retry).json
    assert pair[1].requests == []


async def test_a_dead_server(pair: tuple[Stage, Stage]) -> None:
    """What it was working on is ended by the other, and what waited there is taken up."""
    agent = await pair[1].agent()
    now = pair[1].running.program.executor
    dead = Run(
        id=new_id("run"), agent_id=agent, context_id=agent, created_at=SystemClock().now(), worker="worker-dead"
    )  # fmt: skip
    runs = pair[1].running.store.runs
    await runs.accept(dead, b"{}")
    said = Message(id=new_id("message"), role="user", created_at=dead.created_at, content=(Text("hi"),))
    waits = msgspec.structs.replace(dead, id=new_id("run"), status="created", input_count=1)
    order = Order(agent_id=agent, messages=[said], request=b"")
    await runs.enqueue(waits, b"{}", msgspec.json.encode(order), limit=9)
    pair[1].play(Say("Hello."))
    await now.watch.take_over([lease for lease in await runs.leases() if lease.worker == "worker-dead"])
    async with asyncio.timeout(5):
        while (run := (await pair[0].get(f"/v1/runs/{waits.id}")).json)["completed_at"] is None:
            await asyncio.sleep(0.01)
    ended = (await pair[0].get(f"/v1/runs/{dead.id}")).json
    assert (ended["status"], ended["stop_reason"], run["status"]) == ("failed", "error", "completed")
    assert [message["content"] for message in await pair[0].history(agent)] == ["hi", "Hello."]
