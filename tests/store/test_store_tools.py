"""Tools on both databases."""

import asyncio

import msgspec
import pytest
from making import a_tool, at, make_agent

from perdure.domain.errors import Conflict, NotFound
from perdure.domain.ports import Page, ToolQuery
from perdure.store import SqlStore

pytestmark = pytest.mark.anyio


async def names(store: SqlStore, page: Page = Page(ascending=True), **query) -> list[str]:  # noqa: B008
    return [tool.name for tool in await store.tools.find(ToolQuery(**query), page)]


async def version_of(store: SqlStore, agent_id: str) -> int:
    return (await store.contexts.load(agent_id)).agent_version


async def test_saving_a_known_name_updates_that_tool(store: SqlStore):
    """Upsert: the id and the time of creation stay, and agents that have the tool are marked (★S78)."""
    first = await store.tools.save(a_tool(description="old"))
    agent_id = (await make_agent(store, tool_ids=[first.id])).agent.id
    second = await store.tools.save(a_tool(description="new", minutes=5))
    assert (second.id, second.created_at, second.updated_at) == (first.id, at(0), at(5))
    assert await store.tools.get(first.id) == second
    assert (await version_of(store, agent_id), await names(store)) == (2, ["add"])


async def test_saving_the_same_again_changes_nothing(store: SqlStore):
    """A server saves its built-in tools at every start; that must not make every agent recompile."""
    first = await store.tools.save(a_tool())
    agent_id = (await make_agent(store, tool_ids=[first.id])).agent.id
    assert await store.tools.save(a_tool(minutes=9, created_at=at(9))) == first
    assert await version_of(store, agent_id) == 1


async def test_one_name_saved_by_many_at_once_is_one_tool(store: SqlStore):
    """Whoever comes second updates."""
    saved = await asyncio.gather(*(store.tools.save(a_tool(description=str(n))) for n in range(12)))
    assert len({tool.id for tool in saved}) == 1
    assert await names(store) == ["add"]


async def test_tools_are_found_by_each_filter(store: SqlStore):
    """Names, ids, kinds, words, and the agent that has them."""
    add = await store.tools.save(a_tool("add", description="Sums NUMBERS up"))
    core = await store.tools.save(a_tool("memory_insert", tool_type="letta_memory_core", minutes=1))
    await store.tools.save(a_tool("look", tool_type="external_mcp", minutes=2))
    agent_id = (await make_agent(store, tool_ids=[core.id])).agent.id
    assert await names(store) == ["add", "memory_insert", "look"]
    assert await names(store, Page(limit=1)) == ["look"]
    assert await names(store, Page(after=add.id, limit=1, ascending=True)) == ["memory_insert"]
    assert await names(store, name="add") == ["add"]
    assert await names(store, names=("add", "look", "x")) == ["add", "look"]
    assert await names(store, tool_ids=(core.id,)) == ["memory_insert"]
    assert await names(store, tool_types=("custom",)) == ["add"]
    assert await names(store, exclude_tool_types=("custom",)) == ["memory_insert", "look"]
    assert await names(store, search="numbers") == ["add"]
    assert await names(store, search="OOK") == ["look"]
    assert await names(store, search="%") == []
    assert await names(store, letta_only=True) == ["memory_insert"]
    assert await names(store, agent_id=agent_id) == ["memory_insert"]
    with pytest.raises(NotFound):
        await names(store, Page(after="tool-x"))


async def test_a_change_must_not_take_anothers_name(store: SqlStore):
    """A conflict, and nothing changes."""
    add, _ = await store.tools.save(a_tool("add")), await store.tools.save(a_tool("sub"))
    with pytest.raises(Conflict, match="name"):
        await store.tools.update(add.id, lambda tool: msgspec.structs.replace(tool, name="sub"))
    assert await store.tools.get(add.id) == add
    changed = await store.tools.update(add.id, lambda tool: msgspec.structs.replace(tool, name="plus"))
    assert await names(store, name="plus") == ["plus"]
    assert changed.id == add.id


async def test_a_deleted_tool_is_detached_everywhere(store: SqlStore):
    """Agents that had it are marked; an unknown tool is not found."""
    tool = await store.tools.save(a_tool())
    agent_id = (await make_agent(store, tool_ids=[tool.id])).agent.id
    await store.tools.delete(tool.id)
    assert ((await store.agents.get(agent_id)).tools, await version_of(store, agent_id)) == ((), 2)
    for attempt in (store.tools.get(tool.id), store.tools.delete(tool.id), store.tools.update(tool.id, lambda t: t)):
        with pytest.raises(NotFound, match=tool.id):
            await attempt
