"""Contexts on both databases: loading, and starting over."""

import asyncio
import time

import msgspec
import pytest
from making import a_block, a_run, a_tool, at, make_agent, said, take_turn

from perdure.domain.errors import Busy, Invalid, NotFound
from perdure.domain.messages import Message, Text
from perdure.domain.ports import MessageQuery, Page
from perdure.store import SqlStore

pytestmark = pytest.mark.anyio


async def text_in(store: SqlStore, context_id: str) -> list[str]:
    return [message.content[0].text for message in (await store.contexts.load(context_id)).messages]


def saying(message: Message, text: str) -> Message:
    return msgspec.structs.replace(message, content=(Text(text),))


async def test_a_context_is_loaded_with_all_a_run_needs(store: SqlStore):
    """Agent, blocks, tools and messages in order, with the numbers that tell whether a copy is still true."""
    tool = await store.tools.save(a_tool())
    state = await make_agent(store, minutes=3, blocks=[a_block()], tool_ids=[tool.id])
    run = await take_turn(store, state.agent.id, said("Hi"), said("Hello", role="assistant"))
    with store.db.tally() as tally:
        context = await store.contexts.load(state.agent.id)
    assert (context.id, context.agent, context.blocks, context.tools) == (
        state.agent.id, state.agent, state.blocks, state.tools
    )  # fmt: skip
    assert [message.content[0].text for message in context.messages] == ["You are.", "Hi", "Hello"]
    newest = (await store.messages.find(MessageQuery(run_id=run.id), Page()))[0]
    assert context.last_sequence == newest.sequence_id
    assert (context.agent_version, context.compiled_version, context.revision, context.hidden_count) == (1, 1, 1, 0)
    assert (context.compiled_at, context.conversation_id) == (at(3), None)
    assert len(tally.statements) == 4


async def test_an_agent_without_messages_has_an_empty_context(store: SqlStore):
    """Nothing to send, nothing to fail on."""
    context = await store.contexts.load((await make_agent(store, messages=[])).agent.id)
    assert (context.messages, context.last_sequence) == ([], 0)


async def test_starting_over_keeps_history_out_of_the_context(store: SqlStore):
    """The context is the rewritten system message and the given ones; what was said stays readable."""
    state = await make_agent(store)
    agent_id = state.agent.id
    await take_turn(store, agent_id, said("Hi"), said("Hello", role="assistant"))
    system = (await store.contexts.load(agent_id)).messages[0]
    await store.contexts.reset(
        agent_id, saying(system, "You are new."), [said("Again")], compiled_version=7, compiled_at=at(9), hidden_count=2
    )  # fmt: skip
    assert await text_in(store, agent_id) == ["You are new.", "Again"]
    context = await store.contexts.load(agent_id)
    assert (context.revision, context.compiled_version, context.compiled_at, context.hidden_count) == (2, 7, at(9), 2)
    everything = await store.messages.find(MessageQuery(agent_id=agent_id), Page(ascending=True))
    assert [s.message.content[0].text for s in everything] == ["You are new.", "Hi", "Hello", "Again"]
    await take_turn(store, agent_id, said("More"))
    assert await text_in(store, agent_id) == ["You are new.", "Again", "More"]


async def test_starting_over_is_refused_while_a_run_holds_the_context(store: SqlStore):
    """And nothing changes then; nor for a context that does not exist or a message that is not its own."""
    state = await make_agent(store)
    agent_id, run = state.agent.id, a_run(state.agent.id)
    system = (await store.contexts.load(agent_id)).messages[0]
    how = {"compiled_version": 1, "compiled_at": at(0), "hidden_count": 0}
    with pytest.raises(Invalid, match="message-"):
        await store.contexts.reset(agent_id, said("mine"), [], **how)
    with pytest.raises(NotFound):
        await store.contexts.reset("agent-x", system, [], **how)
    await store.runs.accept(run, b"{}")
    with pytest.raises(Busy, match=run.id) as busy:
        await store.contexts.reset(agent_id, saying(system, "new"), [], **how)
    assert busy.value.run_id == run.id
    assert await text_in(store, agent_id) == ["You are."]


async def test_accepting_and_starting_over_never_overlap(store: SqlStore):
    """Whichever comes first, an accepted run is told the revision that holds from then on."""
    for _ in range(8):
        agent_id = (await make_agent(store)).agent.id
        system = (await store.contexts.load(agent_id)).messages[0]
        accepted, reset = await asyncio.gather(
            store.runs.accept(a_run(agent_id), b"{}"),
            store.contexts.reset(agent_id, system, [], compiled_version=1, compiled_at=at(0), hidden_count=0),
            return_exceptions=True,
        )
        revision = (await store.contexts.load(agent_id)).revision
        assert accepted.revision == revision
        assert (revision == 1) == isinstance(reset, Busy)


async def test_ten_thousand_messages_load_in_well_under_a_second(store: SqlStore):
    """A long history is no reason to wait."""
    agent_id = (await make_agent(store)).agent.id
    spoken = (said(f"Message {n}, of the usual length of a line or two.") for n in range(10_000))
    await take_turn(store, agent_id, *spoken)
    begin = time.perf_counter()
    context = await store.contexts.load(agent_id)
    assert time.perf_counter() - begin < 1
    assert len(context.messages) == 10_001
    assert context.messages[-1].content[0].text.startswith("Message 9999,")
