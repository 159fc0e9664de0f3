"""Sending a message: what comes back, what is stored, what is refused (behaviour spec §11, 1-12 and 76)."""

from typing import Any

import pytest
from acceptance.stage import Stage, types_of

from perdure.domain.messages import text_of
from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

UNKNOWN = "agent-00000000-0000-4000-8000-00000000dead"


async def test_a01_a_plain_turn(stage: Stage) -> None:
    """A greeting is answered with one assistant message that names its run and its step."""
    agent = await stage.agent()
    answer = await stage.send(agent, "hi", Say("Hello."))
    (message,) = answer["messages"]
    assert (answer.status, answer.types, answer.stop) == (200, ["assistant_message"], "end_turn")
    assert (message["content"], message["run_id"][:4], message["step_id"][:5]) == ("Hello.", "run-", "step-")
    assert answer["usage"] == {
        "message_type": "usage_statistics", "completion_tokens": 5, "prompt_tokens": 10, "total_tokens": 15,
        "step_count": 1, "run_ids": None, "cached_input_tokens": None, "cache_write_tokens": None,
        "reasoning_tokens": None, "context_tokens": 15,
    }  # fmt: skip
    assert (answer["logprobs"], answer["turns"]) == (None, None)


async def test_a02_the_request_is_listed_and_not_answered_back(stage: Stage) -> None:
    """The user's message is listed before the answer under its own otid; the answer itself does not repeat it."""
    agent = await stage.agent()
    answer = await stage.send(agent, {"messages": [{"role": "user", "content": "hi", "otid": "X"}]}, Say("Hello."))
    listed = await stage.history(agent)
    assert answer.types == ["assistant_message"]
    assert types_of(listed) == ["user_message", "assistant_message"]
    assert (listed[0]["content"], listed[0]["otid"]) == ("hi", "X")
    assert listed[1] == answer["messages"][0]
    assert {message["run_id"] for message in listed} == {answer["messages"][0]["run_id"]}
    assert {message["step_id"] for message in listed} == {answer["messages"][0]["step_id"]}


@pytest.mark.parametrize(
    "body", [{"input": "a", "messages": [{"role": "user", "content": "b"}]}, {}, {"messages": []}, {"input": None}]
)
async def test_a03_exactly_one_kind_of_input(stage: Stage, body: dict[str, Any]) -> None:
    """Both inputs, none, or an empty list are refused in words, and there is no run."""
    agent = await stage.agent()
    answer = await stage.send(agent, body)
    assert answer.status == 422
    assert isinstance(answer["detail"], str)
    assert await stage.runs(agent) == []


async def test_a04_stream_options_need_a_stream(stage: Stage) -> None:
    """Each option that only a stream has is named when no stream is asked for."""
    agent = await stage.agent()
    one = await stage.send(agent, "hi", stream_tokens=True)
    two = await stage.send(agent, "hi", stream_tokens=True, background=True)
    three = await stage.send(agent, "hi", include_pings=False)
    assert (one.status, two.status, three.status) == (422, 422, 422)
    assert "stream_tokens: only allowed together with streaming=true" in one["detail"]
    assert "stream_tokens, background: only allowed together with streaming=true" in two["detail"]
    assert "include_pings=false: only allowed together with streaming=true" in three["detail"]


async def test_a05_unknown_and_malformed_agents(stage: Stage) -> None:
    """An id of the right form that nobody has is 404; anything else is 422 and shows what an id looks like."""
    unknown = await stage.send(UNKNOWN, "hi")
    malformed = await stage.send("agent-1", "hi")
    assert (unknown.status, unknown.json) == (404, {"detail": "Agent not found"})
    assert (malformed.status, malformed["examples"]) == (422, ["agent-123e4567-e89b-42d3-a456-426614174000"])


async def test_a06_thoughts_and_words(stage: Stage) -> None:
    """Thoughts and words of one model message share its id; their otids count the parts."""
    agent = await stage.agent()
    answer = await stage.send(agent, "hi", Say("Hello.", think="A greeting."))
    thought, said = answer["messages"]
    assert answer.types == ["reasoning_message", "assistant_message"]
    assert (thought["reasoning"], thought["source"], thought["signature"]) == ("A greeting.", "reasoner_model", None)
    assert thought["id"] == said["id"]
    assert [int(message["otid"][-2:], 16) & 0x7F for message in (thought, said)] == [0, 1]
    assert await stage.history(agent, after=(await stage.history(agent))[0]["id"]) == answer["messages"]


async def test_a08_only_the_types_asked_for(stage: Stage) -> None:
    """The filter shortens the answer and nothing else: history shows everything."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": ""}])
    turns = (
        Say(think="Note it.", calls=[Call("memory_insert", {"label": "human", "new_string": "Bo"})]), Say("Noted."),
    )  # fmt: skip
    answer = await stage.send(agent, "I am Bo", *turns, include_return_message_types=["assistant_message"])
    everything = await stage.send(agent, "again", Say("Hi."), include_return_message_types=[])
    assert (answer.types, everything.types) == (["assistant_message"], ["assistant_message"])
    assert types_of(await stage.history(agent)) == [
        "user_message", "reasoning_message", "tool_call_message", "tool_return_message", "assistant_message",
        "user_message", "assistant_message",
    ]  # fmt: skip
    calls = await stage.history(agent, include_return_message_types="tool_call_message")
    assert [message["tool_call"]["name"] for message in calls] == ["memory_insert"]


async def test_a11_roles_in_one_request(stage: Stage) -> None:
    """System, user and assistant messages of one request are stored in order, and the model sees them so."""
    agent = await stage.agent()
    said = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello."}, {"role": "user", "content": [{"type": "text", "text": "bye"}]},
    ]  # fmt: skip
    await stage.send(agent, {"messages": said}, Say("Bye."))
    seen = [(message.role, text_of(message.content)) for message in stage.requests[0].messages]
    assert seen == [("system", "Be brief."), ("user", "hi"), ("assistant", "Hello."), ("user", "bye")]
    listed = (await stage.get(f"/v1/agents/{agent}/messages")).json
    assert [message["content"] for message in listed[1:]] == ["Be brief.", "hi", "Hello.", "bye", "Bye."]
    assert types_of(listed[1:]) == [
        "system_message", "user_message", "assistant_message", "user_message", "assistant_message",
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["", []])
@pytest.mark.parametrize("streaming", [False, True])
async def test_a12_empty_content(stage: Stage, content: Any, streaming: bool) -> None:
    """A message without content is refused before anything begins, streamed or not."""
    agent = await stage.agent()
    before = await stage.context(agent)
    answer = await stage.send(agent, {"messages": [{"role": "user", "content": content}]}, streaming=streaming)
    assert answer.status == 400
    assert "empty content in" in answer["detail"]
    assert (await stage.context(agent), await stage.runs(agent)) == (before, [])


async def test_a76_a_replayed_call(stage: Stage) -> None:
    """A replayed call and its return, however they are ordered, reach the model as a pair; one alone is refused."""
    agent = await stage.agent()
    call = {"type": "tool_call", "id": "c1", "name": "roll", "input": {"n": 6}}
    returned = {"type": "tool_return", "tool_call_id": "c1", "content": "4", "is_error": False}
    replay = [
        {"role": "assistant", "content": [{"type": "text", "text": "Rolling."}, call]},
        {"role": "user", "content": [{"type": "text", "text": "and?"}, returned]},
    ]
    await stage.send(agent, {"messages": replay}, Say("You rolled 4."))
    said, result, asked = stage.requests[0].messages
    assert [(c.id, c.name, c.arguments) for c in said.tool_calls] == [("c1", "roll", '{"n": 6}')]
    assert [(r.tool_call_id, r.content, r.status, r.name) for r in result.tool_returns] == [
        ("c1", "4", "success", "roll")
    ]
    assert (asked.role, text_of(asked.content)) == ("user", "and?")
    assert types_of(await stage.history(agent)) == [
        "assistant_message", "tool_call_message", "tool_return_message", "user_message", "assistant_message",
    ]  # fmt: skip
    alone = await stage.send(agent, {"messages": [{"role": "assistant", "content": [call]}]})
    assert (alone.status, len(await stage.history(agent))) == (400, 5)
