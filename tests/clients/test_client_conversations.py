"""The unchanged SDKs and conversations: several of them with one agent, each with messages of its own."""

import asyncio

import pytest
from acceptance.stage import Json, Stage, types_of
from clients.sdk import Refused, Sdk

from perdure.testing import Say

pytestmark = pytest.mark.anyio

SEND = "conversations.messages.create"
END = ["stop_reason", "usage_statistics"]


async def begin(stage: Stage, sdk: Sdk, **fields: Json) -> tuple[str, str]:
    """A new agent and a conversation with it."""
    agent = await stage.agent()
    made = await sdk.call("conversations.create", agent_id=agent, **fields)
    assert made["agent_id"] == agent
    return agent, made["id"]


async def said(sdk: Sdk, conversation: str, **fields: Json) -> list[str]:
    """What was said in a conversation, oldest first."""
    listed = await sdk.all("conversations.messages.list", conversation, order="asc", **fields)
    return [message["content"] for message in listed if message["message_type"] != "system_message"]


async def test_the_life_of_a_conversation(stage: Stage, sdk: Sdk) -> None:
    """Create, find, rename, and delete it."""
    agent, conversation = await begin(stage, sdk, summary="Tea")
    assert conversation.startswith("conv-")
    assert [found["id"] for found in await sdk.call("conversations.list", agent_id=agent)] == [conversation]
    assert (await sdk.call("conversations.update", conversation, summary="Coffee"))["summary"] == "Coffee"
    assert (await sdk.call("conversations.retrieve", conversation))["summary"] == "Coffee"
    await sdk.call("conversations.delete", conversation)
    assert await sdk.call("conversations.list", agent_id=agent) == []
    with pytest.raises(Refused) as gone:
        await sdk.call("conversations.retrieve", conversation)
    assert (gone.value.kind, gone.value.status) == ("NotFoundError", 404)


async def test_a_message_streams_unless_told_otherwise(stage: Stage, sdk: Sdk) -> None:
    """Sending to a conversation streams by default; the agent's own conversation does not hear of it."""
    agent, conversation = await begin(stage, sdk)
    stage.play(Say("Hello."), Say("Yes."))
    chunks = await sdk.read(SEND, conversation, input="hi")
    assert types_of(chunks) == ["ping", "assistant_message", *END]
    words = await sdk.read(SEND, conversation, input="Still there?", stream_tokens=True, include_pings=False)
    assert types_of(words) == ["assistant_message", *END]
    assert await said(sdk, conversation) == ["hi", "Hello.", "Still there?", "Yes."]
    assert await said(sdk, conversation, limit=2) == ["hi", "Hello.", "Still there?", "Yes."]
    default = await sdk.all("agents.messages.list", agent, conversation_id="default")
    assert types_of(default) == ["system_message"]
    assert len((await sdk.call("conversations.retrieve", conversation))["in_context_message_ids"]) == 5


async def test_the_default_conversation(stage: Stage, sdk: Sdk) -> None:
    """`default` with an agent's id is the agent's own conversation."""
    agent = await stage.agent()
    stage.play(Say("Hello."))
    await sdk.read(SEND, "default", agent_id=agent, input="hi")
    assert [message["content"] for message in await stage.history(agent)] == ["hi", "Hello."]


async def test_two_conversations_at_once(stage: Stage, sdk: Sdk) -> None:
    """One conversation is busy, and refuses; another of the same agent answers meanwhile."""
    agent, one = await begin(stage, sdk)
    two = (await sdk.call("conversations.create", agent_id=agent))["id"]
    gate = asyncio.Event()
    stage.play(Say("One.", gate=gate), Say("Two."))
    types = []
    async for chunk in sdk.stream(SEND, one, input="first"):
        types.append(chunk["message_type"])
        if types == ["ping"]:
            async with asyncio.timeout(5):
                while not stage.requests:
                    await asyncio.sleep(0.005)
            assert types_of(await sdk.read(SEND, two, input="second")) == ["ping", "assistant_message", *END]
            with pytest.raises(Refused) as busy:
                await sdk.another(max_retries=0).read(SEND, one, input="third")
            gate.set()
    assert (busy.value.kind, busy.value.body["run_id"]) == ("ConflictError", chunk_run(await stage.runs(agent), one))
    assert (await said(sdk, one), await said(sdk, two)) == (["first", "One."], ["second", "Two."])


def chunk_run(runs: list[Json], conversation: str) -> str:
    """The id of the conversation's run."""
    [run_id] = [run["id"] for run in runs if run["conversation_id"] == conversation]
    return str(run_id)


async def test_cancelled(stage: Stage, sdk: Sdk) -> None:
    """Cancelling a conversation ends its stream."""
    _, conversation = await begin(stage, sdk)
    stage.play(Say(hang=True))
    chunks: list[Json] = []
    answer: Json = None
    async for chunk in sdk.stream(SEND, conversation, input="hi"):
        chunks.append(chunk)
        if chunk["message_type"] == "ping":
            answer = await sdk.another().call("conversations.cancel", conversation)
    assert types_of(chunks) == ["ping", "stop_reason"]
    assert (chunks[1]["stop_reason"], answer) == ("cancelled", {chunks[0]["run_id"]: "cancelled"})


async def test_a_stream_that_is_found_by_its_conversation(stage: Stage, sdk: Sdk) -> None:
    """A dropped stream is found again by the conversation alone, by the run, or by the message's otid."""
    _, conversation = await begin(stage, sdk)
    gate = asyncio.Event()
    stage.play(Say(["Hel", "lo."], gate=gate))
    otid = "00000000-0000-4000-8000-000000000002"
    messages = [{"role": "user", "content": "hi", "otid": otid}]
    [ping] = await sdk.read(SEND, conversation, messages=messages, background=True, stream_tokens=True, take=1)
    rest = []
    async for chunk in sdk.stream("conversations.messages.stream", conversation):
        rest.append(chunk)
        gate.set()
    assert types_of(rest) == ["ping", *["assistant_message"] * 2, *END]
    for known in ({"run_id": ping["run_id"]}, {"otid": otid}):
        assert await sdk.read("conversations.messages.stream", conversation, **known) == rest
        assert await sdk.read("conversations.messages.stream", conversation, starting_after=2, **known) == rest[2:]


async def test_forked(stage: Stage, sdk: Sdk) -> None:
    """A fork has the messages so far and goes its own way."""
    _, conversation = await begin(stage, sdk)
    stage.play(Say("Hello."), Say("Other."))
    await sdk.read(SEND, conversation, input="hi")
    fork = (await sdk.call("conversations.fork", conversation))["id"]
    await sdk.read(SEND, fork, input="And now?")
    assert [message.role for message in stage.requests[-1].messages] == ["user", "assistant", "user"]
    assert await said(sdk, conversation) == ["hi", "Hello."]
    assert (await said(sdk, fork))[-2:] == ["And now?", "Other."]
