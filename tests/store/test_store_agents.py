"""Agents with their relations, on both databases."""

import msgspec
import pytest
from making import a_block, a_run, a_tool, an_agent, at, make_agent, said, take_turn

from perdure.domain.errors import Busy, Conflict, Invalid, NotFound
from perdure.domain.ports import AgentQuery, BlockQuery, MessageQuery, Page, RunQuery, StepQuery
from perdure.domain.records import Agent
from perdure.store import SqlStore

pytestmark = pytest.mark.anyio
NEWEST_FIRST, OLDEST_FIRST = Page(), Page(ascending=True)


def same(agent: Agent) -> Agent:
    return agent


def renamed(name: str):
    return lambda agent: msgspec.structs.replace(agent, name=name)


async def version_of(store: SqlStore, agent_id: str) -> int:
    return (await store.contexts.load(agent_id)).agent_version


async def names(store: SqlStore, page: Page = NEWEST_FIRST, sort_by: str = "created_at", **query) -> list[str]:
    return [state.agent.name for state in await store.agents.find(AgentQuery(**query), page, sort_by)]


async def test_an_agent_is_read_back_with_everything_it_was_created_with(store: SqlStore):
    """Fields, own blocks first and attached ones after them, tools in order, and its system message."""
    shared, tools = await store.blocks.create(a_block("persona")), [await store.tools.save(a_tool(n)) for n in "ba"]
    agent = an_agent(tags=("x", "y"), metadata={"k": [1, None]})
    own, system = a_block("human"), said("S", role="system")
    made = await store.agents.create(
        agent, blocks=[own], block_ids=[shared.id, shared.id], tool_ids=[t.id for t in tools], messages=[system]
    )
    assert made == await store.agents.get(agent.id)
    assert (made.agent, made.blocks, made.tools) == (agent, (own, shared), tuple(tools))
    assert (made.message_ids, made.last_stop_reason, made.last_run_completion) == ((system.id,), None, None)
    assert await store.agents.count() == 1


async def test_unknown_block_ids_are_ignored_and_unknown_tools_refused(store: SqlStore):
    """Spec §7.1: blocks that do not exist are left out; a tool that does not exist is an error that names it."""
    made = await make_agent(store, block_ids=["block-nowhere"])
    assert made.blocks == ()
    with pytest.raises(Invalid, match="tool-nowhere"):
        await make_agent(store, "Bob", tool_ids=["tool-nowhere"])
    assert await names(store) == ["Ada"]


async def test_two_blocks_of_one_label_are_refused_by_both_names(store: SqlStore):
    """Labels are unique per agent; nothing of the refused agent stays, its own blocks neither."""
    shared, own = await store.blocks.create(a_block("human")), a_block("human")
    with pytest.raises(Invalid, match="human") as refused:
        await make_agent(store, blocks=[own], block_ids=[shared.id])
    assert own.id in str(refused.value)
    assert shared.id in str(refused.value)
    assert await store.agents.count() == 0
    assert await store.blocks.find(BlockQuery(), NEWEST_FIRST) == [shared]


async def test_an_unknown_agent_is_not_found_by_any_method(store: SqlStore):
    """Always the same fixed words (api-surface §5.3)."""
    agents, nobody = store.agents, an_agent().id
    for attempt in (
        agents.get(nobody), agents.update(nobody, same), agents.delete(nobody), agents.attach_block(nobody, "b"),
        agents.detach_block(nobody, "b"), agents.attach_tool(nobody, "t", lambda a, t: a),
        agents.detach_tool(nobody, "t"), store.contexts.load(nobody),
    ):  # fmt: skip
        with pytest.raises(NotFound, match=r"^Agent not found$"):
            await attempt


async def test_lists_page_both_ways_in_both_orders(store: SqlStore):
    """`after` is later in the requested order; `before` gives the neighbours before; the end is an empty list."""
    ids = {n: (await make_agent(store, n, minutes=i)).agent.id for i, n in enumerate("abcde")}
    assert await names(store) == ["e", "d", "c", "b", "a"]
    assert await names(store, Page(limit=2, after=ids["d"])) == ["c", "b"]
    assert await names(store, Page(limit=2, before=ids["b"])) == ["d", "c"]
    assert await names(store, Page(limit=2, after=ids["b"], ascending=True)) == ["c", "d"]
    assert await names(store, Page(limit=2, before=ids["e"], ascending=True)) == ["c", "d"]
    assert await names(store, Page(after=ids["e"], before=ids["b"])) == ["d", "c"]
    assert await names(store, Page(after=ids["a"])) == []
    assert await names(store, Page(limit=0)) == []


async def test_agents_made_in_the_same_moment_are_paged_without_loss(store: SqlStore):
    """Ties of the sorting key are broken by id, so no row is skipped or repeated."""
    made = {(await make_agent(store, str(n))).agent.id for n in range(7)}
    seen, page = [], Page(limit=2)
    while found := await store.agents.find(AgentQuery(), page):
        seen += [state.agent.id for state in found]
        page = Page(limit=2, after=seen[-1])
    assert len(seen) == 7
    assert set(seen) == made


async def test_an_unknown_cursor_is_an_error_not_page_one(store: SqlStore):
    """Page one would send the SDK's pager in circles."""
    await make_agent(store)
    with pytest.raises(NotFound):
        await names(store, Page(after="agent-nowhere"))
    with pytest.raises(NotFound):
        await names(store, Page(before="\0"))


async def test_agents_are_found_by_each_filter(store: SqlStore):
    """Every field of the query restricts; searching in names ignores case and takes wildcards literally."""
    block = await store.blocks.create(a_block())
    await make_agent(
        store, "Ädel 100%", tags=("red", "blue"), identity_ids=("identity-1",), block_ids=[block.id],
        extra={"project_id": "p", "template_id": "t", "base_template_id": "bt", "created_by_id": "u"},
    )  # fmt: skip
    await make_agent(store, "Bob", tags=("red",), minutes=1)
    found = ["Ädel 100%"]
    assert await names(store, name="Ädel 100%") == found
    assert await names(store, query_text="ädel") == found
    assert await names(store, query_text="0%") == found
    assert await names(store, query_text="_") == []
    assert await names(store, tags=("blue", "green")) == found
    assert await names(store, tags=("red", "blue"), match_all_tags=True) == found
    assert await names(store, tags=("red",)) == ["Bob", "Ädel 100%"]
    assert await names(store, identity_id="identity-1") == found
    assert await names(store, block_id=block.id) == found
    assert await names(store, project_id="p", template_id="t", base_template_id="bt", created_by_id="u") == found
    assert await names(store, project_id="q") == []


async def test_the_last_run_is_seen_in_the_agent_and_sorts_and_filters(store: SqlStore):
    """Taken from the run that ended last; an agent that never ran comes last in descending order."""
    a, b, _ = [(await make_agent(store, n)).agent.id for n in "abc"]
    await take_turn(store, b, said("Hi"), minutes=2)
    await take_turn(store, a, said("Hi"), minutes=5, stop_reason="max_steps")
    await take_turn(store, b, said("Hi"), minutes=8)
    await store.runs.accept(a_run(b, minutes=20), b"{}")
    state = await store.agents.get(b)
    assert (state.last_stop_reason, state.last_run_completion) == ("end_turn", at(9))
    assert state.last_run_duration_ms == 60_000
    assert await names(store, sort_by="last_run_completion") == ["b", "a", "c"]
    assert await names(store, Page(after=b), sort_by="last_run_completion") == ["a", "c"]
    assert await names(store, last_stop_reason="max_steps") == ["a"]
    with pytest.raises(Invalid, match="name"):
        await names(store, sort_by="name")


async def test_an_update_changes_fields_tags_and_links_and_counts_as_a_version(store: SqlStore):
    """One transaction; what is not given stays."""
    tool, block = await store.tools.save(a_tool()), await store.blocks.create(a_block("persona"))
    state = await make_agent(store, tags=("old",), blocks=[a_block("human")])
    agent_id = state.agent.id
    change = lambda a: msgspec.structs.replace(a, name="Eve", tags=("new",), updated_at=at(3))  # noqa: E731
    after = await store.agents.update(agent_id, change, block_ids=[block.id], tool_ids=[tool.id])
    assert (after.agent.name, after.blocks, after.tools, after.message_ids) == (
        "Eve", (block,), (tool,), state.message_ids
    )  # fmt: skip
    assert await names(store, tags=("new",), sort_by="updated_at") == ["Eve"]
    assert await names(store, tags=("old",)) == []
    assert await version_of(store, agent_id) == 2


async def test_an_update_that_changes_nothing_is_no_new_version(store: SqlStore):
    """No-op updates do not recompile (spec §7.1)."""
    agent_id = (await make_agent(store)).agent.id
    await store.agents.update(agent_id, same)
    assert await version_of(store, agent_id) == 1


async def test_a_change_that_refuses_leaves_everything_as_it_was(store: SqlStore):
    """Whatever the change raises reaches the caller; the links given with it are not replaced either."""

    def refuse(_: Agent) -> Agent:
        raise Invalid("no")

    state = await make_agent(store, blocks=[a_block()])
    with pytest.raises(Invalid, match=r"^no$"):
        await store.agents.update(state.agent.id, refuse, block_ids=[])
    with pytest.raises(Invalid, match="tool-x"):
        await store.agents.update(state.agent.id, renamed("Eve"), tool_ids=["tool-x"])
    assert await store.agents.get(state.agent.id) == state


async def test_chosen_messages_form_the_context_in_the_given_order(store: SqlStore):
    """The system message stays first, later messages come after the chosen ones, and caches notice."""
    state = await make_agent(store)
    agent_id, system = state.agent.id, state.message_ids[0]
    first, second, third = said("1"), said("2"), said("3")
    await take_turn(store, agent_id, first, second, third)
    after = await store.agents.update(agent_id, same, message_ids=[third.id, system, first.id, third.id])
    assert after.message_ids == (system, third.id, first.id)
    assert (await store.contexts.load(agent_id)).revision == 2
    fourth = said("4")
    await take_turn(store, agent_id, fourth)
    assert (await store.agents.get(agent_id)).message_ids == (system, third.id, first.id, fourth.id)
    again = await store.agents.update(agent_id, same, message_ids=[second.id])
    assert again.message_ids == (system, second.id)
    empty = await store.agents.update(agent_id, same, message_ids=[])
    assert empty.message_ids == (system,)


async def test_messages_of_others_cannot_be_put_into_a_context(store: SqlStore):
    """Nor can the context be changed under a run."""
    mine, other = (await make_agent(store)), (await make_agent(store, "Bob"))
    with pytest.raises(Invalid, match=other.message_ids[0]):
        await store.agents.update(mine.agent.id, same, message_ids=[other.message_ids[0]])
    run = a_run(mine.agent.id)
    await store.runs.accept(run, b"{}")
    with pytest.raises(Busy, match=run.id):
        await store.agents.update(mine.agent.id, same, message_ids=[])


async def test_deleting_an_agent_takes_its_history_and_leaves_its_blocks(store: SqlStore):
    """Messages, runs and steps go; a shared block stays; searching finds nothing of it."""
    state = await make_agent(store, blocks=[a_block()])
    run = await take_turn(store, state.agent.id, said("elephants"))
    await store.runs.accept(a_run(state.agent.id), b"{}")
    await store.agents.delete(state.agent.id)
    assert await store.messages.find(MessageQuery(agent_id=state.agent.id), OLDEST_FIRST) == []
    assert await store.runs.find(RunQuery(), NEWEST_FIRST) == []
    assert await store.runs.find_steps(StepQuery(), NEWEST_FIRST) == []
    with pytest.raises(NotFound):
        await store.runs.get(run.id)
    hits = await store.messages.search(state.agent.id, "elephants", roles=None, start=None, end=None, limit=5)
    assert hits == []
    assert await store.blocks.get(state.blocks[0].id) == state.blocks[0]


async def test_blocks_are_attached_once_and_labels_stay_unique(store: SqlStore):
    """Attaching twice changes nothing; another block of that label is a conflict; detaching twice is not found."""
    state = await make_agent(store, blocks=[a_block("human")])
    agent_id, rival = state.agent.id, await store.blocks.create(a_block("human"))
    persona = await store.blocks.create(a_block("persona"))
    assert (await store.agents.attach_block(agent_id, persona.id)).blocks == (*state.blocks, persona)
    assert await version_of(store, agent_id) == 2
    await store.agents.attach_block(agent_id, persona.id)
    assert await version_of(store, agent_id) == 2
    with pytest.raises(Conflict, match=state.blocks[0].id):
        await store.agents.attach_block(agent_id, rival.id)
    with pytest.raises(NotFound, match="block-x"):
        await store.agents.attach_block(agent_id, "block-x")
    assert (await store.agents.detach_block(agent_id, persona.id)).blocks == state.blocks
    with pytest.raises(NotFound, match=persona.id):
        await store.agents.detach_block(agent_id, persona.id)
    assert await version_of(store, agent_id) == 3


async def test_tools_are_attached_with_a_change_of_the_agent(store: SqlStore):
    """The rule that comes with a tool is saved in the same transaction; detaching what is not attached is nothing."""
    tool, agent_id = await store.tools.save(a_tool()), (await make_agent(store)).agent.id

    def ask_first(agent: Agent, tool) -> Agent:
        rule = {"type": "requires_approval", "tool_name": tool.name}
        return msgspec.structs.replace(agent, tool_rules=(rule,))

    state = await store.agents.attach_tool(agent_id, tool.id, ask_first)
    assert (state.tools, state.agent.tool_rules) == ((tool,), ({"type": "requires_approval", "tool_name": "add"},))
    assert await store.agents.attach_tool(agent_id, tool.id, ask_first) == state
    assert await version_of(store, agent_id) == 2
    assert (await store.agents.detach_tool(agent_id, tool.id)).tools == ()
    assert (await store.agents.detach_tool(agent_id, tool.id)).tools == ()
    assert await version_of(store, agent_id) == 3
    with pytest.raises(NotFound, match="tool-x"):
        await store.agents.attach_tool(agent_id, "tool-x", ask_first)
    with pytest.raises(NotFound, match="tool-x"):
        await store.agents.detach_tool(agent_id, "tool-x")


async def test_a_page_of_fifty_agents_takes_a_constant_number_of_statements(store: SqlStore):
    """Relations are read for all agents at once."""
    tool = await store.tools.save(a_tool())
    ids = []
    for n in range(52):
        state = await make_agent(store, str(n), minutes=n, blocks=[a_block("a"), a_block("b")], tool_ids=[tool.id])
        ids.append(state.agent.id)
    with store.db.tally() as tally:
        found = await store.agents.find(AgentQuery(), Page(limit=50, after=ids[51]))
    assert [len(state.blocks) for state in found] == [2] * 50
    assert len(tally.statements) <= 6
    with store.db.tally() as tally:
        await store.agents.get(ids[0])
    assert len(tally.statements) <= 4


async def test_tenants_see_nothing_of_each_other(store: SqlStore):
    """Every read and write is bound to the tenant; the same tool name may exist in both."""
    other = store.scoped("org-11111111-1111-4111-8111-111111111111")
    tool = await store.tools.save(a_tool())
    state = await make_agent(store, blocks=[a_block()], tool_ids=[tool.id], tags=("t",))
    agent_id, block_id = state.agent.id, state.blocks[0].id
    run = await take_turn(store, agent_id, said("secret plans"))
    step = (await store.runs.find_steps(StepQuery(), NEWEST_FIRST))[0]
    assert await other.agents.find(AgentQuery(tags=("t",)), NEWEST_FIRST) == []
    assert await other.agents.count() == 0
    assert await other.messages.find(MessageQuery(), NEWEST_FIRST) == []
    assert await other.runs.find(RunQuery(), NEWEST_FIRST) == []
    assert await other.runs.find_steps(StepQuery(), NEWEST_FIRST) == []
    assert await other.messages.search(agent_id, "secret", roles=None, start=None, end=None, limit=5) == []
    assert await other.runs.interrupt(None, "x") == 0
    theirs = await make_agent(other, "Mallory", block_ids=[block_id])
    assert theirs.blocks == ()
    for attempt in (
        other.agents.get(agent_id), other.agents.delete(agent_id), other.agents.update(agent_id, same),
        other.agents.attach_block(theirs.agent.id, block_id),
        other.agents.attach_tool(theirs.agent.id, tool.id, lambda a, t: a), other.blocks.get(block_id),
        other.blocks.delete(block_id), other.tools.get(tool.id), other.tools.delete(tool.id), other.runs.get(run.id),
        other.runs.delete(run.id), other.runs.get_step(step.id), other.messages.get(state.message_ids[0]),
        other.contexts.load(agent_id), other.runs.accept(a_run(agent_id), b"{}"),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            await attempt
    assert (await other.tools.save(a_tool())).id != tool.id
    assert (await store.agents.get(agent_id)).blocks == state.blocks


async def test_hostile_text_is_stored_and_given_back(store: SqlStore):
    """NUL, emoji, half a surrogate pair, quotes: never a failure; bodies keep what JSON can keep."""
    text = "nul:\0 emoji:🙂 quote:'\"; DROP TABLE agents;-- \\"
    state = await make_agent(store, text, blocks=[a_block("l\0", text)], tags=(text,), messages=[said(text)])
    read = await store.agents.get(state.agent.id)
    assert read.agent.name == text
    assert (read.blocks[0].label, read.blocks[0].value) == ("l", text.replace("\0", ""))
    assert await names(store, name=text, tags=(text,)) == [text]
    lone = await make_agent(store, "half \ud83d", system="half \ud83d")
    assert (await store.agents.get(lone.agent.id)).agent.system == "half ?"
    context = await store.contexts.load(state.agent.id)
    assert context.messages[0].content[0].text == text
