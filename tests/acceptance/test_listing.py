"""Lists of messages, runs and steps, and what a run says of itself (behaviour spec §9 and §11, 66 and 71)."""

import pytest
from acceptance.stage import Stage, types_of

from perdure.domain.messages import Usage
from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

HUMAN = [{"label": "human", "value": ""}]


async def test_a66_a_run_and_its_steps(stage: Stage) -> None:
    """A finished run has its messages in order, its steps with their own usage, and a stop reason on the last."""
    agent = await stage.agent(memory_blocks=HUMAN)
    insert = Call("memory_insert", {"label": "human", "new_string": "Bo"})
    first = Say(calls=[insert], usage=Usage(100, 20, 120, cached_input_tokens=7))
    await stage.send(agent, "I am Bo", first, Say("Done.", usage=Usage(150, 5, 155)))
    (run,) = await stage.runs(agent)
    assert (run["status"], run["stop_reason"], run["background"]) == ("completed", "end_turn", False)
    assert run["completed_at"] > run["created_at"]
    messages = (await stage.get(f"/v1/runs/{run['id']}/messages")).json
    assert types_of(messages) == ["user_message", "tool_call_message", "tool_return_message", "assistant_message"]
    newest = (await stage.get(f"/v1/runs/{run['id']}/messages", order="desc", limit=1)).json
    assert types_of(newest) == ["assistant_message"]
    steps = (await stage.get(f"/v1/runs/{run['id']}/steps", order="asc")).json
    assert [(s["status"], s["stop_reason"], s["total_tokens"], s["cached_input_tokens"]) for s in steps] == [
        ("success", None, 120, 7), ("success", "end_turn", 155, None),
    ]  # fmt: skip
    of_step = (await stage.get(f"/v1/steps/{steps[0]['id']}/messages")).json
    assert types_of(of_step) == ["user_message", "tool_call_message", "tool_return_message"]
    usage = (await stage.get(f"/v1/runs/{run['id']}/usage")).json
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (250, 25, 275)
    metrics = (await stage.get(f"/v1/runs/{run['id']}/metrics")).json
    assert (metrics["num_steps"], metrics["tools_used"]) == (2, ["memory_insert"])
    state = (await stage.get(f"/v1/agents/{agent}")).json
    assert (state["last_stop_reason"], state["message_ids"][1:]) == (
        "end_turn", [messages[0]["id"], messages[1]["id"], messages[2]["id"], messages[3]["id"]]
    )  # fmt: skip


async def test_a71_pages_of_history(stage: Stage) -> None:
    """desc takes the newest and asc the oldest, both shown oldest first; cursors follow the order of saving."""
    agent = await stage.agent()
    ids = []
    for word in ("one", "two", "three", "four", "five"):
        said = {"messages": [{"role": "user", "content": word}]}
        await stage.send(agent, said, Say(f"{word}!"))
        ids = [message["id"] for message in await stage.history(agent)]

    async def page(**params: str | int) -> list[str]:
        return [message["content"] for message in await stage.history(agent, **params)]

    assert await page(limit=2) == ["five", "five!"]
    assert await page(limit=2, order="asc", after=ids[0]) == ["one!", "two"]
    assert await page(after=ids[0]) == ["one!", "two", "two!", "three", "three!", "four", "four!", "five", "five!"]
    assert await page(after=ids[0], limit=2) == ["five", "five!"]
    assert await page(before=ids[3], order="asc") == ["one", "one!", "two"]
    assert await page(before=ids[3], limit=2) == ["one!", "two"]
    assert await page(after=ids[1], before=ids[4]) == ["two", "two!"]
    assert await page(after=ids[-1]) == []
    unknown = await stage.get(f"/v1/agents/{agent}/messages", after="message-00000000-0000-4000-8000-00000000dead")
    assert unknown.status == 404


async def test_history_of_nothing(stage: Stage) -> None:
    """A fresh agent has its system message in the list; an unknown one has no list."""
    agent = await stage.agent()
    listed = (await stage.get(f"/v1/agents/{agent}/messages")).json
    assert types_of(listed) == ["system_message"]
    missing = await stage.get("/v1/agents/agent-00000000-0000-4000-8000-00000000dead/messages")
    assert (missing.status, missing.json) == (404, {"detail": "Agent not found"})


async def test_lists_of_runs(stage: Stage) -> None:
    """Runs are filtered by agent, status and stop reason; cursors go on in the order asked for."""
    agent = await stage.agent()
    for _ in range(3):
        await stage.send(agent, "hi", Say("Hello."))
    await stage.send(agent, "hi", Say("Hel", finish="length"))
    everything = [run["id"] for run in await stage.runs(agent)]
    assert len(everything) == 4

    async def found(**params: str | int) -> list[str]:
        listed = await stage.get("/v1/runs/", agent_id=agent, **params)
        assert listed.status == 200, listed.json
        return [run["id"] for run in listed.json]

    assert await found(limit=2) == everything[:2]
    assert await found(limit=2, after=everything[1]) == everything[2:]
    assert await found(order="asc", limit=1) == everything[3:]
    assert await found(stop_reason="max_tokens_exceeded") == everything[:1]
    assert await found(statuses="failed") == everything[:1]
    assert await found(active="true") == []
    steps = (await stage.get("/v1/steps/", agent_id=agent, limit=3)).json
    assert [step["run_id"] for step in steps] == everything[:3]
