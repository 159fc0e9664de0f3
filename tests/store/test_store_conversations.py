"""Conversations on both databases: records, contexts of their own, isolated blocks, forks."""

import asyncio
import time

import msgspec
import pytest
from making import a_block, a_run, a_step, at, ended, make_agent, said

from perdure.domain.conversations import Conversation, ConversationQuery, ConversationState
from perdure.domain.errors import Busy, Invalid, NotFound, StaleBlock
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text
from perdure.domain.ports import BlockEdit, BlockQuery, MessageQuery, Page, StepCommit
from perdure.domain.records import Block, Context, Run
from perdure.store import SqlStore

pytestmark = pytest.mark.anyio


def system_text(context: Context) -> str:
    """What a system message says in these tests: all that it was compiled from."""
    memory = ",".join(f"{block.label}={block.value}" for block in context.blocks)
    return f"{context.agent.model} {memory} hidden={context.hidden_count}"


def a_conversation(agent_id: str, *, minutes: float = 0, **fields) -> Conversation:
    return Conversation(
        id=new_id("conv"), agent_id=agent_id, created_at=at(minutes), updated_at=at(minutes), **fields
    )  # fmt: skip


async def talk(store: SqlStore, agent_id: str, *, minutes: float = 0, isolated=(), **fields) -> ConversationState:
    made = a_conversation(agent_id, minutes=minutes, **fields)
    return await store.conversations.create(made, system_text, isolated=isolated)


async def fork(store: SqlStore, agent_id: str, source: str, *, minutes: float = 5, until=None, **fields) -> str:
    made = a_conversation(agent_id, minutes=minutes, **fields)
    return (await store.conversations.fork(made, source, system_text, until=until)).conversation.id


async def turn(store: SqlStore, agent_id: str, context_id: str, *messages: Message, **more) -> Run:
    """A whole turn of one step in a context."""
    other = None if context_id == agent_id else context_id
    run = a_run(agent_id, context_id=context_id, conversation_id=other)
    await store.runs.accept(run, b"{}")
    stamped = [
        msgspec.structs.replace(m, agent_id=agent_id, run_id=run.id, conversation_id=other) for m in messages
    ]  # fmt: skip
    await store.runs.commit(StepCommit(run=run, messages=stamped, step=a_step(run), finished=ended(run), **more))
    return run


async def words(store: SqlStore, context_id: str) -> list[str]:
    """The texts in a context but for its system message."""
    return [message.content[0].text for message in (await store.contexts.load(context_id)).messages[1:]]


async def listed(store: SqlStore, conversation_id: str, page: Page = Page(ascending=True)) -> list[str]:  # noqa: B008
    found = await store.messages.find(MessageQuery(conversation_id=conversation_id), page)
    return [stored.message.content[0].text for stored in found if stored.message.role != "system"]


async def ids(store: SqlStore, page: Page = Page(), sort_by: str = "created_at", **query) -> list[str]:  # noqa: B008
    found = await store.conversations.find(ConversationQuery(**query), page, sort_by)
    return [state.conversation.id for state in found]


@pytest.fixture
async def agent_id(store: SqlStore) -> str:
    """An agent with one block and two messages said."""
    made = (await make_agent(store, blocks=[a_block("human", "Bo"), a_block("persona", "Ada")])).agent.id
    await turn(store, made, made, said("Hi"), said("Hello", role="assistant"))
    return made


async def test_a_conversation_has_a_context_of_its_own(store: SqlStore, agent_id: str):
    """Its system message is compiled when it is made, and what is said in it is in no other context."""
    one = (await talk(store, agent_id)).conversation.id
    two = (await talk(store, agent_id)).conversation.id
    await turn(store, agent_id, one, said("in one"))
    await turn(store, agent_id, two, said("in two"))
    assert [await words(store, c) for c in (agent_id, one, two)] == [["Hi", "Hello"], ["in one"], ["in two"]]
    context = await store.contexts.load(one)
    assert context.messages[0].content[0].text == "demo/script human=Bo,persona=Ada hidden=2"
    assert (context.conversation_id, context.hidden_count, context.agent.id) == (one, 2, agent_id)
    assert (context.agent_version, context.compiled_version, context.compiled_at) == (1, 1, at(0))
    state = await store.conversations.get(one)
    assert state.message_ids == tuple(message.id for message in context.messages)
    assert await listed(store, one) == ["in one"]
    everything = await store.messages.find(MessageQuery(agent_id=agent_id), Page(ascending=True))
    assert [s.message.role for s in everything] == [
        "system", "user", "assistant", "system", "system", "user", "user"
    ]  # fmt: skip
    assert await listed(store, "default") == ["Hi", "Hello"]


async def test_two_conversations_run_side_by_side_and_one_does_not(store: SqlStore, agent_id: str):
    """The lease is the context's."""
    one, two = [(await talk(store, agent_id)).conversation.id for _ in range(2)]
    run = a_run(agent_id, context_id=one, conversation_id=one)
    await store.runs.accept(run, b"{}")
    await store.runs.accept(a_run(agent_id, context_id=two, conversation_id=two), b"{}")
    await store.runs.accept(a_run(agent_id), b"{}")
    with pytest.raises(Busy, match=run.id):
        await store.runs.accept(a_run(agent_id, context_id=one, conversation_id=one), b"{}")


async def test_an_unknown_agent_or_label_makes_nothing(store: SqlStore, agent_id: str):
    """The refusal names the labels there are."""
    with pytest.raises(NotFound, match="Agent not found"):
        await talk(store, new_id("agent"))
    with pytest.raises(Invalid, match=r"'dog' to isolate. Its labels: human, persona"):
        await talk(store, agent_id, isolated=["human", "dog"])
    assert await ids(store) == []
    assert len(await store.blocks.find(BlockQuery(), Page())) == 2


async def test_conversations_are_listed_filtered_and_paged(store: SqlStore, agent_id: str):
    """Newest first; the cursor may be one that was deleted meanwhile, but not one that never was."""
    other = (await make_agent(store, "Bob")).agent.id
    a = (await talk(store, agent_id, minutes=1, summary="About Dogs")).conversation.id
    b = (await talk(store, agent_id, minutes=2, archived_at=at(3), summary=None)).conversation.id
    c = (await talk(store, agent_id, minutes=3, hidden=True, summary="about cats 100%")).conversation.id
    d = (await talk(store, other, minutes=4)).conversation.id
    assert await ids(store) == [d, c, b, a]
    assert await ids(store, Page(ascending=True), agent_id=agent_id) == [a, b, c]
    assert await ids(store, archived=False, hidden=False, agent_id=agent_id) == [a]
    assert await ids(store, archived=True) == [b]
    assert await ids(store, hidden=True) == [c]
    assert await ids(store, summary_search="ABOUT") == [c, a]
    assert await ids(store, summary_search="0%") == [c]
    assert await ids(store, summary_search="_") == []
    assert await ids(store, agent_id=new_id("agent")) == []
    assert await ids(store, Page(limit=2)) == [d, c]
    await store.conversations.delete(c, at(5))
    assert await ids(store, Page(limit=2, after=c)) == [b, a]
    with pytest.raises(NotFound, match="cursor"):
        await ids(store, Page(after=new_id("conv")))


async def test_conversations_are_sorted_by_what_happened_in_them(store: SqlStore, agent_id: str):
    """By the last message or the last run; those where nothing happened are the oldest."""
    quiet, early, late = [(await talk(store, agent_id, minutes=n)).conversation.id for n in range(3)]
    assert await store.conversations.touch(late, at(10)) == agent_id
    await store.conversations.touch(early, at(20))
    await turn(store, agent_id, late, said("x"))
    assert await ids(store, sort_by="last_message_at") == [early, late, quiet]
    assert await ids(store, Page(limit=1, after=early), sort_by="last_message_at") == [late]
    assert await ids(store, sort_by="last_run_completion") == [late, early, quiet]
    with pytest.raises(Invalid, match="last_run_completion"):
        await ids(store, sort_by="mood")
    assert (await store.conversations.get(early)).conversation.last_message_at == at(20)


async def test_a_change_is_kept_and_touches_nothing_else(store: SqlStore, agent_id: str):
    """A moment of the last message survives a change of something else, and the other way round."""
    talked = (await talk(store, agent_id)).conversation.id
    await store.conversations.touch(talked, at(7))

    def renamed(conversation: Conversation) -> Conversation:
        return msgspec.structs.replace(conversation, summary="s" * 100_000, updated_at=at(8))

    after = (await store.conversations.update(talked, renamed)).conversation
    assert (after.summary, after.last_message_at, after.updated_at) == ("s" * 100_000, at(7), at(8))
    assert (await store.contexts.load(talked)).agent_version == 1
    same = await store.conversations.update(talked, lambda conversation: conversation)
    assert same.conversation == after


async def test_its_model_goes_before_the_agents_within_the_agents_window(store: SqlStore, agent_id: str):
    """A changed model is noticed by those who keep the context in memory, and has the prompt compiled anew."""
    small = {"model": "tiny", "context_window": 4000}
    talked = (await talk(store, agent_id, model="demo/tiny", llm=small, settings={"temperature": 0.0})).conversation.id
    agent = (await store.contexts.load(talked)).agent
    assert (agent.model, agent.llm, agent.model_settings) == ("demo/tiny", small, {"temperature": 0.0})

    def larger(conversation: Conversation) -> Conversation:
        return msgspec.structs.replace(conversation, llm={"model": "large", "context_window": 90_000})

    await store.conversations.update(talked, larger)
    context = await store.contexts.load(talked)
    assert context.agent.llm == {"model": "large", "context_window": 8000}
    assert context.agent_version != context.compiled_version

    def wider(conversation: Conversation) -> Conversation:
        return msgspec.structs.replace(conversation, context_window_limit=50_000)

    await store.conversations.update(talked, wider)
    assert (await store.contexts.load(talked)).agent.llm["context_window"] == 50_000
    untouched = await store.contexts.load(agent_id)
    assert (untouched.agent.model, untouched.agent.llm) == ("demo/script", {"context_window": 8000})


async def test_settings_alone_go_with_whatever_model_the_agent_has(store: SqlStore, agent_id: str):
    """The agent may change its model later; the conversation follows it."""
    talked = (
        await talk(store, agent_id, llm={"temperature": 0.1}, settings={"temperature": 0.1}, context_window_limit=900)
    ).conversation.id

    def other_model(agent):
        return msgspec.structs.replace(
            agent, model="demo/new", llm={"model": "new", "temperature": 1.0, "context_window": 7},
            model_settings={"provider_type": "openai", "temperature": 1.0},
        )  # fmt: skip

    await store.agents.update(agent_id, other_model)
    agent = (await store.contexts.load(talked)).agent
    assert agent.model == "demo/new"
    assert agent.llm == {"model": "new", "temperature": 0.1, "context_window": 900}
    assert agent.model_settings == {"provider_type": "openai", "temperature": 0.1}


async def test_a_deleted_conversation_is_gone_and_what_was_said_stays(store: SqlStore, agent_id: str):
    """Nothing finds it any more, nobody can send to it, and its isolated blocks are gone with it."""
    talked = (await talk(store, agent_id, isolated=["human"])).conversation.id
    await turn(store, agent_id, talked, said("remember this"))
    await store.conversations.delete(talked, at(9))
    for gone in (
        store.conversations.get(talked), store.conversations.agent_of(talked), store.conversations.touch(talked, at(9)),
        store.conversations.delete(talked, at(9)), store.conversations.update(talked, lambda c: c),
        store.contexts.load(talked), store.contexts.blocks(talked),
    ):  # fmt: skip
        with pytest.raises(NotFound, match=f"Conversation not found: {talked}"):
            await gone
    with pytest.raises(NotFound):
        await store.runs.accept(a_run(agent_id, context_id=talked, conversation_id=talked), b"{}")
    with pytest.raises(NotFound):
        await fork(store, agent_id, talked)
    assert await ids(store) == []
    assert len(await store.blocks.find(BlockQuery(), Page())) == 2
    history = await store.messages.find(MessageQuery(agent_id=agent_id), Page())
    assert history[0].message.content[0].text == "remember this"


async def test_it_is_not_deleted_under_a_run_that_works_on_it_or_waits(store: SqlStore, agent_id: str):
    """The refusal names the run."""
    talked = (await talk(store, agent_id)).conversation.id
    where = {"context_id": talked, "conversation_id": talked}
    working, waiting = a_run(agent_id, **where), a_run(agent_id, **where, status="created")
    await store.runs.accept(working, b"{}")
    await store.runs.enqueue(waiting, b"{}", b"{}", limit=5)
    with pytest.raises(Busy, match=working.id):
        await store.conversations.delete(talked, at(1))
    await store.runs.end(ended(working))
    with pytest.raises(Busy, match=waiting.id):
        await store.conversations.delete(talked, at(1))
    await store.runs.end(ended(waiting, status="cancelled"))
    await store.conversations.delete(talked, at(1))


async def test_an_agent_takes_its_conversations_along(store: SqlStore, agent_id: str):
    """Their isolated blocks too; shared ones stay, and so does a copy that somebody attached elsewhere."""
    talked = await talk(store, agent_id, isolated=["human", "persona"])
    copy, kept = talked.isolated_block_ids
    other = (await make_agent(store, "Bob")).agent.id
    await store.agents.attach_block(other, kept)
    forked = await fork(store, agent_id, talked.conversation.id)
    await store.agents.delete(agent_id)
    for conversation_id in (talked.conversation.id, forked):
        with pytest.raises(NotFound, match="Conversation not found"):
            await store.conversations.get(conversation_id)
    left = {block.id for block in await store.blocks.find(BlockQuery(), Page())}
    assert kept in left
    assert copy not in left
    assert len(left) == 3


# --- isolated blocks ---------------------------------------------------------------------------------------------


def edit(block: Block, value: str, **fields) -> BlockEdit:
    return BlockEdit(block=msgspec.structs.replace(block, value=value), base_version=block.version, **fields)


async def memory(store: SqlStore, context_id: str) -> dict[str, str]:
    return {block.label: block.value for block in await store.contexts.blocks(context_id)}


async def block_in(store: SqlStore, context_id: str, label: str) -> Block:
    return next(block for block in await store.contexts.blocks(context_id) if block.label == label)


async def test_an_isolated_block_is_edited_in_its_conversation_only(store: SqlStore, agent_id: str):
    """And the shared ones for all."""
    talked = (await talk(store, agent_id, isolated=["human"])).conversation.id
    changes = [
        edit(await block_in(store, talked, "human"), "Cy"), edit(await block_in(store, talked, "persona"), "Eve")
    ]  # fmt: skip
    await turn(store, agent_id, talked, said("x"), edits=changes)
    assert await memory(store, talked) == {"human": "Cy", "persona": "Eve"}
    assert await memory(store, agent_id) == {"human": "Bo", "persona": "Eve"}
    assert (await store.contexts.load(talked)).blocks == await store.contexts.blocks(talked)
    context = await store.contexts.load(talked)
    assert context.agent_version != context.compiled_version
    with pytest.raises(StaleBlock):
        await turn(store, agent_id, talked, said("x"), edits=changes[:1])


async def test_an_isolated_block_that_is_removed_does_not_show_the_shared_one(store: SqlStore, agent_id: str):
    """A new block with its label is the conversation's own again."""
    talked = (await talk(store, agent_id, isolated=["human"])).conversation.id
    copy = await block_in(store, talked, "human")
    await turn(store, agent_id, talked, said("x"), edits=[edit(copy, "", detach=True)])
    assert await memory(store, talked) == {"persona": "Ada"}
    assert await memory(store, agent_id) == {"human": "Bo", "persona": "Ada"}
    with pytest.raises(NotFound):
        await store.blocks.get(copy.id)
    new = BlockEdit(block=a_block("human", "Dan"), base_version=0)
    shared = BlockEdit(block=a_block("notes", "n"), base_version=0)
    await turn(store, agent_id, talked, said("x"), edits=[new, shared])
    assert await memory(store, talked) == {"human": "Dan", "persona": "Ada", "notes": "n"}
    assert await memory(store, agent_id) == {"human": "Bo", "persona": "Ada", "notes": "n"}


async def test_an_isolated_block_is_a_block_like_any_other(store: SqlStore, agent_id: str):
    """It can be read and changed by its id, and the change reaches the conversation."""
    state = await talk(store, agent_id, isolated=["human"])
    [block_id] = state.isolated_block_ids
    talked = state.conversation.id
    before = (await store.contexts.load(talked)).agent_version
    await store.blocks.update(block_id, lambda block: msgspec.structs.replace(block, value="Zed"))
    context = await store.contexts.load(talked)
    assert {block.label: block.value for block in context.blocks} == {"human": "Zed", "persona": "Ada"}
    assert context.agent_version > before
    await store.blocks.delete(block_id)
    assert await memory(store, talked) == {"persona": "Ada"}
    assert (await store.conversations.get(talked)).isolated_block_ids == ()


async def test_a_renamed_copy_goes_before_a_shared_block_of_its_new_name(store: SqlStore, agent_id: str):
    """No context has two blocks of one label."""
    state = await talk(store, agent_id, isolated=["human"])

    def renamed(block: Block) -> Block:
        return msgspec.structs.replace(block, label="persona")

    await store.blocks.update(state.isolated_block_ids[0], renamed)
    assert await memory(store, state.conversation.id) == {"persona": "Bo"}


# --- forks -------------------------------------------------------------------------------------------------------


async def test_a_fork_goes_on_from_the_same_messages(store: SqlStore, agent_id: str):
    """They are shared, not copied; what is said afterwards is in one of them only."""
    talked = (await talk(store, agent_id)).conversation.id
    await turn(store, agent_id, talked, said("one"), said("two", role="assistant"))
    before = len(await store.messages.find(MessageQuery(agent_id=agent_id), Page()))
    forked = await fork(store, agent_id, talked)
    assert len(await store.messages.find(MessageQuery(agent_id=agent_id), Page())) == before + 1
    source, copy = await store.conversations.get(talked), await store.conversations.get(forked)
    assert copy.message_ids[1:] == source.message_ids[1:]
    assert copy.message_ids[0] != source.message_ids[0]
    await turn(store, agent_id, forked, said("here"))
    await turn(store, agent_id, talked, said("there"))
    assert await words(store, forked) == ["one", "two", "here"]
    assert await words(store, talked) == ["one", "two", "there"]
    context = await store.contexts.load(forked)
    assert context.messages[0].content[0].text == "demo/script human=Bo,persona=Ada hidden=2"
    assert context.messages[0].conversation_id == forked


async def test_a_forks_list_has_its_own_and_the_shared_messages(store: SqlStore, agent_id: str):
    """In the order they were said, with its cursors; messages of other conversations are no cursor there."""
    talked = (await talk(store, agent_id)).conversation.id
    await turn(store, agent_id, talked, said("one"), said("two"))
    forked = await fork(store, agent_id, talked)
    await turn(store, agent_id, talked, said("not here"))
    await turn(store, agent_id, forked, said("three"))
    assert await listed(store, forked) == ["one", "two", "three"]
    assert await listed(store, forked, Page(limit=1)) == ["three"]
    _, first, second, third = (await store.conversations.get(forked)).message_ids
    assert await listed(store, forked, Page(after=first, ascending=True)) == ["two", "three"]
    assert await listed(store, forked, Page(before=third)) == ["two", "one"]
    assert await listed(store, forked, Page(before=second)) == ["one"]
    foreign = (await store.conversations.get(talked)).message_ids[-1]
    for conversation_id, cursor in ((forked, foreign), (talked, third), ("default", third)):
        with pytest.raises(NotFound, match="must be the id of a message of this list"):
            await listed(store, conversation_id, Page(after=cursor))


async def test_a_fork_may_stop_at_a_message(store: SqlStore, agent_id: str):
    """That message is the last one shared. One that is not in the context is not found, and nothing is made."""
    talked = (await talk(store, agent_id)).conversation.id
    await turn(store, agent_id, talked, said("one"), said("two"), said("three"))
    system, _, two, _ = (await store.conversations.get(talked)).message_ids
    assert await words(store, await fork(store, agent_id, talked, until=two)) == ["one", "two"]
    assert await words(store, await fork(store, agent_id, talked, until=system)) == []
    many = len(await ids(store))
    foreign = (await store.agents.get(agent_id)).message_ids[1]
    for unknown in (new_id("message"), foreign):
        with pytest.raises(NotFound, match="Message not found"):
            await fork(store, agent_id, talked, until=unknown)
    assert len(await ids(store)) == many


async def test_forks_of_forks_and_of_the_agents_own_conversation(store: SqlStore, agent_id: str):
    """Each has what its source had, however often it was handed on."""
    first = await fork(store, agent_id, agent_id)
    await turn(store, agent_id, first, said("A"))
    second = await fork(store, agent_id, first, minutes=6)
    await turn(store, agent_id, second, said("B"))
    third = await fork(store, agent_id, second, minutes=7)
    assert await words(store, third) == ["Hi", "Hello", "A", "B"]
    assert await listed(store, third) == ["Hi", "Hello", "A", "B"]
    assert await words(store, first) == ["Hi", "Hello", "A"]
    assert await words(store, agent_id) == ["Hi", "Hello"]
    roles = [s.message.role for s in await store.messages.find(MessageQuery(conversation_id=third), Page())]
    assert roles.count("system") == 1


async def start_over(store: SqlStore, context_id: str, *messages: Message) -> None:
    context = await store.contexts.load(context_id)
    system = msgspec.structs.replace(context.messages[0], content=(Text("anew"),))
    await store.contexts.reset(
        context_id, system, messages, compiled_version=1, compiled_at=at(0), hidden_count=0
    )  # fmt: skip


async def test_source_and_fork_start_over_without_each_other(store: SqlStore, agent_id: str):
    """What left a fork's context stays in its list, and is handed on to no further fork."""
    talked = (await talk(store, agent_id)).conversation.id
    await turn(store, agent_id, talked, said("one"), said("two"))
    forked, other = await fork(store, agent_id, talked), await fork(store, agent_id, talked)
    await start_over(store, talked)
    assert await words(store, forked) == ["one", "two"]
    await start_over(store, forked, said("three"))
    assert await words(store, forked) == ["three"]
    assert await words(store, other) == ["one", "two"]
    assert await listed(store, forked) == ["one", "two", "three"]
    assert await words(store, await fork(store, agent_id, forked)) == ["three"]
    await store.conversations.delete(talked, at(9))
    assert await words(store, other) == ["one", "two"]
    assert await listed(store, other) == ["one", "two"]


async def test_a_fork_is_compacted_without_its_source(store: SqlStore, agent_id: str):
    """The summary stands before what is kept, shared or own, and names what it stands for."""
    talked = (await talk(store, agent_id)).conversation.id
    await turn(store, agent_id, talked, said("one"), said("two"), said("three"))
    forked = await fork(store, agent_id, talked)
    await turn(store, agent_id, forked, said("four"))
    system, one, two, three, _ = (await store.conversations.get(forked)).message_ids
    summary = said("so far", role="summary")
    await turn(store, agent_id, forked, summary=summary, kept_from=three)
    assert await words(store, forked) == ["so far", "three", "four"]
    assert (await store.conversations.get(forked)).message_ids[:3] == (system, summary.id, three)
    assert (await store.messages.get(summary.id)).message.stands_for == (one, two)
    assert await words(store, talked) == ["one", "two", "three"]
    await turn(store, agent_id, forked, summary=said("all of it", role="summary"))
    assert await words(store, forked) == ["all of it"]
    assert await listed(store, forked) == ["one", "two", "three", "four", "so far", "all of it"]


async def test_a_fork_has_copies_of_isolated_blocks(store: SqlStore, agent_id: str):
    """As they are by now; each conversation edits its own."""
    talked = (await talk(store, agent_id, isolated=["human"])).conversation.id
    await turn(store, agent_id, talked, said("x"), edits=[edit(await block_in(store, talked, "human"), "Cy")])
    source = (await store.conversations.get(talked)).conversation
    forked = await fork(store, agent_id, talked, isolated_labels=source.isolated_labels)
    await turn(store, agent_id, forked, said("x"), edits=[edit(await block_in(store, forked, "human"), "Di")])
    values = [(await memory(store, c))["human"] for c in (agent_id, talked, forked)]
    assert values == ["Bo", "Cy", "Di"]


async def test_a_fork_of_ten_thousand_messages_takes_well_under_a_second(store: SqlStore, agent_id: str):
    """So do its context and a page of its list."""
    talked = (await talk(store, agent_id)).conversation.id
    await turn(store, agent_id, talked, *(said(f"Message {n} of the usual length.") for n in range(10_000)))
    begin = time.perf_counter()
    forked = await fork(store, agent_id, talked)
    assert len((await store.contexts.load(forked)).messages) == 10_001
    assert len(await listed(store, forked, Page(limit=100))) == 99
    assert time.perf_counter() - begin < 1.5


async def test_all_at_once(store: SqlStore, agent_id: str):
    """Whatever comes together, each call is done or refused in words, also when the agent goes in the middle of it."""
    talked = (await talk(store, agent_id, isolated=["human"])).conversation.id
    await turn(store, agent_id, talked, said("one"))
    doomed = [(await talk(store, agent_id, isolated=["persona"])).conversation.id for _ in range(4)]

    def other_window(conversation: Conversation) -> Conversation:
        return msgspec.structs.replace(conversation, context_window_limit=(conversation.context_window_limit or 0) + 1)

    def all_of_it():
        for number in range(4):
            yield talk(store, agent_id, isolated=["human"])
            yield fork(store, agent_id, talked)
            yield store.conversations.update(talked, other_window)
            yield store.conversations.touch(talked, at(number))
            yield store.conversations.delete(doomed[number], at(number))
            yield store.contexts.recompile(talked, system_text, at(number))

    done = await asyncio.gather(*all_of_it(), return_exceptions=True)
    assert [outcome for outcome in done if isinstance(outcome, Exception)] == []
    assert (await store.conversations.get(talked)).conversation.context_window_limit == 4
    assert len(await ids(store, agent_id=agent_id)) == 9
    *refused, deleted = await asyncio.gather(*all_of_it(), store.agents.delete(agent_id), return_exceptions=True)
    assert {type(outcome) for outcome in refused if isinstance(outcome, Exception)} <= {NotFound}
    assert deleted is None
    assert await ids(store, agent_id=agent_id) == []
    assert await store.blocks.find(BlockQuery(label="persona"), Page()) != []
    assert len(await store.blocks.find(BlockQuery(), Page())) == 2


# --- recompiling, tenants ----------------------------------------------------------------------------------------


async def test_recompiling_writes_the_system_message_anew(store: SqlStore, agent_id: str):
    """With the present blocks, count and time; a dry run only tells what it would be."""
    talked = (await talk(store, agent_id)).conversation.id
    await turn(store, agent_id, talked, said("x"))
    await store.agents.update(agent_id, lambda agent: msgspec.structs.replace(agent, model="demo/new"))
    wanted = "demo/new human=Bo,persona=Ada hidden=2"
    assert await store.contexts.recompile(talked, system_text, at(5), dry_run=True) == wanted
    before = await store.contexts.load(talked)
    assert before.messages[0].content[0].text == "demo/script human=Bo,persona=Ada hidden=2"
    assert await store.contexts.recompile(talked, system_text, at(5)) == wanted
    after = await store.contexts.load(talked)
    assert after.messages[0].content[0].text == wanted
    assert [m.id for m in after.messages] == [m.id for m in before.messages]
    assert (after.compiled_version, after.compiled_at) == (after.agent_version, at(5))
    assert after.revision > before.revision
    assert await store.contexts.recompile(agent_id, system_text, at(6)) == wanted.replace("=2", "=1")


async def test_recompiling_waits_for_nobody_and_needs_a_system_message(store: SqlStore, agent_id: str):
    """While a run holds the context it is refused, but for a dry run."""
    await store.runs.accept(a_run(agent_id), b"{}")
    with pytest.raises(Busy):
        await store.contexts.recompile(agent_id, system_text, at(5))
    assert await store.contexts.recompile(agent_id, system_text, at(5), dry_run=True)
    bare = (await make_agent(store, messages=[])).agent.id
    with pytest.raises(Invalid, match="no system message"):
        await store.contexts.recompile(bare, system_text, at(5))
    with pytest.raises(NotFound, match="Agent not found"):
        await store.contexts.recompile(new_id("agent"), system_text, at(5), dry_run=True)


async def test_tenants_do_not_see_each_others_conversations(store: SqlStore, agent_id: str):
    """Not by id, not in lists, not as the source of a fork or of a message."""
    talked = (await talk(store, agent_id, isolated=["human"])).conversation.id
    await turn(store, agent_id, talked, said("secret"))
    forked = await fork(store, agent_id, talked)
    stranger = store.scoped("org-other")
    theirs = (await make_agent(stranger, "Eve")).agent.id
    assert await ids(stranger) == []
    assert await listed(stranger, talked) == []
    assert await listed(stranger, forked) == []
    for attempt in (
        stranger.conversations.get(talked), stranger.conversations.touch(talked, at(1)),
        stranger.conversations.delete(talked, at(1)), stranger.contexts.load(talked),
        fork(stranger, theirs, talked), fork(stranger, theirs, agent_id), talk(stranger, agent_id),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            await attempt
    assert await ids(stranger) == []
    assert await words(store, talked) == ["secret"]
