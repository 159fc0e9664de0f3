"""The unchanged SDKs reading streams: whole steps, words as they come, errors, filters, and a cancel from elsewhere."""

import asyncio
import json

import letta_client
import pytest
from acceptance.stage import Json, Stage, types_of
from clients.sdk import Refused, Sdk
from letta_client.types import agents as decoded

from perdure.domain.errors import ModelTimeout
from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

CREATE = "agents.messages.create"
HUMAN = [{"label": "human", "value": ""}]
INSERT = Call("memory_insert", {"label": "human", "new_string": "Bo"}, id="call_a")
END = ["stop_reason", "usage_statistics"]


def joined(deltas: list[Json]) -> dict[str, str]:
    """The arguments of streamed calls, by their ids."""
    told: dict[str, str] = {}
    for delta in deltas:
        call = delta["tool_call"]
        told[call["tool_call_id"]] = told.get(call["tool_call_id"], "") + (call.get("arguments") or "")
    return told


async def test_step_by_step(stage: Stage, sdk: Sdk) -> None:
    """A ping with the run's id, whole messages as they are stored, stop reason, usage; then the stream is over."""
    agent = await stage.agent(memory_blocks=HUMAN)
    stage.play(Say(think="Note.", calls=[INSERT]), Say("Noted."))
    chunks = await sdk.read(CREATE, agent, input="I am Bo", streaming=True)
    shown = ["reasoning_message", "tool_call_message", "tool_return_message", "assistant_message"]
    assert types_of(chunks) == ["ping", *shown, *END]
    assert chunks[1:5] == (await sdk.all("agents.messages.list", agent))[2:]
    assert {chunk["run_id"] for chunk in chunks[:5]} == {(await stage.runs(agent))[0]["id"]}
    assert (chunks[5]["stop_reason"], chunks[6]["step_count"]) == ("end_turn", 2)


async def test_word_by_word(stage: Stage, sdk: Sdk) -> None:
    """Fragments add up to what is stored under the same ids; the arguments of a call are JSON."""
    agent = await stage.agent(memory_blocks=HUMAN)
    stage.play(Say(think=["No", "te."], calls=[INSERT]), Say(["Not", "ed", "."]))
    chunks = await sdk.read(CREATE, agent, input="I am Bo", streaming=True, stream_tokens=True, include_pings=False)
    assert types_of(chunks) == [
        *["reasoning_message"] * 2, *["tool_call_message"] * 2, "tool_return_message", *["assistant_message"] * 3, *END
    ]  # fmt: skip
    _, _, thought, call, returned, words = await sdk.all("agents.messages.list", agent)
    assert "".join(chunk["reasoning"] for chunk in chunks[:2]) == thought["reasoning"] == "Note."
    assert [chunk["content"] for chunk in chunks[5:8]] == ["Not", "ed", "."]
    assert words["content"] == "Noted."
    stored = {json.loads(call["tool_call"]["arguments"])["new_string"]}
    assert {json.loads(text)["new_string"] for text in joined(chunks[2:4]).values()} == stored == {"Bo"}
    assert chunks[4] == returned
    for deltas, whole in ((chunks[:2], thought), (chunks[2:4], call), (chunks[5:8], words)):
        assert {(delta["id"], delta["otid"]) for delta in deltas} == {(whole["id"], whole["otid"])}


async def test_words_of_any_kind(stage: Stage, sdk: Sdk) -> None:
    """Signs that some readers take for the end of a line, letters of four bytes, and thousands of chunks arrive."""
    agent = await stage.agent()
    said = ["a\u2028b\x85c\x0b", "line\nline\r\n", "\n\ndata: [DONE]\n\n", "é😀\u0000", *(f" {n}" for n in range(2000))]
    stage.play(Say(said))
    chunks = await sdk.read(CREATE, agent, input="hi", streaming=True, stream_tokens=True, include_pings=False)
    assert [chunk["content"] for chunk in chunks[:-2]] == said
    [*_, stored] = await sdk.all("agents.messages.list", agent)
    assert stored["content"] == "".join(said)


async def test_two_calls_at_once(stage: Stage, sdk: Sdk) -> None:
    """Fragments of two calls are told apart by the id that each of them has."""
    agent = await stage.agent(memory_blocks=HUMAN, parallel_tool_calls=True)
    search = Call("conversation_search", {"query": "x"}, id="call_b")
    stage.play(Say(calls=[INSERT, search]), Say("Done."))
    chunks = await sdk.read(CREATE, agent, input="hi", streaming=True, stream_tokens=True)
    calls = [chunk for chunk in chunks if chunk["message_type"] == "tool_call_message"]
    assert joined(calls) == {"call_a": INSERT.encoded(), "call_b": '{"query":"x"}'}


@pytest.mark.parametrize("tokens", [False, True])
async def test_a_model_that_breaks_off(stage: Stage, sdk: Sdk, tokens: bool) -> None:
    """The stop reason is read, then the SDK raises an error that carries the server's error object."""
    agent = await stage.agent()
    stage.play(Say("Hel", break_off=ModelTimeout("Too slow.", "60 s")))
    chunks, failure = await sdk.broken(CREATE, agent, input="hi", streaming=True, stream_tokens=tokens)
    assert types_of(chunks) == ["ping", *["assistant_message"] * tokens, "stop_reason"]
    assert chunks[-1]["stop_reason"] == "llm_api_error"
    assert failure.kind in ("APIStatusError", "APIError")
    assert failure.body == {
        "message_type": "error_message", "run_id": chunks[0]["run_id"], "error_type": "llm_timeout",
        "message": "Too slow.", "detail": "60 s", "seq_id": None,
    }  # fmt: skip


async def test_only_what_was_asked_for(stage: Stage, sdk: Sdk) -> None:
    """The filter leaves out messages and nothing else."""
    agent = await stage.agent(memory_blocks=HUMAN)
    stage.play(Say(think="Note.", calls=[INSERT]), Say("Noted."))
    wanted = ["assistant_message"]
    chunks = await sdk.read(CREATE, agent, input="hi", streaming=True, include_return_message_types=wanted)
    assert types_of(chunks) == ["ping", *wanted, *END]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_the_older_way_to_stream(stage: Stage, sdk: Sdk) -> None:
    """messages.stream, which the SDKs call deprecated, is served."""
    agent = await stage.agent()
    stage.play(Say(["Hel", "lo."]))
    chunks = await sdk.read("agents.messages.stream", agent, input="hi", stream_tokens=True)
    assert types_of(chunks) == ["ping", "assistant_message", "assistant_message", *END]


async def test_refused_before_it_streams(stage: Stage, sdk: Sdk) -> None:
    """What cannot be streamed is an error of its status, not a stream."""
    with pytest.raises(Refused) as refusal:
        await sdk.read(CREATE, "agent-00000000-0000-4000-8000-00000000dead", input="hi", streaming=True)
    assert (refusal.value.kind, refusal.value.status) == ("NotFoundError", 404)


@pytest.mark.parametrize("background", [False, True])
async def test_cancelled_by_another_client(stage: Stage, sdk: Sdk, background: bool) -> None:
    """The reader gets the stop reason `cancelled`, the end and no error; the agent can be talked to again."""
    agent = await stage.agent(memory_blocks=HUMAN)
    stage.play(Say(calls=[INSERT]), Say(hang=True))
    chunks: list[Json] = []
    answer: Json = None
    async for chunk in sdk.stream(CREATE, agent, input="hi", streaming=True, background=background):
        chunks.append(chunk)
        if chunk["message_type"] == "tool_return_message":
            answer = await sdk.another().call("agents.messages.cancel", agent)
    run_id = chunks[0]["run_id"]
    assert types_of(chunks) == ["ping", "tool_call_message", "tool_return_message", "stop_reason"]
    assert (chunks[-1]["stop_reason"], answer) == ("cancelled", {run_id: "cancelled"})
    assert (await sdk.call("runs.retrieve", run_id))["status"] == "cancelled"
    stage.play(Say("Hello."))
    assert (await sdk.call(CREATE, agent, input="Still there?"))["messages"][0]["content"] == "Hello."


async def test_nothing_to_cancel(stage: Stage, sdk: Sdk) -> None:
    """An error at once, without being tried again."""
    agent = await stage.agent()
    with pytest.raises(Refused, match="No active runs to cancel") as refusal:
        await sdk.call("agents.messages.cancel", agent)
    assert (refusal.value.kind, sdk.attempts.sent) == ("ConflictError", ["0"])


async def test_the_classes_of_the_python_sdk(stage: Stage) -> None:
    """The Python SDK knows each chunk, here through its client without asyncio."""
    agent = await stage.agent(memory_blocks=HUMAN)
    stage.play(Say(think="Note.", calls=[INSERT]), Say("Noted."))

    def read() -> list[type]:
        with (
            letta_client.Letta(base_url=stage.running.base_url, api_key="unused") as client,
            client.agents.messages.create(agent, input="hi", streaming=True, stream_tokens=True) as chunks,
        ):
            return [type(chunk) for chunk in chunks]

    ping, *messages, stop, usage = await asyncio.to_thread(read)
    assert messages == [
        decoded.ReasoningMessage, decoded.ToolCallMessage, decoded.ToolCallMessage,
        letta_client.types.ToolReturnMessage, decoded.AssistantMessage,
    ]  # fmt: skip
    assert [kind.__name__ for kind in (ping, stop, usage)] == ["LettaPing", "LettaStopReason", "LettaUsageStatistics"]
