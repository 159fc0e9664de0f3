"""A summary in the place of a context's oldest part, on both databases: whole or not at all."""

import msgspec
import pytest
from making import a_run, a_step, at, ended, make_agent, said, take_turn

from perdure.domain.errors import Fenced, Invalid
from perdure.domain.messages import Message, Text
from perdure.domain.ports import MessageQuery, Page, StepCommit
from perdure.domain.records import Run
from perdure.store import SqlStore

pytestmark = pytest.mark.anyio


async def talk(store: SqlStore, turns: int) -> str:
    """An agent that has spoken so often."""
    state = await make_agent(store)
    for n in range(turns):
        await take_turn(store, state.agent.id, said(f"q{n}"), said(f"a{n}", role="assistant"), minutes=n)
    return state.agent.id


async def texts(store: SqlStore, context_id: str) -> list[str]:
    return [message.content[0].text for message in (await store.contexts.load(context_id)).messages]


async def compaction(store: SqlStore, agent_id: str, kept_from: int | None, **changes: object) -> StepCommit:
    """The commit of a running compaction that keeps what stands at `kept_from` and behind it."""
    messages = (await store.contexts.load(agent_id)).messages
    run = a_run(agent_id)
    await store.runs.accept(run, b"{}")
    kept = None if kept_from is None else messages[kept_from].id
    system = msgspec.structs.replace(messages[0], content=(Text("You are still."),))
    commit = StepCommit(
        run=run, messages=[], step=a_step(run), system_message=system, compiled_version=1, hidden_count=3,
        compiled_at=at(9), summary=said("They talked.", role="summary"), kept_from=kept, finished=ended(run),
    )  # fmt: skip
    return msgspec.structs.replace(commit, **changes)


async def test_the_summary_stands_before_what_is_kept(store: SqlStore):
    """Although it is the newest message. The revision goes up, so that nobody works on with a copy of the old one."""
    agent = await talk(store, 3)
    before = await store.contexts.load(agent)
    commit = await compaction(store, agent, 4)
    committed = await store.runs.commit(commit)
    after = await store.contexts.load(agent)
    assert await texts(store, agent) == ["You are still.", "They talked.", "a1", "q2", "a2"]
    assert after.messages[1].stands_for == tuple(message.id for message in before.messages[1:4])
    assert (after.revision, after.hidden_count, after.compiled_at) == (before.revision + 1, 3, at(9))
    assert after.last_sequence == committed.last_sequence > before.last_sequence
    assert (await store.agents.get(agent)).message_ids == tuple(message.id for message in after.messages)
    assert (await store.runs.get(commit.run.id)).status == "completed"


async def test_what_is_said_afterwards_comes_last(store: SqlStore):
    """And a second summary takes the place of the first one with the rest."""
    agent = await talk(store, 3)
    await store.runs.commit(await compaction(store, agent, 4))
    await take_turn(store, agent, said("q3"), said("a3", role="assistant"))
    first = (await store.contexts.load(agent)).messages[1].id
    await store.runs.commit(await compaction(store, agent, 5))
    assert await texts(store, agent) == ["You are still.", "They talked.", "q3", "a3"]
    second = (await store.contexts.load(agent)).messages[1]
    assert (second.stands_for[0], len(second.stands_for)) == (first, 4)


async def test_nothing_but_the_summary_may_be_left(store: SqlStore):
    """Everything said so far stays in the history."""
    agent = await talk(store, 2)
    await store.runs.commit(await compaction(store, agent, None))
    assert await texts(store, agent) == ["You are still.", "They talked."]
    history = await store.messages.find(MessageQuery(agent_id=agent), Page(ascending=True))
    assert [entry.message.role for entry in history] == ["system", "user", "assistant", "user", "assistant", "summary"]


async def test_a_run_may_go_on_after_its_compaction(store: SqlStore):
    """Within a turn the context becomes shorter between two steps; the run keeps holding it."""
    agent = await talk(store, 2)
    commit = await compaction(store, agent, 3, finished=None)
    await store.runs.commit(commit)
    again = StepCommit(
        run=commit.run, messages=[said("a9", role="assistant")], step=a_step(commit.run), finished=ended(commit.run)
    )
    await store.runs.commit(again)
    assert await texts(store, agent) == ["You are still.", "They talked.", "q1", "a1", "a9"]


async def test_a_worker_given_up_for_dead_compacts_nothing(store: SqlStore):
    """After a crash, or a cancel, the context is as it was, and its owner's late commit is refused whole."""
    agent = await talk(store, 2)
    before = await texts(store, agent)
    commit = await compaction(store, agent, None)
    assert await store.runs.interrupt(None, "The worker died.") == 1
    for late in (commit, msgspec.structs.replace(commit, finished=None)):
        with pytest.raises(Fenced):
            await store.runs.commit(late)
    assert await texts(store, agent) == before
    await store.runs.commit(await compaction(store, agent, None))


@pytest.mark.parametrize("kept_from", ["message-none", "evicted", "first"])
async def test_a_context_that_is_not_the_one_summarised_stays(store: SqlStore, kept_from: str):
    """What shall be kept is no longer in it, or nothing would leave it: the whole commit is refused."""
    agent = await talk(store, 3)
    gone = (await store.contexts.load(agent)).messages[1].id
    await store.runs.commit(await compaction(store, agent, 3))
    messages: list[Message] = (await store.contexts.load(agent)).messages
    named = {"message-none": "message-none", "evicted": gone, "first": messages[1].id}[kept_from]
    commit = msgspec.structs.replace(await compaction(store, agent, None), kept_from=named)
    with pytest.raises(Invalid, match="Compact it again"):
        await store.runs.commit(commit)
    assert (await store.contexts.load(agent)).messages[1].id == messages[1].id
    run: Run = await store.runs.get(commit.run.id)
    assert run.status == "running"


async def test_the_callers_own_choice_of_messages_goes_before(store: SqlStore):
    """PATCH message_ids can put the originals back in the place of their summary: a compaction can be undone."""
    agent = await talk(store, 3)
    await store.runs.commit(await compaction(store, agent, 4))
    _, summary, *kept = (await store.contexts.load(agent)).messages
    await store.agents.update(
        agent, lambda it: it, message_ids=[*summary.stands_for, *(message.id for message in kept)]
    )  # fmt: skip
    assert await texts(store, agent) == ["You are still.", "q0", "a0", "q1", "a1", "q2", "a2"]
