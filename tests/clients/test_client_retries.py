"""What the SDKs do by themselves: they send again after 60 s without an answer, and when the agent is busy (★S61)."""

import asyncio
import os
import time

import pytest
from acceptance.stage import Stage, types_of
from clients.sdk import Refused, Sdk

from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

CREATE = "agents.messages.create"
HUMAN = [{"label": "human", "value": ""}]
INSERT = Call("memory_insert", {"label": "human", "new_string": "Bo"}, id="call_a")
TURN = ["tool_call_message", "tool_return_message", "assistant_message"]
TIMEOUT = 0.5
PATIENCE = 90


async def ran_once(stage: Stage, agent: str) -> None:
    """Whatever was posted how often: one run, one user message, one edit."""
    assert len(await stage.runs(agent)) == 1
    assert types_of(await stage.history(agent)) == ["user_message", *TURN]
    assert await stage.block(agent, "human") == "Bo"


async def test_an_answer_slower_than_the_time_out(stage: Stage, sdk: Sdk) -> None:
    """The SDK gives up and posts again; that finds the turn under way, and gets its answer."""
    agent = await stage.agent(memory_blocks=HUMAN)
    gate = asyncio.Event()
    stage.play(Say(calls=[INSERT]), Say("Noted.", gate=gate))
    hasty = sdk.another(timeout=TIMEOUT)
    answer = asyncio.create_task(hasty.call(CREATE, agent, input="I am Bo"))
    await hasty.attempts.until(sent=2)
    gate.set()
    assert types_of((await answer)["messages"]) == TURN
    assert hasty.attempts.sent[:2] == ["0", "1"]
    await ran_once(stage, agent)


async def test_an_answer_that_came_between_two_attempts(stage: Stage, sdk: Sdk) -> None:
    """The turn ended while nobody waited for it; the next attempt gets its answer."""
    agent = await stage.agent(memory_blocks=HUMAN)
    gate = asyncio.Event()
    stage.play(Say(calls=[INSERT]), Say("Noted.", gate=gate))
    hasty = sdk.another(timeout=TIMEOUT)
    answer = asyncio.create_task(hasty.call(CREATE, agent, input="I am Bo"))
    await hasty.attempts.until(ended=1)
    gate.set()
    assert types_of((await answer)["messages"]) == TURN
    assert hasty.attempts.sent[:2] == ["0", "1"]
    await ran_once(stage, agent)


async def test_an_answer_that_never_came(stage: Stage, sdk: Sdk) -> None:
    """After its last attempt the SDK raises; the turn goes on, and the same words sent anew are a new message."""
    agent = await stage.agent(memory_blocks=HUMAN)
    gate = asyncio.Event()
    stage.play(Say(calls=[INSERT]), Say("Noted.", gate=gate), Say("Again?"))
    with pytest.raises(Refused) as failure:
        await sdk.another(timeout=TIMEOUT, max_retries=0).call(CREATE, agent, input="I am Bo")
    assert failure.value.kind in ("APITimeoutError", "APIConnectionTimeoutError")
    gate.set()
    answer = await sdk.call(CREATE, agent, input="I am Bo", extra={"on_busy": "enqueue"})
    assert [message["content"] for message in answer["messages"]] == ["Again?"]
    assert types_of(await stage.history(agent)) == ["user_message", *TURN, "user_message", "assistant_message"]


async def test_a_busy_agent(stage: Stage, sdk: Sdk) -> None:
    """A second message is refused, and the refusal names the run that holds the agent."""
    agent = await stage.agent()
    gate = asyncio.Event()
    stage.play(Say("First.", gate=gate))
    first = asyncio.create_task(sdk.call(CREATE, agent, input="one"))
    await begun(stage)
    with pytest.raises(Refused) as refusal:
        await sdk.another(max_retries=0).call(CREATE, agent, input="two")
    [run] = await stage.runs(agent)
    assert (refusal.value.kind, refusal.value.status) == ("ConflictError", 409)
    assert refusal.value.body["run_id"] == run["id"]
    assert "is currently being processed" in refusal.value.body["detail"]
    gate.set()
    assert (await first)["messages"][0]["content"] == "First."


async def test_a_busy_agent_that_is_free_soon(stage: Stage, sdk: Sdk) -> None:
    """The SDK sends again by itself and gets through once the first message is answered."""
    agent = await stage.agent()
    gate = asyncio.Event()
    stage.play(Say("First.", gate=gate), Say("Second."))
    first = asyncio.create_task(sdk.call(CREATE, agent, input="one"))
    await begun(stage)
    other = sdk.another()
    second = asyncio.create_task(other.call(CREATE, agent, input="two"))
    await other.attempts.until(ended=1)
    gate.set()
    assert (await first)["messages"][0]["content"] == "First."
    assert (await second)["messages"][0]["content"] == "Second."
    assert other.attempts.ended == [409, 200]
    assert [message["content"] for message in await stage.history(agent)] == ["one", "First.", "two", "Second."]


async def test_waiting_in_line(stage: Stage, sdk: Sdk) -> None:
    """With `on_busy: enqueue` the second message waits on the server and is answered after the first."""
    agent = await stage.agent()
    gate = asyncio.Event()
    stage.play(Say("First.", gate=gate), Say("Second."))
    first = asyncio.create_task(sdk.call(CREATE, agent, input="one"))
    await begun(stage)
    other = sdk.another()
    second = asyncio.create_task(other.call(CREATE, agent, input="two", extra={"on_busy": "enqueue"}))
    async with asyncio.timeout(5):
        while len(await stage.runs(agent)) < 2:
            await asyncio.sleep(0.01)
    gate.set()
    assert (await first)["messages"][0]["content"] == "First."
    assert (await second)["messages"][0]["content"] == "Second."
    assert other.attempts.ended == [200]
    assert [message["content"] for message in await stage.history(agent)] == ["one", "First.", "two", "Second."]


async def test_pushing_in(stage: Stage, sdk: Sdk) -> None:
    """With `on_busy: interrupt` the first message is cancelled and the second answered."""
    agent = await stage.agent()
    stage.play(Say(hang=True), Say("Second."))
    first = asyncio.create_task(sdk.call(CREATE, agent, input="one"))
    await begun(stage)
    second = await sdk.another().call(CREATE, agent, input="two", extra={"on_busy": "interrupt"})
    assert (await first)["stop_reason"]["stop_reason"] == "cancelled"
    assert second["messages"][0]["content"] == "Second."
    assert [message["content"] for message in await stage.history(agent)] == ["two", "Second."]


@pytest.mark.skipif("SLOW" not in os.environ, reason="takes 90 s: SLOW=1 make pytest ARGS='tests/clients -k ninety'")
async def test_ninety_seconds_with_the_default_time_out(stage: Stage, sdk: Sdk) -> None:
    """The SDK as it comes, 60 s and two retries, and a turn of 90 s: one run, and its answer."""
    agent = await stage.agent(memory_blocks=HUMAN)
    gate = asyncio.Event()
    stage.play(Say(calls=[INSERT]), Say("Noted.", gate=gate))
    asyncio.get_running_loop().call_later(PATIENCE, gate.set)
    began = time.monotonic()
    answer = await sdk.call(CREATE, agent, input="I am Bo")
    assert types_of(answer["messages"]) == TURN
    assert sdk.attempts.sent == ["0", "1"]
    assert PATIENCE <= time.monotonic() - began < PATIENCE + 5
    await ran_once(stage, agent)


async def begun(stage: Stage) -> None:
    """Wait until the model was asked."""
    async with asyncio.timeout(5):
        while not stage.requests:
            await asyncio.sleep(0.005)
