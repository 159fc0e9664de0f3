"""Conversations as stories: side by side, isolated, streamed, forked (behaviour spec §6.3, §6.4, §4.7 and §11, 62)."""

import asyncio
from typing import Any

import pytest
from acceptance.stage import Frames, Reply, Stage, types_of

from perdure.domain.messages import text_of
from perdure.domain.ports import ModelRequest
from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

ROOT = "/v1/conversations/"
BACKGROUND = {"streaming": True, "background": True}


def said(request: ModelRequest) -> list[str]:
    """The words that the model was shown, the system message left out."""
    return [text_of(message.content) for message in request.messages]


async def talk(stage: Stage, agent: str, **fields: Any) -> str:
    """The id of a new conversation."""
    made = await stage.call("POST", ROOT, fields, agent_id=agent)
    assert made.status == 200, made.json
    conversation_id: str = made["id"]
    return conversation_id


async def say(stage: Stage, conversation: str, words: str, *turns: Say, **fields: Any) -> Reply:
    """Send a text, having told the model what it answers; the whole answer unless `streaming` is given."""
    stage.play(*turns)
    return await stage.call("POST", f"{ROOT}{conversation}/messages", {"input": words, "streaming": False, **fields})


async def asked(stage: Stage, number: int) -> None:
    """Wait until the model was asked so often."""
    async with asyncio.timeout(5):
        while len(stage.requests) < number:
            await asyncio.sleep(0.005)


async def listed(stage: Stage, conversation: str) -> list[str]:
    """The contents of the conversation's messages, oldest first, without system messages."""
    answer = await stage.get(f"{ROOT}{conversation}/messages", order="asc")
    return [message["content"] for message in answer.json if message["message_type"] != "system_message"]


async def resumed(stage: Stage, conversation: str, **body: Any) -> Frames:
    """A run's stream, read through the conversation."""
    answer = await stage.call("POST", f"{ROOT}{conversation}/stream", body)
    assert answer.status == 200, answer.json
    return Frames(answer.json)


async def test_conversations_run_side_by_side(stage: Stage) -> None:
    """Two of one agent and its own conversation are worked on at once; none sees the words of another."""
    agent, gate = await stage.agent(), asyncio.Event()
    one, two = await talk(stage, agent), await talk(stage, agent)
    stage.play(*(Say("Hello.", gate=gate) for _ in range(3)))
    sending = [
        asyncio.create_task(say(stage, one, "in one")), asyncio.create_task(say(stage, two, "in two")),
        asyncio.create_task(stage.send(agent, "to the agent")),
    ]  # fmt: skip
    await asked(stage, 3)
    gate.set()
    answers = await asyncio.gather(*sending)
    assert [answer.stop for answer in answers] == ["end_turn"] * 3
    assert sorted(said(request) for request in stage.requests) == [["in one"], ["in two"], ["to the agent"]]
    await say(stage, one, "again", Say("Yes."))
    assert said(stage.requests[-1]) == ["in one", "Hello.", "again"]
    assert await listed(stage, two) == ["in two", "Hello."]
    run = (await stage.get(f"/v1/runs/{answers[1]['messages'][0]['run_id']}")).json
    assert (run["conversation_id"], run["status"]) == (two, "completed")


async def test_a62_two_at_once_in_one_conversation(stage: Stage) -> None:
    """The second is told at once which run it is that works, and may come again."""
    agent, gate = await stage.agent(), asyncio.Event()
    one = await talk(stage, agent)
    first = asyncio.create_task(say(stage, one, "one", Say("1", gate=gate), streaming=True))
    await asked(stage, 1)
    run_id = (await stage.get("/v1/runs/", conversation_id=one)).json[0]["id"]
    for streaming in (False, True):
        refused = await say(stage, one, "two", streaming=streaming)
        assert (refused.status, refused["run_id"], refused.headers["retry-after"]) == (409, run_id, "1")
        assert f"is currently being processed by another request (run_id={run_id})" in refused["detail"]
    deleted = await stage.call("DELETE", ROOT + one)
    assert (deleted.status, deleted["run_id"]) == (409, run_id)
    assert (await stage.call("POST", f"{ROOT}{one}/recompile")).status == 409
    gate.set()
    assert Frames((await first).json).types[1:] == ["assistant_message", "stop_reason", "usage_statistics"]
    assert (await say(stage, one, "two", Say("2"))).stop == "end_turn"
    assert await listed(stage, one) == ["one", "1", "two", "2"]
    assert (await stage.call("DELETE", ROOT + one)).status == 200


async def test_a_message_waits_its_turn(stage: Stage) -> None:
    """`on_busy` counts in conversations, too; what waits keeps the conversation from being deleted."""
    agent, gate = await stage.agent(), asyncio.Event()
    one = await talk(stage, agent)
    first = asyncio.create_task(say(stage, one, "one", Say("1", gate=gate)))
    await asked(stage, 1)
    second = asyncio.create_task(say(stage, one, "two", Say("2"), on_busy="enqueue"))
    async with asyncio.timeout(5):
        while len((await stage.get("/v1/runs/", conversation_id=one)).json) < 2:
            await asyncio.sleep(0.005)
    assert (await stage.call("DELETE", ROOT + one)).status == 409
    gate.set()
    assert [answer.stop for answer in (await first, await second)] == ["end_turn"] * 2
    assert await listed(stage, one) == ["one", "1", "two", "2"]


async def test_cancelling_one_conversation(stage: Stage) -> None:
    """What is under way there ends; the agent's other conversations go on."""
    agent, gate = await stage.agent(), asyncio.Event()
    one, two = await talk(stage, agent), await talk(stage, agent)
    first = asyncio.create_task(say(stage, one, "one", Say("never", gate=asyncio.Event()), streaming=True))
    await asked(stage, 1)
    others = [
        asyncio.create_task(say(stage, two, "two", Say("2", gate=gate))),
        asyncio.create_task(stage.send(agent, "three", Say("3", gate=gate))),
    ]
    await asked(stage, 3)
    run_id = (await stage.get("/v1/runs/", conversation_id=one)).json[0]["id"]
    cancelled = await stage.call("POST", f"{ROOT}{one}/cancel")
    assert (cancelled.status, cancelled.json) == (200, {run_id: "cancelled"})
    frames = Frames((await first).json)
    assert (frames.of("stop_reason")[0]["stop_reason"], frames.done) == ("cancelled", True)
    own = asyncio.create_task(stage.call("POST", f"{ROOT}default/cancel", agent_id=agent))
    assert list((await own).json.values()) == ["cancelled"]
    gate.set()
    assert [answer.stop for answer in await asyncio.gather(*others)] == ["end_turn", "cancelled"]
    assert await listed(stage, one) == []
    assert (await say(stage, one, "again", Say("Yes."))).stop == "end_turn"


async def test_a_background_stream_is_found_again(stage: Stage) -> None:
    """By its run, by the otid of a message, and while it is under way by the conversation alone; from any frame."""
    agent, gate = await stage.agent(), asyncio.Event()
    one = await talk(stage, agent)
    message = {"role": "user", "content": "hi", "otid": "otid-1"}
    stage.play(Say("Hello.", gate=gate))
    body = {"messages": [message], **BACKGROUND}
    sending = asyncio.create_task(stage.call("POST", f"{ROOT}{one}/messages", body))
    await asked(stage, 1)
    newest = asyncio.create_task(resumed(stage, one))
    await asyncio.sleep(0.05)
    gate.set()
    whole = Frames((await sending).json)
    run_id = whole.data[0]["run_id"]
    assert (await newest).text == whole.text
    assert (await resumed(stage, one, run_id=run_id)).text == whole.text
    assert (await resumed(stage, one, otid="otid-1")).text == whole.text
    rest = await resumed(stage, one, otid="otid-1", starting_after=1)
    assert rest.types == ["assistant_message", "stop_reason", "usage_statistics"]
    assert (await stage.call("POST", f"{ROOT}{one}/stream", {})).status == 400
    elsewhere = await talk(stage, agent)
    assert (await stage.call("POST", f"{ROOT}{elsewhere}/stream", {"run_id": run_id})).status == 404
    assert (await resumed(stage, one, run_id=run_id, include_pings=False)).types[0] == "assistant_message"


async def test_a_stream_waits_a_moment_for_its_otid(stage: Stage) -> None:
    """Who asks for the stream before the message has arrived still gets it; of the agent's own conversation, too."""
    agent = await stage.agent()
    body = {"messages": [{"role": "user", "content": "hi", "otid": "soon"}], "agent_id": agent, **BACKGROUND}
    early = asyncio.create_task(
        stage.call("POST", f"{ROOT}default/stream", {"agent_id": agent, "otid": "soon"})
    )  # fmt: skip
    await asyncio.sleep(0.3)
    stage.play(Say("Hello."))
    sent = await stage.call("POST", f"{ROOT}default/messages", body)
    assert (await early).json == sent.json


async def test_the_same_otid_is_answered_once(stage: Stage) -> None:
    """In one conversation; in another one it is another message (★S38)."""
    agent = await stage.agent()
    one, two = await talk(stage, agent), await talk(stage, agent)
    body = {"messages": [{"role": "user", "content": "hi", "otid": "same"}], "streaming": False}
    stage.play(Say("Once."), Say("Elsewhere."))
    first, again, other = [
        await stage.call("POST", f"{ROOT}{conversation}/messages", body) for conversation in (one, one, two)
    ]  # fmt: skip
    assert first.json == again.json
    assert other["messages"][0]["content"] == "Elsewhere."
    assert await listed(stage, one) == ["hi", "Once."]


async def test_the_conversations_model_is_asked(stage: Stage) -> None:
    """It goes before the agent's; a model that the request names goes before both (spec §6.3)."""
    agent = await stage.agent()
    settings = {"provider_type": "openai", "temperature": 0.25}
    one = await talk(stage, agent, model="other/large", model_settings=settings)
    await say(stage, one, "a", Say("1"))
    await say(stage, one, "b", Say("2"), override_model=stage.running.handle)
    await stage.call("PATCH", ROOT + one, {"model": None})
    await say(stage, one, "c", Say("3"))
    await stage.send(agent, "d", Say("4"))
    assert [request.model for request in stage.requests] == ["large", "model", "model", "model"]
    assert stage.requests[0].settings["temperature"] == 0.25
    assert stage.requests[2].settings["temperature"] != 0.25
    step = (await stage.get("/v1/steps/", agent_id=agent, order="asc")).json[0]
    window = (await stage.get(f"/v1/agents/{agent}"))["llm_config"]["context_window"]
    assert (step["model"], step["context_window_limit"]) == ("large", window)


async def test_memory_is_shared_but_for_what_is_isolated(stage: Stage) -> None:
    """An edit in a conversation is seen in the others at their next request, unless its block was isolated there."""
    agent = await stage.agent(
        memory_blocks=[{"label": "human", "value": "Bo"}, {"label": "persona", "value": "Ada"}]
    )  # fmt: skip
    apart, other = await talk(stage, agent, isolated_block_labels=["human"]), await talk(stage, agent)
    edits = [
        Call("memory_insert", {"label": "human", "new_string": "likes tea"}),
        Call("memory_insert", {"label": "persona", "new_string": "is kind"}),
    ]
    await say(stage, apart, "note it", *(Say(calls=[edit]) for edit in edits), Say("Noted."))
    for conversation, tea in ((apart, True), (other, False)):
        await say(stage, conversation, "hi", Say("Hello."))
        system = stage.requests[-1].system
        assert ("likes tea" in system, "is kind" in system) == (tea, True)
    await stage.send(agent, "hi", Say("Hello."))
    assert "likes tea" not in stage.requests[-1].system
    assert await stage.block(agent, "human") == "Bo"


async def test_edits_of_one_isolated_block_from_two_sides(stage: Stage) -> None:
    """Whoever changes the copy over the API while a step edits it loses nothing: the step edits the changed text."""
    agent, gate = await stage.agent(memory_blocks=[{"label": "human", "value": "Bo"}]), asyncio.Event()
    made = (await stage.call("POST", ROOT, {"isolated_block_labels": ["human"]}, agent_id=agent)).json
    [block_id] = made["isolated_block_ids"]
    insert = Call("memory_insert", {"label": "human", "new_string": "likes tea"})
    sending = asyncio.create_task(say(stage, made["id"], "note", Say(calls=[insert], gate=gate), Say("Noted.")))
    await asked(stage, 1)
    await stage.call("PATCH", f"/v1/blocks/{block_id}", {"value": "Cy"})
    gate.set()
    assert (await sending).stop == "end_turn"
    value = (await stage.get(f"/v1/blocks/{block_id}"))["value"]
    assert ("Cy" in value, "likes tea" in value) == (True, True)
    assert await stage.block(agent, "human") == "Bo"


async def test_a_fork_goes_its_own_way(stage: Stage) -> None:
    """The model is shown what was said before the fork, and then what is said in the fork only."""
    agent = await stage.agent()
    await stage.send(agent, "one", Say("1"))
    own = (await stage.call("POST", f"{ROOT}default/fork", agent_id=agent))["id"]
    await say(stage, own, "two", Say("2"))
    second = (await stage.call("POST", f"{ROOT}{own}/fork"))["id"]
    await say(stage, second, "three", Say("3"))
    assert said(stage.requests[-1]) == ["one", "1", "two", "2", "three"]
    await stage.call("PATCH", f"/v1/agents/{agent}/reset-messages", {})
    await say(stage, own, "four", Say("4"))
    assert said(stage.requests[-1]) == ["one", "1", "two", "2", "four"]
    assert await listed(stage, second) == ["one", "1", "two", "2", "three", "3"]
    assert types_of((await stage.get(f"/v1/agents/{agent}/messages", order="asc")).json).count("user_message") == 4


async def test_agents_of_a_change_reach_their_conversations(stage: Stage) -> None:
    """New words of the agent's system text are in the next request of a conversation that was made before (★S5)."""
    agent = await stage.agent(system="Old words.")
    one = await talk(stage, agent)
    await say(stage, one, "hi", Say("Hello."))
    await stage.call("PATCH", f"/v1/agents/{agent}", {"system": "New words."})
    await say(stage, one, "hi", Say("Hello."))
    first, second = (request.system for request in stage.requests)
    assert (first.startswith("Old words."), second.startswith("New words.")) == (True, True)
    assert f"CONVERSATION_ID: {one}" in second


async def test_search_reaches_over_all_conversations(stage: Stage) -> None:
    """Recall is the agent's: what was said in one conversation is found in another (spec §6.3)."""
    agent = await stage.agent()
    one, two = await talk(stage, agent), await talk(stage, agent)
    await say(stage, one, "the walrus sleeps", Say("It does."))
    search = Call("conversation_search", {"query": "walrus"})
    await say(stage, two, "what sleeps?", Say(calls=[search]), Say("The walrus."))
    assert "the walrus sleeps" in str(stage.requests[-1].messages[-1].tool_returns[0].content)


async def test_a_fork_is_compacted_and_its_source_is_not(stage: Stage) -> None:
    """The summary takes the place of what was shared, too; the fork's list still has all of it."""
    agent = await stage.agent()
    one = await talk(stage, agent)
    for number in range(3):
        await say(stage, one, f"word {number}", Say(f"answer {number}"))
    fork = (await stage.call("POST", f"{ROOT}{one}/fork"))["id"]
    await say(stage, fork, "more", Say("Yes."))
    stage.play(Say("They said words."))
    done = await stage.call("POST", f"{ROOT}{fork}/compact", {"compaction_settings": {"mode": "all"}})
    assert (done.status, done["num_messages_before"], done["num_messages_after"]) == (200, 9, 2)
    await say(stage, fork, "and now?", Say("On."))
    shown = said(stage.requests[-1])
    assert ("They said words." in shown[0], shown[1:]) == (True, ["and now?"])
    await say(stage, one, "still", Say("All there."))
    assert len(said(stage.requests[-1])) == 7
    assert (await listed(stage, fork))[:8] == [
        "word 0", "answer 0", "word 1", "answer 1", "word 2", "answer 2", "more", "Yes."
    ]  # fmt: skip
