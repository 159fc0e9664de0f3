"""One run per context, the same request only once, and what a busy agent does (spec §6.1, §6.2, ★S61, extensions)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from acceptance.stage import Cast, Frames, Reply, Stage

from perdure.domain.errors import ModelRateLimited
from perdure.testing import Call, Say, server

pytestmark = pytest.mark.anyio

RETRY = {"x-stainless-retry-count": "1"}


def path(agent: str) -> str:
    """Where messages go."""
    return f"/v1/agents/{agent}/messages"


async def begun(stage: Stage, count: int = 1) -> None:
    """Wait until the model has been asked so many times."""
    async with asyncio.timeout(5):
        while len(stage.requests) < count:
            await asyncio.sleep(0.005)


async def waiting(stage: Stage, agent: str, count: int = 1) -> list[Any]:
    """The runs that wait, once there are so many, oldest first."""
    async with asyncio.timeout(5):
        while True:
            found = await stage.get("/v1/runs/", agent_id=agent, statuses="created", order="asc")
            if len(found.json) >= count:
                return list(found.json)
            await asyncio.sleep(0.005)


async def test_a63_the_clients_own_retry(stage: Stage) -> None:
    """A retry of a request under way joins it; one that comes after the end gets the same result; tools run once."""
    agent, gate = await stage.agent(memory_blocks=[{"label": "human", "value": ""}]), asyncio.Event()
    body = {"input": "I am Bo"}
    insert = Call("memory_insert", {"label": "human", "new_string": "Bo"})
    first = asyncio.create_task(stage.send(agent, body, Say(calls=[insert]), Say("Noted.", gate=gate)))
    await begun(stage, 2)
    retry = asyncio.create_task(stage.call("POST", path(agent), body, headers=RETRY))
    await asyncio.sleep(0.05)
    gate.set()
    late = await stage.call("POST", path(agent), body, headers={"x-stainless-retry-count": "2"})
    assert (await first).json == (await retry).json == late.json
    assert late.types == ["tool_call_message", "tool_return_message", "assistant_message"]
    assert await stage.block(agent, "human") == "Bo"
    assert len(await stage.runs(agent)) == 1


async def test_a63_streamed(stage: Stage) -> None:
    """A retry of a streamed request gets the stream from its beginning."""
    agent = await stage.agent()
    body = {"input": "hi", "streaming": True, "stream_tokens": True}
    first = await stage.send(agent, body, Say(["Hel", "lo."]))
    retry = await stage.call("POST", path(agent), body, headers=RETRY)
    assert first.json == retry.json


async def test_a_retry_of_what_failed(stage: Stage) -> None:
    """A failure that left nothing behind is tried again."""
    agent = await stage.agent()
    body = {"input": "hi"}
    failed = await stage.send(agent, body, Say(fail=ModelRateLimited("Slow down.")))
    stage.play(Say("Hello."))
    again = await stage.call("POST", path(agent), body, headers=RETRY)
    assert (failed.status, again.stop) == (429, "end_turn")
    assert len(await stage.history(agent)) == 2


async def test_a_retry_of_what_failed_half_way(stage: Stage) -> None:
    """A tool that has run is not run again: the retry is told how the run failed, and not to come again."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": ""}])
    body = {"input": "hi"}
    insert = Call("memory_insert", {"label": "human", "new_string": "Bo"})
    failed = await stage.send(agent, body, Say(calls=[insert]), Say(fail=ModelRateLimited("Slow down.")))
    again = await stage.call("POST", path(agent), body, headers=RETRY)
    assert (failed.status, again.status, failed.json) == (429, 429, again.json)
    assert await stage.block(agent, "human") == "Bo"


async def test_another_message_is_no_retry(stage: Stage) -> None:
    """Other words, or the same words without the header, are a request of their own."""
    agent = await stage.agent()
    await stage.send(agent, {"input": "one"}, Say("1"))
    stage.play(Say("2"), Say("3"))
    other = await stage.call("POST", path(agent), {"input": "two"}, headers=RETRY)
    same = await stage.call("POST", path(agent), {"input": "one"})
    assert [reply["messages"][0]["content"] for reply in (other, same)] == ["2", "3"]


async def test_the_same_words_while_busy(stage: Stage) -> None:
    """The client is told not to retry by itself: its retry would be taken for one of the first request."""
    agent, gate = await stage.agent(), asyncio.Event()
    first = asyncio.create_task(stage.send(agent, {"input": "go on"}, Say("1", gate=gate)))
    await begun(stage)
    same, other = await stage.send(agent, {"input": "go on"}), await stage.send(agent, {"input": "stop"})
    gate.set()
    await first
    assert (same.status, same.headers.get("x-should-retry")) == (409, "false")
    assert (other.status, other.headers.get("x-should-retry")) == (409, None)


async def test_the_same_otid_without_a_stream(stage: Stage) -> None:
    """A repeat gets the stored result (★S38), whichever form it asks for; another agent is another request."""
    agent, other = await stage.agent(), await stage.agent()
    body = {"messages": [{"role": "user", "content": "hi", "otid": "my-own-1"}]}
    first = await stage.send(agent, body, Say(think="Hm.", text="Hello."))
    again = await stage.call("POST", path(agent), body)
    streamed = Frames((await stage.call("POST", path(agent), body | {"streaming": True})).json)
    assert first.json == again.json
    assert streamed.data[1:3] == first["messages"]
    assert (streamed.types[-2:], streamed.done) == (["stop_reason", "usage_statistics"], True)
    assert (await stage.send(other, body, Say("Hi."))).status == 200
    assert len(await stage.runs(agent)) == 1


@pytest.mark.parametrize("on_busy", ["enqueue", "interrupt"])
async def test_copies_that_come_at_once(stage: Stage, on_busy: str) -> None:
    """Eight times the same message to a busy agent is one message, whatever it does about the other run."""
    agent, gate = await stage.agent(), asyncio.Event()
    first = asyncio.create_task(stage.send(agent, "one", Say("1", gate=gate)))
    await begun(stage)
    stage.play(Say("2"))
    body = {"messages": [{"role": "user", "content": "two", "otid": "my-own-2"}], "on_busy": on_busy}
    copies = [asyncio.create_task(stage.call("POST", path(agent), body)) for _ in range(8)]
    await asyncio.sleep(0.05)
    gate.set()
    await first
    answers = [await copy for copy in copies]
    assert [answer["messages"][0]["content"] for answer in answers] == ["2"] * 8
    assert len(await stage.runs(agent)) == 2


async def test_the_same_words_again_after_others(stage: Stage) -> None:
    """A refusal of words that were said a moment ago is final: a retry of them would get the old answer."""
    agent, gate = await stage.agent(), asyncio.Event()
    await stage.send(agent, {"input": "yes"}, Say("1"))
    other = asyncio.create_task(stage.send(agent, {"input": "and now?"}, Say("2", gate=gate)))
    await begun(stage, 2)
    refused = await stage.send(agent, {"input": "yes"})
    gate.set()
    await other
    assert (refused.status, refused.headers.get("x-should-retry")) == (409, "false")


async def test_only_whole_requests_repeat(stage: Stage) -> None:
    """Some of the same messages, or messages without an otid among them, are another request."""
    agent = await stage.agent()
    one, two = ({"role": "user", "content": name, "otid": name} for name in ("one", "two"))
    await stage.send(agent, {"messages": [one, two]}, Say("1"))
    await stage.send(agent, {"messages": [one]}, Say("2"))
    await stage.send(agent, {"messages": [one, {"role": "user", "content": "x"}]}, Say("3"))
    assert len(await stage.runs(agent)) == 3


async def test_waiting_in_line(stage: Stage) -> None:
    """First come, first served; a newcomer who will not wait is refused; streams show at once that they live."""
    agent, gate = await stage.agent(), asyncio.Event()
    first = asyncio.create_task(stage.send(agent, "one", Say("1", gate=gate)))
    await begun(stage)
    tasks = []
    for number, text in enumerate(("two", "three", "four"), 1):
        streaming = text == "three"
        tasks.append(asyncio.create_task(stage.send(agent, text, on_busy="enqueue", streaming=streaming)))
        line = await waiting(stage, agent, number)
    refused = await stage.send(agent, "five")
    stage.play(Say("2"), Say("3"), Say("4"))
    gate.set()
    answers: list[Reply] = [await task for task in [first, *tasks]]
    assert (refused.status, [run["status"] for run in line]) == (409, ["created"] * 3)
    assert [answer.status for answer in answers] == [200] * 4
    assert Frames(answers[2].json).types == ["ping", "assistant_message", "stop_reason", "usage_statistics"]
    said = [message["content"] for message in await stage.history(agent)]
    assert said == ["one", "1", "two", "2", "three", "3", "four", "4"]
    assert {run["status"] for run in await stage.runs(agent)} == {"completed"}


async def test_nothing_to_wait_for(stage: Stage) -> None:
    """A free agent answers at once, whatever the request says of a busy one."""
    agent = await stage.agent()
    for word in ("reject", "enqueue", "interrupt"):
        assert (await stage.send(agent, word, Say("Yes."), on_busy=word)).stop == "end_turn"
    assert (await stage.send(agent, "hi", on_busy="shout")).status == 422


async def test_interrupting(stage: Stage) -> None:
    """The run under way is cancelled, the new one goes before those that wait."""
    agent = await stage.agent()
    first = asyncio.create_task(stage.send(agent, "one", Say(hang=True)))
    await begun(stage)
    queued = asyncio.create_task(stage.send(agent, "two", on_busy="enqueue"))
    await waiting(stage, agent)
    urgent = await stage.send(agent, "now", Say("Yes."), Say("2"), on_busy="interrupt")
    assert ((await first).stop, urgent.stop, (await queued).stop) == ("cancelled", "end_turn", "end_turn")
    assert [m["content"] for m in await stage.history(agent)] == ["now", "Yes.", "two", "2"]


async def test_cancelling_the_line(stage: Stage) -> None:
    """A run that waits is cancelled like any other; without ids all of the agent's are."""
    agent = await stage.agent()
    first = asyncio.create_task(stage.send(agent, "one", Say(hang=True)))
    await begun(stage)
    queued = [asyncio.create_task(stage.send(agent, text, on_busy="enqueue")) for text in ("two", "three")]
    line = await waiting(stage, agent, 2)
    one = await stage.call("POST", f"{path(agent)}/cancel", {"run_ids": [line[0]["id"]]})
    rest = await stage.call("POST", f"{path(agent)}/cancel", {})
    answers = [await task for task in (first, *queued)]
    assert one.json == {line[0]["id"]: "cancelled"}
    assert (len(rest.json), set(rest.json.values())) == (2, {"cancelled"})
    assert [answer.stop for answer in answers] == ["cancelled"] * 3
    assert await stage.history(agent) == []
    assert (await stage.send(agent, "hi", Say("Hello."))).stop == "end_turn"


async def test_the_line_is_not_endless(stage: Stage) -> None:
    """A hundred may wait."""
    agent = await stage.agent()
    stage.cast.improvise(lambda _: Say(hang=True))
    body = {"input": "hi", "on_busy": "enqueue"}
    answers = [await stage.call("POST", f"{path(agent)}/async", body) for _ in range(101)]
    refused = await stage.send(agent, "too many", on_busy="enqueue")
    cancelled = await stage.call("POST", f"{path(agent)}/cancel", {})
    assert {answer.status for answer in answers} == {200}
    assert (refused.status, len(cancelled.json)) == (409, 101)
    assert await stage.history(agent) == []


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[str]:
    """A database that outlives a server."""
    return f"sqlite:///{tmp_path / 'kept.db'}"


async def test_the_line_survives_a_restart(place: str) -> None:
    """What waits when the server stops is answered by the next one, and its stream goes on where it was."""
    async with server(Say(hang=True), database_url=place) as running, aiohttp.ClientSession() as http:
        stage = Stage(running, http, Cast())
        agent = await stage.agent()
        first = asyncio.create_task(stage.send(agent, "one"))
        async with asyncio.timeout(5):
            while not running.model.requests:
                await asyncio.sleep(0.005)
        body = {"input": "two", "streaming": True, "background": True, "on_busy": "enqueue"}
        queued = await http.post(f"{running.base_url}{path(agent)}", json=body)
        seen = await queued.content.readuntil(b"\n\n")
        (run,) = await waiting(stage, agent)
        await running.program.executor.drain(0)
        assert (await first).stop == "cancelled"
        assert b"stop_reason" in await queued.read()
    async with server(Say("2"), database_url=place) as running, aiohttp.ClientSession() as http:
        stage = Stage(running, http, Cast())
        replayed = (await stage.call("POST", f"/v1/runs/{run['id']}/stream", {})).json
        assert [message["content"] for message in await stage.history(agent)] == ["two", "2"]
    assert replayed.startswith(seen.decode())
    assert Frames(replayed).types == ["ping", "assistant_message", "stop_reason", "usage_statistics"]
    assert [one["seq_id"] for one in Frames(replayed).data[:2]] == [1, 2]
