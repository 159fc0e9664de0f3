"""Odd words from either side: they come back as they were said, and no model can say what breaks its agent."""

import json

import letta_client
import pytest
from acceptance.stage import Stage, types_of

from perdure.domain.messages import text_of
from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

ODD = [
    "\u202eright to left\u202c", "line\u2028separator\u0085and\rreturn\n\nlines", '"quotes" and \\ and </value>',
    "😀👩‍👩‍👧", '{"type": "user_message"}', "{", "%s %(x)s {CORE_MEMORY} {0}", "data: [DONE]\n\ndata: {}", "\ufeffmark",
    "x" * 200_000,
]  # fmt: skip


@pytest.mark.parametrize("words", ODD, ids=range(len(ODD)))
async def test_words_come_back_as_they_were_said(stage: Stage, words: str) -> None:
    """Any text passes through answer, stream, history and prompt unchanged."""
    agent = await stage.agent()
    answer = await stage.send(agent, words, Say(words))
    frames = await stage.stream(agent, words, Say([words[:5], words[5:]]), stream_tokens=True)
    assert answer["messages"][0]["content"] == words
    assert "".join(frame["content"] for frame in frames.of("assistant_message")) == words
    assert [message["content"] for message in await stage.history(agent)] == [words] * 4
    assert [text_of(message.content) for message in stage.requests[1].messages] == [words] * 3


async def test_odd_words_through_the_sdk(stage: Stage) -> None:
    """The SDK's own reader of streams is not misled by characters that some take for line ends."""
    agent, words = await stage.agent(), ODD[1]
    stage.play(Say(words))
    async with letta_client.AsyncLetta(base_url=stage.running.base_url, max_retries=0) as sdk:
        stream = await sdk.agents.messages.create(agent, input=words, streaming=True)
        said = [frame async for frame in stream if frame.message_type == "assistant_message"]
    assert [getattr(frame, "content", None) for frame in said] == [words]


async def test_nul_is_left_out(stage: Stage) -> None:
    """NUL, which PostgreSQL cannot keep, is left out of requests; one from a model harms nothing."""
    agent = await stage.agent()
    body = rb'{"messages": [{"role": "user", "content": "a\u0000b", "name": "\u0000"}]}'
    stage.play(Say("c\0d"))
    assert (await stage.call("POST", f"/v1/agents/{agent}/messages", content=body)).status == 200
    assert (await stage.history(agent))[0]["content"] == "ab"
    insert = Call("memory_rethink", {"label": "human", "new_memory": "e\0f"})
    other = await stage.agent(tools=["memory_rethink"])
    await stage.send(other, "hi", Say(calls=[insert]), Say("Done."))
    assert await stage.block(other, "human") == "ef"


ARGUMENTS = [
    ('{"label":"human","new_string":"a\\ud800b"}', "a\ufffdb"),
    ('{"label":"human","new_string":"a\\ud800b","thinking":"hm"}', "a\ufffdb"),
    ('{"label":"human","new_string":"two\nlines"}', "two\nlines"),
    ('{"label":"human","new_string":"é","request_heartbeat":true}', "é"),
]


@pytest.mark.parametrize(("raw", "value"), ARGUMENTS, ids=range(len(ARGUMENTS)))
async def test_arguments_that_are_almost_json(stage: Stage, raw: str, value: str) -> None:
    """Raw line ends and half surrogate pairs in arguments are put right, so that what is stored is always JSON."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": ""}])
    answer = await stage.send(agent, "hi", Say(calls=[Call("memory_insert", raw=raw)]), Say("Done."))
    assert answer.status == 200
    assert await stage.block(agent, "human") == value
    stored = answer["messages"][0]["tool_call"]["arguments"]
    assert json.loads(stored) == {"label": "human", "new_string": value}
    assert stage.requests[1].messages[1].tool_calls[0].arguments == stored
    assert (await stage.send(agent, "again", Say("Hello."))).status == 200


@pytest.mark.parametrize(
    "raw",
    ['{"label":"human","n":NaN}', '{"label":1e999}', '{"a":' * 2000 + "1" + "}" * 2000, '{"n":' + "9" * 5000 + "}"],
    ids=["nan", "infinity", "deep", "digits"],
)
async def test_arguments_that_no_provider_takes_back(stage: Stage, raw: str) -> None:
    """What is no JSON is not kept in history, where every later request would send it to the provider again."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": ""}])
    answer = await stage.send(agent, "hi", Say(calls=[Call("memory_insert", raw=raw)]), Say("Sorry."))
    assert answer.status == 200
    assert answer["messages"][0]["tool_call"]["arguments"] == "{}"
    assert "are not a JSON object" in answer["messages"][1]["tool_return"]
    assert types_of(await stage.history(agent)) == [
        "user_message", "tool_call_message", "tool_return_message", "assistant_message",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "query", ['"', "AND", "a AND OR", "*", "zebra*", "'; DROP TABLE runs", "NEAR(", "-", "%", "\0"]
)
async def test_odd_searches(stage: Stage, query: str) -> None:
    """No words that a model searches for make the search fail."""
    agent = await stage.agent()
    search = Call("conversation_search", {"query": query})
    answer = await stage.send(agent, "hi", Say(calls=[search]), Say("Done."))
    assert answer["messages"][1]["status"] == "success", answer["messages"][1]["tool_return"]


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"label": "human"}, {"label": 7, "new_string": "a"}, {"label": "human", "new_string": None},
        {"label": "human", "new_string": "a", "insert_line": 99}, {"label": "human", "new_string": "a", "extra": 1},
        {"label": ["human"], "new_string": {"a": 1}}, {"label": "human", "new_string": "x" * 100_001},
    ],
    ids=range(8),
)  # fmt: skip
async def test_wrong_arguments(stage: Stage, arguments: dict[str, object]) -> None:
    """Arguments that a tool cannot use give the model an error to learn from; memory stays as it is."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": "kept"}])
    answer = await stage.send(agent, "hi", Say(calls=[Call("memory_insert", arguments)]), Say("Sorry."))
    assert (answer["messages"][1]["status"], answer.stop) == ("error", "end_turn")
    assert await stage.block(agent, "human") == "kept"
