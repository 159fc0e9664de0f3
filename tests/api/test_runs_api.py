"""Runs, steps and single messages over HTTP (api-surface §1, runs, steps; spec §9; ★S74)."""

from typing import Any

import anyio
import pytest

pytestmark = pytest.mark.anyio

NONE = "00000000-0000-4000-8000-000000000000"


async def sent(client: Any, **fields: Any) -> tuple[dict[str, Any], list[str]]:
    """An agent that was written to three times, and the ids of the runs, oldest first."""
    agent = await client.agent(**fields)
    runs = []
    for n in range(3):
        answer = await client.post(f"/v1/agents/{agent['id']}/messages", {"input": f"message {n}"})
        assert answer.status == 200, answer.json
        runs.append(answer["messages"][0]["run_id"])
    return agent, runs


async def test_list(client: Any) -> None:
    """Runs page in the order asked for, newest first by default, and are filtered by what they were."""
    agent, runs = await sent(client)

    async def ids(**params: Any) -> list[str]:
        listed = await client.get("/v1/runs/", params={"agent_id": agent["id"], **params})
        assert listed.status == 200, listed.json
        return [run["id"] for run in listed.json]

    assert await ids() == runs[::-1]
    assert await ids(order="asc") == runs
    assert await ids(ascending="true") == runs
    assert await ids(order="asc", limit=1) == runs[:1]
    assert await ids(order="asc", after=runs[0]) == runs[1:]
    assert await ids(order="desc", after=runs[2]) == runs[1::-1]
    assert await ids(before=runs[0], limit=1) == [runs[1]]
    assert await ids(statuses="completed") == runs[::-1]
    assert await ids(statuses="failed") == []
    assert await ids(stop_reason="end_turn") == runs[::-1]
    assert await ids(active="true") == []
    assert await ids(active="true", statuses="completed") == []
    assert await ids(background="true") == []
    assert await ids(conversation_id=f"conv-{NONE}") == []
    assert (await client.get("/v1/runs/active", params={"agent_id": agent["id"]})).json == []
    several = await client.get("/v1/runs/", params={"agent_ids": f"{agent['id']},agent-{NONE}"})
    assert [run["id"] for run in several.json] == runs[::-1]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "statuses=asleep", "stop_reason=boredom", "active=maybe"])
async def test_list_parameters(client: Any, query: str) -> None:
    """Filters of the wrong form are 422."""
    assert (await client.get(f"/v1/runs/?{query}")).status == 422


async def test_one(client: Any) -> None:
    """A run shows its outcome, its messages (input included), its steps and its tokens."""
    _, (run, *_) = await sent(client)
    path = f"/v1/runs/{run}"
    shown = await client.get(path)
    assert (shown["status"], shown["stop_reason"], shown["background"]) == ("completed", "end_turn", False)
    assert shown["completed_at"] >= shown["created_at"]
    messages = (await client.get(path + "/messages")).json
    assert [m["message_type"] for m in messages] == ["user_message", "assistant_message"]
    assert messages[0]["content"] == "message 0"
    (step,) = (await client.get(path + "/steps")).json
    assert (step["run_id"], step["status"], step["model_handle"]) == (run, "success", "openai/gpt-4o-mini")
    assert (step["prompt_tokens"], step["cached_input_tokens"]) == (10, 4)
    assert (await client.get(path + "/usage")).json == {
        "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_read_tokens": 4, "cache_creation_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip
    metrics = await client.get(path + "/metrics")
    assert (metrics["num_steps"], metrics["tools_used"]) == (1, [])
    assert (await client.get(path + "/trace")).json == []


async def test_message_pages(client: Any) -> None:
    """Paging through a run's messages by the last id ends in an empty page, in both orders."""
    _, (run, *_) = await sent(client)
    for order in ("asc", "desc"):
        seen: list[str] = []
        cursor: dict[str, str] = {}
        while page := (
            await client.get(f"/v1/runs/{run}/messages", params={"order": order, "limit": 1, **cursor})
        ).json:
            seen += [m["message_type"] for m in page]
            cursor = {"after": page[-1]["id"]}
        assert seen == ["user_message", "assistant_message"][:: 1 if order == "asc" else -1]


async def test_delete(client: Any) -> None:
    """A deleted run is gone; its messages stay."""
    agent, (run, *_) = await sent(client)
    assert (await client.delete(f"/v1/runs/{run}")).json is None
    for tail in ("", "/steps", "/usage", "/metrics", "/trace"):
        assert (await client.get(f"/v1/runs/{run}{tail}")).status == 404
    assert (await client.delete(f"/v1/runs/{run}")).status == 404
    assert len((await client.get(f"/v1/agents/{agent['id']}/messages")).json) == 7


@pytest.mark.parametrize("tail", ["", "/messages", "/steps", "/usage", "/metrics", "/trace"])
async def test_unknown(client: Any, tail: str) -> None:
    """An unknown run is 404, a malformed run id 400 (spec §0.2)."""
    assert (await client.get(f"/v1/runs/run-{NONE}{tail}")).status == 404
    malformed = await client.get(f"/v1/runs/nonsense{tail}")
    assert (malformed.status, "run-123e4567" in malformed.detail) == (400, True)


async def test_steps(client: Any) -> None:
    """Steps are listed, read, and judged."""
    agent, runs = await sent(client)
    listed = (await client.get("/v1/steps/", params={"agent_id": agent["id"]})).json
    assert [step["run_id"] for step in listed] == runs[::-1]
    path = f"/v1/steps/{listed[0]['id']}"
    assert (await client.get(path)).json == listed[0]
    judged = await client.patch(path + "/feedback", {"feedback": "positive", "tags": ["t"]})
    assert (judged["feedback"], judged["tags"]) == ("positive", ["t"])
    found = await client.get("/v1/steps/", params={"agent_id": agent["id"], "has_feedback": "true"})
    assert [step["id"] for step in found.json] == [listed[0]["id"]]
    assert (await client.patch(path + "/feedback", {"feedback": None}))["feedback"] is None
    assert (await client.patch(path + "/feedback", {"feedback": "so so"})).status == 422
    messages = (await client.get(path + "/messages")).json
    assert [m["message_type"] for m in messages] == ["user_message", "assistant_message"]
    metrics = await client.get(path + "/metrics")
    assert (metrics["id"], metrics["step_start_ns"] > 0) == (listed[0]["id"], True)
    assert (await client.get(path + "/trace")).json is None


@pytest.mark.parametrize("tail", ["", "/messages", "/metrics", "/trace"])
async def test_unknown_step(client: Any, tail: str) -> None:
    """An unknown step is 404, a malformed id 422."""
    assert (await client.get(f"/v1/steps/step-{NONE}{tail}")).status == 404
    assert (await client.get(f"/v1/steps/step-1{tail}")).status == 422


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("start_date=2000-01-01T00:00:00Z", 3), ("start_date=2000-01-01", 3),
        ("end_date=2000-01-01T00:00:00%2B02:00", 0), ("model=gpt-4o-mini", 3), ("model=other", 0), ("trace_ids=x", 0),
        ("order=asc&limit=2", 2),
    ],
)  # fmt: skip
async def test_step_filters(client: Any, query: str, count: int) -> None:
    """Steps are found by date, with or without a zone, and by model."""
    agent, _ = await sent(client)
    assert len((await client.get(f"/v1/steps/?agent_id={agent['id']}&{query}")).json) == count


async def test_one_message(client: Any) -> None:
    """A message is the list of its wire messages."""
    agent, _ = await sent(client)
    listed = (await client.get(f"/v1/agents/{agent['id']}/messages")).json
    assert (await client.get(f"/v1/messages/{listed[-1]['id']}")).json == [listed[-1]]
    assert (await client.get(f"/v1/messages/message-{NONE}")).status == 404


async def test_last_run_on_agent(client: Any) -> None:
    """The agent shows how its last run ended."""
    agent, _ = await sent(client)
    shown = await client.get(f"/v1/agents/{agent['id']}")
    assert (shown["last_stop_reason"], shown["pending_approval"]) == ("end_turn", None)
    assert shown["last_run_completion"] is not None
    found = await client.get("/v1/agents/", params={"last_stop_reason": "end_turn", "sort_by": "last_run_completion"})
    assert found.json[0]["id"] == agent["id"]


async def test_a_message_that_nobody_waits_for(client: Any) -> None:
    """`messages/async` answers at once with a run in the background; polling it shows its end and its messages."""
    agent = await client.agent()
    path = f"/v1/agents/{agent['id']}/messages"
    run = await client.post(f"{path}/async", {"input": "hi", "streaming": True})
    assert (run.status, run["status"], run["background"], run["stop_reason"]) == (200, "created", True, None)
    with anyio.fail_after(5):
        while (ended := await client.get(f"/v1/runs/{run['id']}"))["status"] == "running":
            await anyio.sleep(0.01)
    assert (ended["status"], ended["stop_reason"]) == ("completed", "end_turn")
    messages = await client.get(f"/v1/runs/{run['id']}/messages")
    assert [m["message_type"] for m in messages.json] == ["user_message", "assistant_message"]


async def test_what_a_background_message_is_refused_for(client: Any) -> None:
    """As a message in the foreground; and for an address that no callback may go to."""
    agent = await client.agent()
    path = f"/v1/agents/{agent['id']}/messages/async"
    assert (await client.post(path, {})).status == 422
    assert (await client.post(path, {"input": ""})).status == 400
    assert (await client.post(path, {"input": "hi", "callback_url": "http://10.0.0.1/"})).status == 400
    nobody = "agent-00000000-0000-4000-8000-000000000000"
    assert (await client.post(f"/v1/agents/{nobody}/messages/async", {"input": "hi"})).status == 404
