"""The unchanged SDKs: agents, messages with a whole answer, lists page by page, and refusals as the right errors."""

import asyncio
from typing import Any

import pytest
from acceptance.stage import Stage, types_of
from clients.sdk import Refused, Sdk

from perdure.domain.errors import ModelRateLimited
from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

NOBODY = "agent-00000000-0000-4000-8000-00000000dead"
HUMAN = [{"label": "human", "value": ""}]
INSERT = Call("memory_insert", {"label": "human", "new_string": "Bo"}, id="call_a")


async def test_an_agent_answers(stage: Stage, sdk: Sdk) -> None:
    """Create, send, read the answer with its stop reason and usage, look at what is kept, delete."""
    agent = await sdk.call("agents.create", model=stage.running.handle, name="clerk", memory_blocks=HUMAN)
    stage.play(Say(think="Note.", calls=[INSERT]), Say("Noted."))
    answer = await sdk.call("agents.messages.create", agent["id"], input="I am Bo")
    shown = ["reasoning_message", "tool_call_message", "tool_return_message", "assistant_message"]
    assert types_of(answer["messages"]) == shown
    assert answer["messages"][-1]["content"] == "Noted."
    assert answer["stop_reason"]["stop_reason"] == "end_turn"
    assert (answer["usage"]["step_count"], answer["usage"]["total_tokens"]) == (2, 30)
    system, user, *rest = await sdk.all("agents.messages.list", agent["id"])
    assert (system["message_type"], user["content"], rest) == ("system_message", "I am Bo", answer["messages"])
    assert (await sdk.call("agents.blocks.retrieve", "human", agent_id=agent["id"]))["value"] == "Bo"
    await sdk.call("agents.delete", agent["id"])
    with pytest.raises(Refused) as gone:
        await sdk.call("agents.retrieve", agent["id"])
    assert (gone.value.kind, gone.value.status) == ("NotFoundError", 404)


async def test_what_a_turn_leaves(stage: Stage, sdk: Sdk) -> None:
    """A run with its messages, steps and usage."""
    agent = await stage.agent()
    await stage.send(agent, "hi", Say("Hello."))
    [run] = await sdk.all("runs.list", agent_id=agent)
    assert (run["status"], run["stop_reason"]) == ("completed", "end_turn")
    assert await sdk.call("runs.retrieve", run["id"]) == run
    assert types_of(await sdk.all("runs.messages.list", run["id"])) == ["user_message", "assistant_message"]
    [step] = await sdk.all("runs.steps.list", run["id"])
    assert (await sdk.call("steps.retrieve", step["id"]))["total_tokens"] == 15
    assert (await sdk.call("runs.usage.retrieve", run["id"]))["total_tokens"] == 15


async def test_page_after_page(stage: Stage, sdk: Sdk) -> None:
    """The pagers go through every page once: agents from the newest, messages from the oldest."""
    tag = type(sdk).__name__
    made = [await stage.agent(tags=[tag]) for _ in range(3)]
    assert [agent["id"] for agent in await sdk.all("agents.list", tags=[tag], limit=2)] == made[::-1]
    for said in ("one", "two"):
        await stage.send(made[0], said, Say(said.upper()))
    listed = await sdk.all("agents.messages.list", made[0], order="asc", limit=2)
    assert [message["content"] for message in listed[1:]] == ["one", "ONE", "two", "TWO"]
    assert len(sdk.attempts.sent) > 4


@pytest.mark.parametrize(
    ("agent", "fields", "kind", "status", "words"),
    [
        (NOBODY, {"input": "hi"}, "NotFoundError", 404, "Agent not found"),
        ("agent-1", {"input": "hi"}, "UnprocessableEntityError", 422, "agent-"),
        (None, {"messages": []}, "UnprocessableEntityError", 422, "must not be empty"),
        (None, {"input": "hi", "stream_tokens": True}, "UnprocessableEntityError", 422, "stream_tokens"),
        (None, {"input": ""}, "BadRequestError", 400, "empty content in"),
        (None, {"input": "hi", "override_model": "other/none"}, "NotFoundError", 404, "other"),
    ],
)
async def test_refusals(
    stage: Stage, sdk: Sdk, agent: str | None, fields: dict[str, Any], kind: str, status: int, words: str
) -> None:
    """A refusal is the error of its status, is not tried again, and its body says why."""
    known = agent or await stage.agent()
    with pytest.raises(Refused) as refusal:
        await sdk.call("agents.messages.create", known, **fields)
    assert (refusal.value.kind, refusal.value.status, sdk.attempts.sent) == (kind, status, ["0"])
    assert words in refusal.value.body["detail"]


async def test_a_model_that_is_overrun(stage: Stage, sdk: Sdk) -> None:
    """The model's own refusal comes through with its kind."""
    agent = await stage.agent()
    stage.play(Say(fail=ModelRateLimited("Slow down.")))
    with pytest.raises(Refused) as failure:
        await sdk.another(max_retries=0).call("agents.messages.create", agent, input="hi")
    assert (failure.value.kind, failure.value.status) == ("RateLimitError", 429)
    assert failure.value.body["error"]["type"] == "llm_rate_limit"


async def test_a_message_that_nobody_waits_for(stage: Stage, sdk: Sdk) -> None:
    """create_async answers with a run at once; polling it tells when it is over."""
    agent = await stage.agent()
    gate = asyncio.Event()
    stage.play(Say("Hello.", gate=gate))
    run = await sdk.call("agents.messages.create_async", agent, input="hi")
    assert (run["agent_id"], run["background"], run["stop_reason"]) == (agent, True, None)
    assert run["status"] in ("created", "running")
    gate.set()
    async with asyncio.timeout(5):
        while (run := await sdk.call("runs.retrieve", run["id"]))["status"] in ("created", "running"):
            await asyncio.sleep(0.02)
    assert (run["status"], run["stop_reason"]) == ("completed", "end_turn")
    assert [message["content"] for message in await sdk.all("runs.messages.list", run["id"])] == ["hi", "Hello."]
