"""The unchanged SDKs and runs in the background: a stream that was dropped is read on, without a gap or a repeat."""

import asyncio

import pytest
from acceptance.stage import Json, Stage, types_of
from clients.sdk import Refused, Sdk

from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

CREATE = "agents.messages.create"
RESUME = "runs.messages.stream"
IN_BACKGROUND = {"streaming": True, "stream_tokens": True, "background": True}
HUMAN = [{"label": "human", "value": ""}]
INSERT = Call("memory_insert", {"label": "human", "new_string": "Bo"}, id="call_a")
END = ["stop_reason", "usage_statistics"]


def numbers(chunks: list[Json]) -> list[int]:
    """The numbers of the chunks that have one: all but the stop reason and the usage."""
    return [chunk["seq_id"] for chunk in chunks if chunk["message_type"] not in END]


async def test_every_chunk_has_its_number(stage: Stage, sdk: Sdk) -> None:
    """Chunks are numbered 1, 2, 3, … and name their run; the stream can be read again from any number."""
    agent = await stage.agent(memory_blocks=HUMAN)
    stage.play(Say(calls=[INSERT]), Say(["Not", "ed."]))
    chunks = await sdk.read(CREATE, agent, input="I am Bo", **IN_BACKGROUND)
    assert types_of(chunks) == [
        "ping", *["tool_call_message"] * 2, "tool_return_message", *["assistant_message"] * 2, *END
    ]  # fmt: skip
    assert numbers(chunks) == [1, 2, 3, 4, 5, 6]
    run_id = chunks[0]["run_id"]
    assert {chunk["run_id"] for chunk in chunks[:6]} == {run_id}
    assert (await sdk.call("runs.retrieve", run_id))["background"] is True
    for after in (0, 3, 6, 7):
        assert await sdk.read(RESUME, run_id, starting_after=after) == chunks[after:]
    assert await sdk.read(RESUME, run_id) == chunks


async def test_dropped_and_read_on_while_it_runs(stage: Stage, sdk: Sdk) -> None:
    """A reader that hung up reads exactly the rest, begun before the run is over; the run did not notice."""
    agent = await stage.agent(memory_blocks=HUMAN)
    gate = asyncio.Event()
    stage.play(Say(calls=[INSERT]), Say(["Not", "ed."], gate=gate))
    first = await sdk.read(CREATE, agent, input="I am Bo", take=3, **IN_BACKGROUND)
    rest = []
    async for chunk in sdk.another().stream(RESUME, first[0]["run_id"], starting_after=3):
        rest.append(chunk)
        if chunk["message_type"] == "tool_return_message":
            assert (await sdk.call("runs.retrieve", first[0]["run_id"]))["status"] == "running"
            gate.set()
    assert numbers(first + rest) == [1, 2, 3, 4, 5, 6]
    assert types_of(rest) == ["tool_return_message", *["assistant_message"] * 2, *END]
    assert await sdk.read(RESUME, first[0]["run_id"]) == first + rest


async def test_two_readers(stage: Stage, sdk: Sdk) -> None:
    """Who reads beside the first reader gets the same."""
    agent = await stage.agent()
    gate = asyncio.Event()
    stage.play(Say(["Hel", "lo."], gate=gate))
    chunks: list[Json] = []
    beside: asyncio.Task[list[Json]] | None = None
    async for chunk in sdk.stream(CREATE, agent, input="hi", **IN_BACKGROUND):
        chunks.append(chunk)
        if beside is None:
            beside = asyncio.create_task(sdk.another().read(RESUME, chunk["run_id"]))
            gate.set()
    assert beside is not None
    assert await beside == chunks


async def test_what_cannot_be_read_on(stage: Stage, sdk: Sdk) -> None:
    """A run that did not stream in the background, and a run that is not there."""
    agent = await stage.agent()
    await stage.send(agent, "hi", Say("Hello."))
    [run] = await stage.runs(agent)
    refusals = []
    for run_id in (run["id"], "run-00000000-0000-4000-8000-00000000dead"):
        with pytest.raises(Refused) as refusal:
            await sdk.read(RESUME, run_id)
        refusals.append((refusal.value.kind, refusal.value.status))
    assert refusals == [("BadRequestError", 400), ("NotFoundError", 404)]


async def test_the_same_message_twice(stage: Stage, sdk: Sdk) -> None:
    """Posted again under the same otid, a message in the background is the same run, told from its start."""
    agent = await stage.agent()
    stage.play(Say(["Hel", "lo."]))
    messages = [{"role": "user", "content": "hi", "otid": "00000000-0000-4000-8000-000000000001"}]
    first = await sdk.read(CREATE, agent, messages=messages, **IN_BACKGROUND)
    again = await sdk.read(CREATE, agent, messages=messages, **IN_BACKGROUND)
    assert again == first
    assert len(await stage.runs(agent)) == 1
