"""Runs on both databases: the lease, the fence, the commit of a step, and how runs end."""

import asyncio

import msgspec
import pytest
from making import a_block, a_run, a_step, an_agent, at, ended, make_agent, said, take_turn

from perdure.domain.errors import Busy, Fenced, Invalid, NotFound, StaleBlock
from perdure.domain.frames import Batch, Frames
from perdure.domain.messages import Message, Text, Usage
from perdure.domain.ports import Accepted, BlockEdit, MessageQuery, Page, RunQuery, StepCommit, StepQuery
from perdure.domain.records import Block, Run
from perdure.store import SqlStore

pytestmark = pytest.mark.anyio
NEWEST_FIRST, OLDEST_FIRST = Page(), Page(ascending=True)


@pytest.fixture
async def agent_id(store: SqlStore) -> str:
    """An agent with the block `human` and a system message."""
    return (await make_agent(store, blocks=[a_block()])).agent.id


async def begin(store: SqlStore, agent_id: str, **fields) -> Run:
    run = a_run(agent_id, **fields)
    await store.runs.accept(run, b'{"input": "Hi"}')
    return run


def step_of(run: Run, *messages: Message, **fields) -> StepCommit:
    return StepCommit(**{"run": run, "messages": messages, "step": a_step(run), **fields})


async def history(store: SqlStore, agent_id: str) -> list[str]:
    found = await store.messages.find(MessageQuery(agent_id=agent_id), OLDEST_FIRST)
    return [stored.message.content[0].text for stored in found]


# --- the lease ---------------------------------------------------------------------------------------------------


async def test_an_accepted_run_holds_its_context(store: SqlStore, agent_id: str):
    """It answers what is true of the context; a second run is told who holds it; the end frees it."""
    context = await store.contexts.load(agent_id)
    run = a_run(agent_id, background=True, metadata={"run_type": "x"}, request_config={"a": [None]})
    assert await store.runs.accept(run, b"{}") == Accepted(1, 1, context.last_sequence)
    assert await store.runs.get(run.id) == run
    with pytest.raises(Busy) as busy:
        await store.runs.accept(a_run(agent_id), b"{}")
    assert busy.value.run_id == run.id
    await store.runs.end(ended(run, status="failed"))
    await store.runs.accept(a_run(agent_id), b"{}")


async def test_what_is_accepted_notices_every_change(store: SqlStore, agent_id: str):
    """A cached context is still true exactly if all three numbers are the same."""
    before = await store.contexts.load(agent_id)
    await take_turn(store, agent_id, said("Hi"))
    await store.blocks.update((await store.agents.get(agent_id)).blocks[0].id, _setting(value="New."))
    accepted = await store.runs.accept(a_run(agent_id), b"{}")
    assert (accepted.agent_version, accepted.revision) == (2, 1)
    assert accepted.last_sequence > before.last_sequence
    after = await store.contexts.load(agent_id)
    assert accepted == Accepted(after.agent_version, after.revision, after.last_sequence)


async def test_of_many_at_once_exactly_one_takes_the_context(store: SqlStore, agent_id: str):
    """The others are told at once; no run of theirs is stored."""
    outcomes = await asyncio.gather(
        *(store.runs.accept(a_run(agent_id), b"{}") for _ in range(12)), return_exceptions=True
    )  # fmt: skip
    assert [type(outcome) for outcome in outcomes].count(Accepted) == 1
    assert [type(outcome) for outcome in outcomes].count(Busy) == 11
    assert len(await store.runs.find(RunQuery(), NEWEST_FIRST)) == 1


async def test_contexts_do_not_disturb_each_other(store: SqlStore):
    """Fifty agents take turns at the same time; every message is there once and in its order."""
    ids = [(await make_agent(store, str(n))).agent.id for n in range(50)]

    async def turns(agent_id: str) -> None:
        for n in range(3):
            await take_turn(store, agent_id, said(f"q{n}"), said(f"a{n}", role="assistant"), minutes=n)

    await asyncio.gather(*map(turns, ids))
    for agent_id in ids:
        assert await history(store, agent_id) == ["You are.", "q0", "a0", "q1", "a1", "q2", "a2"]


async def test_a_run_needs_an_existing_context_of_its_agent(store: SqlStore, agent_id: str):
    """Otherwise the agent is not found."""
    for run in (a_run(an_agent().id), a_run(agent_id, context_id="conv-x"), a_run("agent-x", context_id=agent_id)):
        with pytest.raises(NotFound, match=r"^Agent not found$"):
            await store.runs.accept(run, b"{}")


async def test_any_bytes_are_kept_as_a_request(store: SqlStore, agent_id: str):
    """What a client sent is never a reason to fail."""
    await store.runs.accept(a_run(agent_id), '{"x": "\0 🙂"}'.encode() + b"\xff\xfe")


# --- steps -------------------------------------------------------------------------------------------------------


async def test_a_plain_turn_is_four_statements_in_two_transactions(store: SqlStore, agent_id: str):
    """Accept; then end the run, store the step, store the messages."""
    run = a_run(agent_id)
    with store.db.tally() as tally:
        await store.runs.accept(run, b"{}")
        await store.runs.commit(step_of(run, said("Hi"), said("Hello", role="assistant"), finished=ended(run)))
    assert [statement.split()[:3] for statement in tally.statements] == [
        ["INSERT", "INTO", "runs"], ["UPDATE", "runs", "SET"], ["INSERT", "INTO", "steps"],
        ["INSERT", "INTO", "messages"],
    ]  # fmt: skip
    assert tally.transactions == 2


async def test_a_tool_step_is_two_statements_in_one_transaction(store: SqlStore, agent_id: str):
    """The step checks the fence while it is stored."""
    run = await begin(store, agent_id)
    with store.db.tally() as tally:
        await store.runs.commit(step_of(run, said("Hi"), said("calling", role="assistant")))
    assert (len(tally.statements), tally.transactions) == (2, 1)


async def test_steps_store_messages_step_and_end_together(store: SqlStore, agent_id: str):
    """The numbers grow, everything is readable, the run is over."""
    run = await begin(store, agent_id)
    first, last = a_step(run), a_step(run, usage=Usage(3, 4, 7), tags=("t",), error_data={"a": 1})
    one = await store.runs.commit(step_of(run, said("Hi"), said("calling", role="assistant"), step=first))
    over = ended(run, usage=Usage(1, 2, 3), total_duration_ns=5)
    two = await store.runs.commit(step_of(run, said("Bye", role="assistant"), step=last, finished=over))
    assert (one.agent_version, two.last_sequence - one.last_sequence) == (None, 1)
    assert await history(store, agent_id) == ["You are.", "Hi", "calling", "Bye"]
    assert await store.runs.get(run.id) == over
    assert await store.runs.find_steps(StepQuery(run_id=run.id), OLDEST_FIRST) == [first, last]
    assert (await store.contexts.load(agent_id)).last_sequence == two.last_sequence


async def test_a_step_without_messages_answers_the_newest_number_there_is(store: SqlStore, agent_id: str):
    """Nothing said is not nothing saved."""
    run = await begin(store, agent_id)
    committed = await store.runs.commit(step_of(run))
    assert committed.last_sequence == (await store.contexts.load(agent_id)).last_sequence


@pytest.mark.parametrize("finishing", [False, True])
async def test_a_worker_that_was_given_up_writes_nothing(store: SqlStore, agent_id: str, finishing: bool):
    """After another one ended its run, after a newer epoch, after the run was deleted."""
    run = await begin(store, agent_id)
    late = step_of(run, said("too late"), finished=ended(run) if finishing else None)
    newer = msgspec.structs.replace(run, epoch=2)
    with pytest.raises(Fenced, match=run.id):
        await store.runs.commit(msgspec.structs.replace(late, run=newer, finished=ended(newer) if finishing else None))
    await store.runs.interrupt(None, "gone")
    with pytest.raises(Fenced, match=run.id):
        await store.runs.commit(late)
    with pytest.raises(Fenced, match=run.id):
        await store.runs.end(ended(run), a_step(run))
    await store.agents.delete(agent_id)
    with pytest.raises(Fenced):
        await store.runs.commit(late)
    assert await store.messages.find(MessageQuery(), NEWEST_FIRST) == []
    assert await store.runs.find_steps(StepQuery(), NEWEST_FIRST) == []


async def test_a_recompiled_system_message_is_saved_with_the_step(store: SqlStore, agent_id: str):
    """Message 0 is rewritten in place; when it was compiled, and from what, is noted."""
    run, system = await begin(store, agent_id), (await store.contexts.load(agent_id)).messages[0]
    rewritten = msgspec.structs.replace(system, content=(Text("You know more."),))
    await store.runs.commit(
        step_of(run, said("Hi"), system_message=rewritten, compiled_version=4, hidden_count=2, compiled_at=at(8))
    )
    context = await store.contexts.load(agent_id)
    assert await history(store, agent_id) == ["You know more.", "Hi"]
    assert (context.compiled_version, context.hidden_count, context.compiled_at) == (4, 2, at(8))
    assert (context.messages[0].id, context.revision) == (system.id, 1)
    with pytest.raises(Invalid, match="system message"):
        await store.runs.commit(step_of(run, said("x"), system_message=said("not mine", role="system")))
    assert await history(store, agent_id) == ["You know more.", "Hi"]


# --- memory edits ------------------------------------------------------------------------------------------------


def _setting(**fields):
    return lambda record: msgspec.structs.replace(record, **fields)


def edit(block: Block, *, detach: bool = False, **fields) -> BlockEdit:
    return BlockEdit(block=msgspec.structs.replace(block, **fields), base_version=block.version, detach=detach)


async def values(store: SqlStore, agent_id: str) -> dict[str, tuple[str, int]]:
    return {block.label: (block.value, block.version) for block in (await store.agents.get(agent_id)).blocks}


async def test_edits_are_saved_with_the_step_and_seen_by_all_who_share_the_block(store: SqlStore, agent_id: str):
    """The answer has the agent's new version; the other agents' versions grow too."""
    [block] = (await store.agents.get(agent_id)).blocks
    sharing = (await make_agent(store, "Bob", block_ids=[block.id])).agent.id
    run = await begin(store, agent_id)
    committed = await store.runs.commit(step_of(run, edits=[edit(block, value="Likes tea.\0", tags=("t",))]))
    assert committed.agent_version == 2
    assert await values(store, sharing) == {"human": ("Likes tea.", 2)}
    assert (await store.contexts.load(sharing)).agent_version == 2


async def test_several_edits_of_one_block_in_a_step_count_once(store: SqlStore, agent_id: str):
    """The version is one more than the first was made from, whether the loop joined them or not."""
    [block] = (await store.agents.get(agent_id)).blocks
    run = await begin(store, agent_id)
    first, second = edit(block, value="1", version=2), edit(msgspec.structs.replace(block, version=2), value="2")
    await store.runs.commit(step_of(run, edits=[first, second]))
    assert await values(store, agent_id) == {"human": ("2", 2)}


async def test_blocks_are_made_and_taken_off_by_edits(store: SqlStore, agent_id: str):
    """A new block may take over the label of one that goes in the same step; the detached one stays in the store."""
    [old] = (await store.agents.get(agent_id)).blocks
    run, new = await begin(store, agent_id), a_block("human", "Fresh.")
    made = BlockEdit(block=new, base_version=0)
    await store.runs.commit(step_of(run, edits=[made, edit(old, detach=True)]))
    assert await values(store, agent_id) == {"human": ("Fresh.", 1)}
    assert (await store.blocks.get(old.id)).label == "human"
    passing = a_block("passing")
    come, go = BlockEdit(block=passing, base_version=0), BlockEdit(block=passing, base_version=1, detach=True)
    await store.runs.commit(step_of(run, edits=[come, go]))
    assert await values(store, agent_id) == {"human": ("Fresh.", 1)}


async def test_an_edit_of_an_old_version_is_refused_with_the_whole_step(store: SqlStore, agent_id: str):
    """Nobody's words are overwritten unseen; the step is not stored either and can be tried again."""
    [block] = (await store.agents.get(agent_id)).blocks
    run = await begin(store, agent_id)
    await store.blocks.update(block.id, _setting(value="Said by another."))
    with pytest.raises(StaleBlock, match="human"):
        await store.runs.commit(step_of(run, said("lost?"), edits=[edit(block, value="x")], finished=ended(run)))
    assert await values(store, agent_id) == {"human": ("Said by another.", 2)}
    assert await history(store, agent_id) == ["You are."]
    assert (await store.runs.get(run.id)).status == "running"


async def test_edits_notice_blocks_attached_and_detached_meanwhile(store: SqlStore, agent_id: str):
    """A label that was taken, a block that was taken off, a block that is no more: look again."""
    [block] = (await store.agents.get(agent_id)).blocks
    run = await begin(store, agent_id)
    rival = BlockEdit(block=a_block("human"), base_version=0)
    with pytest.raises(StaleBlock, match="attached meanwhile"):
        await store.runs.commit(step_of(run, edits=[rival]))
    await store.agents.detach_block(agent_id, block.id)
    with pytest.raises(StaleBlock, match="detached meanwhile"):
        await store.runs.commit(step_of(run, edits=[edit(block, detach=True)]))
    await store.blocks.delete(block.id)
    with pytest.raises(StaleBlock, match="changed meanwhile"):
        await store.runs.commit(step_of(run, edits=[edit(block, value="x")]))


async def test_of_edits_from_one_version_exactly_one_is_saved(store: SqlStore):
    """Ten agents that share a block edit it at the same moment."""
    block = await store.blocks.create(a_block())
    runs = []
    for n in range(10):
        state = await make_agent(store, str(n), block_ids=[block.id])
        runs.append(await begin(store, state.agent.id))
    outcomes = await asyncio.gather(
        *(store.runs.commit(step_of(run, edits=[edit(block, value=run.id)])) for run in runs), return_exceptions=True
    )
    winners = [run.id for run, outcome in zip(runs, outcomes, strict=True) if not isinstance(outcome, Exception)]
    assert {type(outcome) for outcome in outcomes if isinstance(outcome, Exception)} == {StaleBlock}
    after = await store.blocks.get(block.id)
    assert (winners, after.version) == ([after.value], 2)


# --- how runs end ------------------------------------------------------------------------------------------------


async def test_a_run_ends_outside_a_step_with_the_step_that_failed(store: SqlStore, agent_id: str):
    """Once; a second end is refused and changes nothing."""
    run = await begin(store, agent_id)
    failed, step = ended(run, status="failed", stop_reason="llm_api_error"), a_step(run, status="failed")
    await store.runs.end(failed, step)
    assert (await store.runs.get(run.id), await store.runs.get_step(step.id)) == (failed, step)
    with pytest.raises(Fenced):
        await store.runs.end(ended(run), a_step(run))
    assert await store.runs.get(run.id) == failed
    assert len(await store.runs.find_steps(StepQuery(), NEWEST_FIRST)) == 1


async def test_a_run_that_waits_for_approval_can_still_be_cancelled(store: SqlStore, agent_id: str):
    """The one change that is allowed after the end (spec §9.1)."""
    waiting = await take_turn(store, agent_id, said("Hi"), stop_reason="requires_approval")
    cancelled = msgspec.structs.replace(waiting, status="cancelled", stop_reason="cancelled")
    with pytest.raises(Fenced):
        await store.runs.end(msgspec.structs.replace(waiting, status="failed"))
    await store.runs.end(cancelled)
    assert await store.runs.get(waiting.id) == cancelled
    finished = await take_turn(store, agent_id, said("Hi"), minutes=5)
    with pytest.raises(Fenced):
        await store.runs.end(msgspec.structs.replace(finished, status="cancelled"))


async def test_a_run_ends_with_its_last_frames_or_not_at_all(store: SqlStore, agent_id: str):
    """The end and the frames that tell of it are one transaction; what is refused leaves no frames."""
    run = await begin(store, agent_id, streamed=True)
    await store.runs.commit(step_of(run, said("Hi"), frames=Frames(1, 2, b"one;two;")))
    await store.runs.end(ended(run), frames=Frames(3, 1, b"end;"))
    logged = [Frames(1, 2, b"one;two;"), Frames(3, 1, b"end;")]
    assert await store.log.read(run.id, 0, 100) == logged
    with pytest.raises(Fenced):
        await store.runs.end(ended(run), frames=Frames(4, 1, b"again;"))
    for over in (None, ended(run)):
        with pytest.raises(Fenced):
            await store.runs.commit(step_of(run, said("late"), finished=over, frames=Frames(4, 1, b"late;")))
    assert await store.log.read(run.id, 0, 100) == logged
    assert await history(store, agent_id) == ["You are.", "Hi"]


async def test_a_streamed_turn_is_one_statement_more(store: SqlStore, agent_id: str):
    """Its frames; the transactions are the same."""
    run = a_run(agent_id, streamed=True)
    with store.db.tally() as tally:
        await store.runs.accept(run, b"{}")
        await store.runs.commit(step_of(run, said("Hi"), finished=ended(run), frames=Frames(1, 1, b"all")))
    assert (len(tally.statements), tally.transactions) == (5, 2)


async def test_a_step_whose_frames_contradict_the_log_is_refused_whole(store: SqlStore, agent_id: str):
    """The number of a frame never changes; but frames that are there already may come along again."""
    run = await begin(store, agent_id, streamed=True)
    await store.log.append([Batch(run.id, 1, Frames(1, 1, b"one;"))])
    with pytest.raises(Fenced, match="other frames"):
        await store.runs.commit(step_of(run, said("Hi"), frames=Frames(1, 1, b"uno;")))
    assert await history(store, agent_id) == ["You are."]
    await store.runs.commit(step_of(run, said("Hi"), frames=Frames(1, 2, b"one;two;")))
    assert await store.log.read(run.id, 0, 100) == [Frames(1, 2, b"one;two;")]


async def test_a_deleted_run_leaves_its_messages(store: SqlStore, agent_id: str):
    """Runs and steps are records of work, messages are the history."""
    run = await take_turn(store, agent_id, said("Hi"))
    await store.runs.delete(run.id)
    assert await history(store, agent_id) == ["You are.", "Hi"]
    assert await store.runs.find_steps(StepQuery(), NEWEST_FIRST) == []
    for attempt in (store.runs.get(run.id), store.runs.delete(run.id), store.runs.get_step("step-x")):
        with pytest.raises(NotFound):
            await attempt


async def test_runs_are_listed_by_each_filter_and_paged_both_ways(store: SqlStore, agent_id: str):
    """In the order in which they were accepted."""
    other = (await make_agent(store, "Bob")).agent.id
    one = await take_turn(store, agent_id, said("1"))
    two = await take_turn(store, agent_id, said("2"), stop_reason="max_steps")
    three = await begin(store, other, background=True)

    async def found(page: Page = NEWEST_FIRST, **query) -> list[Run]:
        return await store.runs.find(RunQuery(**query), page)

    assert await found() == [three, two, one]
    assert await found(OLDEST_FIRST) == [one, two, three]
    assert await found(Page(limit=1, after=three.id)) == [two]
    assert await found(Page(limit=1, before=one.id)) == [two]
    assert await found(Page(after=one.id)) == []
    assert await found(agent_ids=(agent_id, "agent-x")) == [two, one]
    assert await found(statuses=("created", "running")) == [three]
    assert await found(background=False) == [two, one]
    assert await found(stop_reason="max_steps") == [two]
    assert await found(conversation_id="default") == [three, two, one]
    assert await found(conversation_id="conv-x") == []
    with pytest.raises(NotFound):
        await found(Page(after="run-x"))


async def test_steps_are_listed_by_each_filter_and_changed(store: SqlStore, agent_id: str):
    """Feedback and tags can be set later and searched for."""
    run = await begin(store, agent_id)
    steps = [a_step(run, minutes=n, model=f"m{n}") for n in range(3)]
    for step in steps:
        await store.runs.commit(step_of(run, step=step))
    liked = await store.runs.update_step(steps[0].id, _setting(feedback="positive", tags=("good", "short")))
    await store.runs.update_step(steps[1].id, lambda step: step)

    async def found(page: Page = OLDEST_FIRST, **query) -> list[str | None]:
        return [step.model for step in await store.runs.find_steps(StepQuery(**query), page)]

    assert await store.runs.get_step(steps[0].id) == liked
    assert await found() == ["m0", "m1", "m2"]
    assert await found(Page(limit=2, after=steps[2].id)) == ["m1", "m0"]
    assert await found(agent_id=agent_id, run_id=run.id, model="m1") == ["m1"]
    assert await found(agent_id="agent-x") == []
    assert await found(start=at(1), end=at(1)) == ["m1"]
    assert await found(feedback="positive") == ["m0"]
    assert await found(has_feedback=False) == ["m1", "m2"]
    assert await found(has_feedback=True) == ["m0"]
    assert await found(tags=("good", "x")) == ["m0"]
    assert await found(trace_ids=("trace",)) == []
    assert await found(project_id="p") == []
    with pytest.raises(NotFound, match="step-x"):
        await store.runs.update_step("step-x", lambda step: step)
