"""Many at once: on one agent, side by side, and on one block (behaviour spec §6.1, §7.1 and §11, 62)."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from acceptance.stage import Reply, Stage, types_of

from perdure.domain.ids import new_id
from perdure.domain.messages import text_of
from perdure.domain.ports import ModelRequest
from perdure.domain.records import Run
from perdure.testing import Call, Say, server

pytestmark = pytest.mark.anyio


def insert(text: str) -> Call:
    """A call that adds a line to the block `human`."""
    return Call("memory_insert", {"label": "human", "new_string": text})


async def begun(stage: Stage, agent: str) -> str:
    """The id of the agent's run, once it is under way."""
    async with asyncio.timeout(5):
        while not (runs := await stage.runs(agent)) or not stage.requests:
            await asyncio.sleep(0.005)
    run_id: str = runs[0]["id"]
    return run_id


async def test_a62_two_at_once(stage: Stage) -> None:
    """Of two requests to one agent one runs; the other is told at once who is working, and may come again."""
    agent = await stage.agent()
    gate = asyncio.Event()
    first = asyncio.create_task(stage.send(agent, "one", Say("1", gate=gate)))
    run_id = await begun(stage, agent)
    second = await stage.send(agent, "two")
    streamed = await stage.send(agent, "three", streaming=True)
    gate.set()
    assert (await first).stop == "end_turn"
    for refused in (second, streamed):
        assert (refused.status, refused["run_id"], refused.headers["retry-after"]) == (409, run_id, "1")
        assert f"is currently being processed by another request (run_id={run_id})" in refused["detail"]
    assert (await stage.send(agent, "two", Say("2"))).status == 200
    contents = [message["content"] for message in await stage.history(agent)]
    assert contents == ["one", "1", "two", "2"]
    assert len(await stage.runs(agent)) == 2


async def test_a62_a_burst(stage: Stage) -> None:
    """Of twenty requests in one burst at least one runs, and what runs is never mixed with another."""
    agent = await stage.agent()
    stage.play(*(Say("Hello.") for _ in range(20)))
    answers = await asyncio.gather(*(stage.send(agent, f"word {n}") for n in range(20)))
    stage.cast.clear()
    done = [answer for answer in answers if answer.status == 200]
    assert {answer.status for answer in answers} <= {200, 409}
    assert len(done) >= 1
    listed = await stage.history(agent)
    assert types_of(listed) == ["user_message", "assistant_message"] * len(done)
    assert [m["run_id"] for m in listed[::2]] == [m["run_id"] for m in listed[1::2]]
    assert await stage.context(agent) == [(await stage.context(agent))[0], *(m["id"] for m in listed)]


async def test_agents_side_by_side(stage: Stage) -> None:
    """A slow agent holds up nobody else."""
    agents = [await stage.agent() for _ in range(4)]
    gate = asyncio.Event()
    stage.play(*(Say("Hello.", gate=gate) for _ in agents))
    waiting = [asyncio.create_task(stage.send(agent, "hi")) for agent in agents]
    async with asyncio.timeout(5):
        while len(stage.requests) < len(agents):
            await asyncio.sleep(0.005)
    other = await stage.agent()
    assert (await stage.send(other, "hi", Say("Quick."))).stop == "end_turn"
    gate.set()
    assert [answer.stop for answer in await asyncio.gather(*waiting)] == ["end_turn"] * 4


async def test_changes_that_a_run_forbids(stage: Stage) -> None:
    """While a run is under way its context cannot be reset and its row cannot be deleted; reading goes on."""
    agent = await stage.agent()
    gate = asyncio.Event()
    sending = asyncio.create_task(stage.send(agent, "hi", Say("Hello.", gate=gate)))
    run_id = await begun(stage, agent)
    reset = await stage.call("PATCH", f"/v1/agents/{agent}/reset-messages", {})
    deleted = await stage.call("DELETE", f"/v1/runs/{run_id}")
    state = await stage.get(f"/v1/agents/{agent}")
    running = (await stage.get("/v1/runs/active", agent_id=agent)).json
    gate.set()
    assert (reset.status, deleted.status, state.status) == (409, 409, 200)
    assert [(run["id"], run["status"]) for run in running] == [(run_id, "running")]
    assert (await sending).stop == "end_turn"
    assert len(await stage.history(agent)) == 2


async def test_an_agent_deleted_under_way(stage: Stage) -> None:
    """Whoever waits for a deleted agent's answer is told; nothing of the run is left."""
    agent = await stage.agent()
    gate = asyncio.Event()
    sending = asyncio.create_task(stage.send(agent, "hi", Say("Hello.", gate=gate)))
    run_id = await begun(stage, agent)
    assert (await stage.call("DELETE", f"/v1/agents/{agent}")).status == 200
    gate.set()
    answer = await sending
    assert (answer.status, "agent was deleted" in answer["detail"]) == (409, True)
    assert (await stage.get(f"/v1/runs/{run_id}")).status == 404


async def test_a_worker_given_up_for_dead(stage: Stage) -> None:
    """A run that another process took for dead changes nothing any more, and whoever waits for it is told."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": ""}])
    gate = asyncio.Event()
    sending = asyncio.create_task(stage.send(agent, "one", Say(calls=[insert("one")], gate=gate)))
    run_id = await begun(stage, agent)
    runs = stage.running.store.runs
    assert await runs.interrupt([lease for lease in await runs.leases() if lease.run_id == run_id], "It is gone.") == 1
    assert (await stage.send(agent, "two", Say("2"))).stop == "end_turn"
    gate.set()
    answer = await sending
    assert (answer.status, answer["detail"]) == (500, "It is gone.")
    assert [message["content"] for message in await stage.history(agent)] == ["two", "2"]
    assert await stage.block(agent, "human") == ""
    run = (await stage.get(f"/v1/runs/{run_id}")).json
    assert (run["status"], run["metadata"]["error"]["message"]) == ("failed", "It is gone.")
    await stage.send(agent, "three", Say("3"))
    assert [text_of(m.content) for m in stage.requests[-1].messages] == ["two", "2", "three"]


async def test_a_run_without_a_worker(stage: Stage) -> None:
    """A run whose process died is ended by whoever finds that out; its agent is free again."""
    agent = await stage.agent()
    run = Run(id=new_id("run"), agent_id=agent, context_id=agent, created_at=datetime.now(UTC), worker="worker-dead")
    runs, watch = stage.running.store.runs, stage.running.program.executor.watch
    await runs.accept(run, b'{"input": "hi"}')
    assert (await stage.send(agent, "hi")).status == 409
    await watch.take_over([lease for lease in await runs.leases() if lease.worker == "worker-dead"])
    ended = (await stage.get(f"/v1/runs/{run.id}")).json
    assert (ended["status"], ended["stop_reason"]) == ("failed", "error")
    assert (await stage.send(agent, "hi", Say("Hello."))).stop == "end_turn"


async def test_an_agent_changed_under_way(stage: Stage) -> None:
    """A change in the middle of a run holds from the next request on; the run ends as it began."""
    agent = await stage.agent(system="You are Ada.", memory_blocks=[{"label": "human", "value": ""}])
    gate = asyncio.Event()
    turns = Say(calls=[insert("Bo")], gate=gate), Say("Done.")
    sending = asyncio.create_task(stage.send(agent, "hi", *turns))
    await begun(stage, agent)
    await stage.call("PATCH", f"/v1/agents/{agent}", {"system": "You are Eve.", "tool_ids": []})
    gate.set()
    assert (await sending).stop == "end_turn"
    await stage.send(agent, "hi", Say("Hello."))
    assert [(r.system[:12], len(r.tools)) for r in stage.requests] == [
        ("You are Ada.", 3), ("You are Ada.", 3), ("You are Eve.", 0),
    ]  # fmt: skip
    assert "Bo" in stage.requests[2].system


async def edited(stage: Stage, change: Any, *calls: Call) -> tuple[str, Reply]:
    """An agent whose block the API changes while the model decides on these calls; and its answer."""
    agent = await stage.agent(
        memory_blocks=[{"label": "human", "value": "old"}], parallel_tool_calls=True,
        tools=["memory_rethink"],
    )  # fmt: skip
    gate = asyncio.Event()
    sending = asyncio.create_task(stage.send(agent, "hi", Say(calls=calls, gate=gate), Say("Done.")))
    await begun(stage, agent)
    path = f"/v1/agents/{agent}/core-memory/blocks/human"
    assert (await stage.call("PATCH", path, change)).status == 200
    gate.set()
    return agent, await sending


async def test_a_block_edited_by_two(stage: Stage) -> None:
    """An edit by the API in the middle of a step is not lost: the tool's edit is made on the fresh text."""
    agent, answer = await edited(stage, {"value": "new"}, insert("Bo"), insert("Ida"))
    assert await stage.block(agent, "human") == "new\nBo\nIda"
    assert [r["tool_return"] for r in answer["messages"][1]["tool_returns"]] == ["new\nBo", "new\nBo\nIda"]
    assert len(await stage.history(agent)) == 4


async def test_an_edit_that_no_longer_fits(stage: Stage) -> None:
    """If the fresh text makes an edit impossible, the model gets that error, not a guess."""
    replace = Call("memory_replace", {"label": "human", "old_string": "old", "new_string": "older"})
    agent, answer = await edited(stage, {"value": "new"}, replace)
    assert await stage.block(agent, "human") == "new"
    assert answer["messages"][1]["status"] == "error"


async def test_a_block_closed_under_way(stage: Stage) -> None:
    """A block that was made read-only in the middle of a step stays as it is."""
    agent, answer = await edited(stage, {"read_only": True}, insert("Bo"))
    assert await stage.block(agent, "human") == "old"
    assert answer["messages"][1]["status"] == "error"


async def test_one_block_of_many_agents(stage: Stage) -> None:
    """Twelve agents add a line to one block at once, again and again: no line is lost and nobody fails."""
    block = (await stage.call("POST", "/v1/blocks/", {"label": "human", "value": "start"}))["id"]
    agents = [await stage.agent(block_ids=[block]) for _ in range(12)]
    lines = {f"{agent} {n}" for agent in agents for n in range(3)}

    def by_agent(request: ModelRequest) -> Say:
        """Each agent notes its own words, then is done."""
        said = request.messages[-1]
        return Say(calls=[insert(said.content[0].text)]) if said.role == "user" else Say("Noted.")  # type: ignore[union-attr]

    async def work(agent: str) -> list[int]:
        return [(await stage.send(agent, f"{agent} {n}")).status for n in range(3)]

    stage.cast.improvise(by_agent)
    statuses = await asyncio.gather(*(work(agent) for agent in agents))
    value = (await stage.get(f"/v1/blocks/{block}"))["value"]
    assert statuses == [[200] * 3] * 12
    assert sorted(value.split("\n")) == sorted(["start", *lines])


async def test_the_server_stops_in_the_middle() -> None:
    """A server that stops ends what is under way in order: the run is recorded, and whoever waits gets an answer."""
    async with (
        asyncio.timeout(10),
        server(Say(hang=True)) as running,
        aiohttp.ClientSession(running.base_url) as http,
    ):
        made = await (await http.post("/v1/agents/", json={"model": running.handle})).json()
        sending = asyncio.create_task(http.post(f"/v1/agents/{made['id']}/messages", json={"input": "hi"}))
        while not running.model.requests:
            await asyncio.sleep(0.005)
        await running.program.executor.drain(0)
        answer = await sending
        told = await answer.json()
        runs = await (await http.get("/v1/runs/", params={"agent_id": made["id"]})).json()
    assert (answer.status, told["stop_reason"]["stop_reason"]) == (200, "cancelled")
    assert [(run["status"], run["metadata"]["rejected_input"]) for run in runs] == [("cancelled", ["hi"])]
