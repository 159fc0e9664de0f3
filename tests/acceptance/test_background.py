"""Background streams: numbered, kept, resumed from any place (behaviour spec §4.7 and §11, 47-50)."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from acceptance.stage import Cast, Frames, Stage

from perdure.testing import Call, Say, server

pytestmark = pytest.mark.anyio

INSERT = Call("memory_insert", {"label": "human", "new_string": "Bo"}, id="call_a")
END = ["stop_reason", "usage_statistics"]
BACKGROUND = {"streaming": True, "stream_tokens": True, "background": True}


class Ticking:
    """A clock that can be set forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        """Real time, set forward."""
        return datetime.now(UTC) + self.ahead


async def opened(stage: Stage, agent: str, **fields: Any) -> aiohttp.ClientResponse:
    """A background stream whose frames are still to come."""
    url = f"{stage.running.base_url}/v1/agents/{agent}/messages"
    return await stage.http.post(url, json={"input": "hi", **BACKGROUND, **fields})


async def frame(response: aiohttp.ClientResponse) -> bytes:
    """The next frame, as it came."""
    return await response.content.readuntil(b"\n\n")


async def resumed(stage: Stage, run_id: str, **body: Any) -> str:
    """What resuming gives, as it came."""
    answer = await stage.call("POST", f"/v1/runs/{run_id}/stream", body)
    assert answer.status == 200, answer.json
    text: str = answer.json
    return text


async def until(stage: Stage, run_id: str, status: str) -> Any:
    """The run, once it has this status."""
    async with asyncio.timeout(5):
        while (run := (await stage.get(f"/v1/runs/{run_id}")).json)["status"] != status:
            await asyncio.sleep(0.005)
    return run


async def test_a47_dropped_and_resumed(stage: Stage) -> None:
    """Whoever lost the connection after frame 3 gets frame 4 and all that follow, without a gap or a repeat."""
    agent, gate = await stage.agent(memory_blocks=[{"label": "human", "value": ""}]), asyncio.Event()
    stage.play(Say(think="Note.", calls=[INSERT]), Say(["No", "ted."], gate=gate))
    response = await opened(stage, agent)
    seen = [await frame(response) for _ in range(3)]
    response.close()
    gate.set()
    numbers = [json.loads(one[6:])["seq_id"] for one in seen]
    run_id = json.loads(seen[0][6:])["run_id"]
    rest = await resumed(stage, run_id, starting_after=3)
    whole = await resumed(stage, run_id)
    assert numbers == [1, 2, 3]
    assert b"".join(seen).decode() + rest == whole
    frames = Frames(whole)
    assert (frames.types[-4:], frames.done) == (["assistant_message", "assistant_message", *END], True)
    told = [one["seq_id"] for one in frames.data if "seq_id" in one]
    assert told == list(range(1, len(told) + 1))
    run = (await stage.get(f"/v1/runs/{run_id}")).json
    assert (run["status"], run["background"], run["stop_reason"]) == ("completed", True, "end_turn")


async def test_a48_without_a_body_and_by_get(stage: Stage) -> None:
    """Everything may be left out; the GET form answers the same; pings can be left out."""
    agent = await stage.agent()
    whole = await stage.stream(agent, "hi", Say(["Hel", "lo."]), stream_tokens=True, background=True)
    path = f"/v1/runs/{whole.data[0]['run_id']}/stream"
    assert (await stage.call("POST", path)).json == whole.text
    assert (await stage.get(path)).json == whole.text
    assert (await stage.get(path, include_pings="false")).json == whole.text.partition("\n\n")[2]
    assert Frames((await stage.get(path, starting_after=2)).json).types == ["assistant_message", *END]
    assert (await stage.get(path, starting_after=6)).json == ""


async def test_any_place_to_go_on(stage: Stage) -> None:
    """What was read and what is read then add up to the whole, wherever it was cut."""
    agent = await stage.agent()
    whole = await stage.stream(agent, "hi", Say(list("Hello world")), stream_tokens=True, background=True)
    run_id, frames = whole.data[0]["run_id"], whole.text.split("\n\n")[:-1]
    for number in range(len(frames) + 1):
        rest = "".join(f"{one}\n\n" for one in frames[number:])
        assert await resumed(stage, run_id, starting_after=number) == rest


async def test_following_live(stage: Stage) -> None:
    """Several readers, come at different times, get the same frames while the run is under way."""
    agent, gate = await stage.agent(), asyncio.Event()
    stage.play(Say(["Hel", "lo."], think="Hm.", gate=gate))
    first = await opened(stage, agent)
    run_id = json.loads((await frame(first))[6:])["run_id"]
    others = [asyncio.create_task(resumed(stage, run_id)) for _ in range(5)]
    late = asyncio.create_task(resumed(stage, run_id, starting_after=1))
    gate.set()
    rest = (await first.read()).decode()
    assert rest == await late
    assert len({await other for other in others}) == 1
    assert (await others[0]).endswith(rest)


async def test_a49_what_cannot_be_resumed(stage: Stage) -> None:
    """A run that was not in the background: 400. An unknown one: 404. A malformed id: 400. Bad numbers: 422."""
    agent = await stage.agent()
    foreground = (await stage.stream(agent, "hi", Say("Hello."))).data[0]["run_id"]
    refused = await stage.call("POST", f"/v1/runs/{foreground}/stream", {"starting_after": 0})
    unknown = await stage.call("POST", "/v1/runs/run-00000000-0000-4000-8000-000000000000/stream", {})
    malformed = await stage.call("POST", "/v1/runs/run-7/stream", {})
    negative = await stage.call("POST", f"/v1/runs/{foreground}/stream", {"starting_after": -1})
    assert [one.status for one in (refused, unknown, malformed, negative)] == [400, 404, 400, 422]
    assert "background" in refused["detail"]


async def test_a49_after_the_retention() -> None:
    """Three hours after its end a stream is gone, in words, and its frames leave the database."""
    clock = Ticking()
    async with server(Say("Hello."), clock=clock) as running, aiohttp.ClientSession() as http:
        stage = Stage(running, http, Cast())
        agent = await stage.agent()
        body = {"input": "hi", **BACKGROUND}
        said = Frames((await stage.call("POST", f"/v1/agents/{agent}/messages", body)).json)
        path = f"/v1/runs/{said.data[0]['run_id']}/stream"
        clock.ahead = timedelta(hours=2, minutes=59)
        assert (await stage.get(path)).json == said.text
        clock.ahead = timedelta(hours=3, minutes=1)
        gone = await stage.get(path)
        assert (gone.status, "messages" in gone["detail"]) == (410, True)
        assert await running.store.log.prune(clock.now() - timedelta(hours=3)) == 1
        assert await running.store.log.read(said.data[0]["run_id"], 0, 1000) == []


async def test_a50_the_same_otid(stage: Stage) -> None:
    """The same message sent twice in the background is one run; after its end it is replayed."""
    agent, gate = await stage.agent(), asyncio.Event()
    message = {"role": "user", "content": "hi", "otid": "3f0c7f4e-0000-4000-8000-00000000000a"}
    body = {"messages": [message], **BACKGROUND}
    stage.play(Say("Hello.", gate=gate))
    path = f"/v1/agents/{agent}/messages"
    first = asyncio.create_task(stage.call("POST", path, body))
    async with asyncio.timeout(5):
        while not stage.requests:
            await asyncio.sleep(0.005)
    second = asyncio.create_task(stage.call("POST", path, body))
    await asyncio.sleep(0.05)
    gate.set()
    texts = [(await first).json, (await second).json, (await stage.call("POST", path, body)).json]
    assert texts[0] == texts[1] == texts[2]
    assert Frames(texts[0]).done
    assert len(await stage.runs(agent)) == 1
    assert len(await stage.history(agent)) == 2


async def test_by_steps(stage: Stage) -> None:
    """Whole messages are numbered like fragments."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": ""}])
    frames = await stage.stream(agent, "I am Bo", Say(calls=[INSERT]), Say("Noted."), background=True)
    assert frames.types == ["ping", "tool_call_message", "tool_return_message", "assistant_message", *END]
    assert [one["seq_id"] for one in frames.data[:4]] == [1, 2, 3, 4]
    run_id = frames.data[0]["run_id"]
    assert await resumed(stage, run_id) == frames.text


async def test_an_async_run_has_a_stream(stage: Stage) -> None:
    """Nobody waits for it, and anybody may follow it (★S57)."""
    agent = await stage.agent()
    stage.play(Say("Hello."))
    run = (await stage.call("POST", f"/v1/agents/{agent}/messages/async", {"input": "hi"})).json
    assert (run["status"], run["background"]) == ("created", True)
    frames = Frames(await resumed(stage, run["id"]))
    assert (frames.types, frames.data[0]["content"], frames.done) == (["assistant_message", *END], "Hello.", True)
    assert (await until(stage, run["id"], "completed"))["metadata"]["run_type"] == "send_message_async"


async def test_cancelled_in_the_background(stage: Stage) -> None:
    """Its readers and whoever comes later see the same end."""
    agent = await stage.agent()
    stage.play(Say(["Hel", "lo."], hang=True))
    response = await opened(stage, agent)
    first = await frame(response)
    run_id = json.loads(first[6:])["run_id"]
    async with asyncio.timeout(5):
        while not stage.requests:
            await asyncio.sleep(0.005)
    cancelled = await stage.call("POST", f"/v1/agents/{agent}/messages/cancel", {"run_ids": [run_id]})
    rest = await response.read()
    assert cancelled.json == {run_id: "cancelled"}
    assert Frames(rest.decode()).data[-1] == {"message_type": "stop_reason", "stop_reason": "cancelled"}
    assert await resumed(stage, run_id) == (first + rest).decode()
    assert (await stage.send(agent, "again", Say("Hello."))).stop == "end_turn"


async def test_a_failure_in_the_background(stage: Stage) -> None:
    """The error frame is numbered and replayed like the others."""
    agent = await stage.agent()
    frames = await stage.stream(agent, "hi", Say(), Say(), stream_tokens=True, background=True)
    assert (frames.names, frames.data[-1]["error_type"], frames.done) == (["error"], "llm_empty_response", True)
    assert frames.data[-1]["seq_id"] == 3
    run_id = frames.data[0]["run_id"]
    assert await resumed(stage, run_id) == frames.text
    assert await resumed(stage, run_id, starting_after=2) == frames.text.split("\n\n", 2)[2]


async def test_a_run_whose_end_was_never_written(stage: Stage) -> None:
    """A run that another process gave up for dead: its saved frames, then a true end, the same for everyone."""
    agent, gate = await stage.agent(), asyncio.Event()
    stage.play(Say("Hello.", gate=gate))
    response = await opened(stage, agent)
    first = await frame(response)
    run_id = json.loads(first[6:])["run_id"]
    async with asyncio.timeout(5):
        while not stage.requests:
            await asyncio.sleep(0.005)
    runs = stage.running.store.runs
    await runs.interrupt([lease for lease in await runs.leases() if lease.run_id == run_id], "It is gone.")
    gate.set()
    rest = (await response.read()).decode()
    frames = Frames(rest)
    assert (frames.types, frames.names, frames.done) == (["stop_reason", "error_message"], ["error"], True)
    assert (frames.data[0]["stop_reason"], frames.data[1]["message"]) == ("error", "It is gone.")
    assert await resumed(stage, run_id) == first.decode() + rest
    assert await resumed(stage, run_id) == first.decode() + rest
