"""Two servers on one PostgreSQL database: what either does is true for the other at once (architecture.md, leases)."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from acceptance.stage import Cast, Stage

from perdure.domain.messages import text_of
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
