"""Memory blocks on both databases."""

import asyncio

import msgspec
import pytest
from making import a_block, an_agent, at, make_agent

from perdure.domain.errors import Conflict, NotFound
from perdure.domain.ports import BlockQuery, Page
from perdure.domain.records import Block
from perdure.store import SqlStore

pytestmark = pytest.mark.anyio
OLDEST_FIRST = Page(ascending=True)


def setting(**fields):
    return lambda block: msgspec.structs.replace(block, **fields)


async def labels(store: SqlStore, page: Page = OLDEST_FIRST, **query) -> list[str]:
    return [block.label for block in await store.blocks.find(BlockQuery(**query), page)]


async def version_of(store: SqlStore, agent_id: str) -> int:
    return (await store.contexts.load(agent_id)).agent_version


async def test_a_block_is_read_back_whole(store: SqlStore):
    """Every field, the ones that are only echoed too."""
    block = a_block(
        "human", "Likes tea.", limit=20, description="d", read_only=True, metadata={"a": {"b": [1]}}, tags=("x",),
        hidden=True, extra={"template_name": "n", "project_id": "p"},
    )  # fmt: skip
    assert await store.blocks.create(block) == block
    assert await store.blocks.get(block.id) == block
    with pytest.raises(NotFound, match="block-x"):
        await store.blocks.get("block-x")


async def test_blocks_are_found_by_each_filter(store: SqlStore):
    """Searches match anywhere, ignore case and take wildcards literally; counts count attached agents."""
    await store.blocks.create(a_block("tea", "Oolong 50%", description="What SHE drinks", tags=("a", "b"), minutes=1))
    await store.blocks.create(
        a_block("form", minutes=2, extra={"is_template": True, "template_name": "n", "project_id": "p"})
    )
    shared = await store.blocks.create(a_block("shared", tags=("a",), minutes=3))
    for _ in range(2):
        await store.agents.create(an_agent(), blocks=[], block_ids=[shared.id], tool_ids=[], messages=[])
    assert await labels(store) == ["tea", "form", "shared"]
    assert await labels(store, Page(limit=2)) == ["shared", "form"]
    assert await labels(store, label="tea") == ["tea"]
    assert await labels(store, label_search="OR") == ["form"]
    assert await labels(store, description_search="she") == ["tea"]
    assert await labels(store, value_search="oolong") == ["tea"]
    assert await labels(store, value_search="0%") == ["tea"]
    assert await labels(store, value_search="_o_o") == []
    assert await labels(store, tags=("b", "c")) == ["tea"]
    assert await labels(store, tags=("a", "b"), match_all_tags=True) == ["tea"]
    assert await labels(store, templates_only=True) == ["form"]
    assert await labels(store, name="n", project_id="p") == ["form"]
    assert await labels(store, agents_eq=2) == ["shared"]
    assert await labels(store, agents_gt=0, agents_lt=3) == ["shared"]
    assert await labels(store, agents_eq=0) == ["tea", "form"]
    assert await labels(store, identity_id="identity-1") == []
    assert await labels(store, Page(after=shared.id, ascending=True)) == []
    with pytest.raises(NotFound):
        await labels(store, Page(after="block-x"))


async def test_a_change_the_model_sees_marks_every_agent_that_has_the_block(store: SqlStore):
    """Shared blocks: one write is seen by all of them; agents without the block are not bothered."""
    block = await store.blocks.create(a_block())
    sharing = [(await make_agent(store, str(n), block_ids=[block.id])).agent.id for n in range(3)]
    alone = (await make_agent(store, "alone")).agent.id
    after = await store.blocks.update(block.id, setting(value="Ada\0", updated_at=at(5)))
    assert (after.value, after.version) == ("Ada", 2)
    assert [await version_of(store, agent_id) for agent_id in (*sharing, alone)] == [2, 2, 2, 1]
    assert (await store.agents.get(sharing[1])).blocks == (after,)


@pytest.mark.parametrize(
    ("fields", "version", "recompiled"),
    [({}, 1, 1), ({"metadata": {"k": 1}}, 2, 1), ({"limit": 5}, 2, 2), ({"tags": ("n",)}, 2, 1)],
)
async def test_what_the_model_does_not_see_recompiles_nothing(store: SqlStore, fields, version, recompiled):
    """Metadata and tags change the block, not the prompt; a change to the same changes nothing at all."""
    state = await make_agent(store, blocks=[a_block()])
    after = await store.blocks.update(state.blocks[0].id, setting(**fields))
    assert (after.version, await version_of(store, state.agent.id)) == (version, recompiled)
    assert await store.blocks.get(after.id) == after
    assert await labels(store, tags=("n",)) == (["human"] if "tags" in fields else [])


async def test_a_new_label_must_be_free_on_every_agent_that_has_the_block(store: SqlStore):
    """Labels stay unique per agent, whichever way they change."""
    state = await make_agent(store, blocks=[a_block("human"), a_block("persona")])
    human, persona = state.blocks
    with pytest.raises(Conflict, match=persona.id):
        await store.blocks.update(human.id, setting(label="persona"))
    assert (await store.blocks.update(human.id, setting(label="user"))).label == "user"
    assert await version_of(store, state.agent.id) == 2


async def test_a_deleted_block_is_gone_everywhere(store: SqlStore):
    """Agents that had it are marked."""
    state = await make_agent(store, blocks=[a_block()])
    await store.blocks.delete(state.blocks[0].id)
    assert (await store.agents.get(state.agent.id)).blocks == ()
    assert await version_of(store, state.agent.id) == 2
    for attempt in (store.blocks.delete("block-x"), store.blocks.update("block-x", lambda b: b)):
        with pytest.raises(NotFound, match="block-x"):
            await attempt


async def test_many_writers_lose_no_change(store: SqlStore):
    """Fifty changes at once of one block that two agents share: each is made from the one before."""
    block = await store.blocks.create(a_block(value=""))
    for _ in range(2):
        await make_agent(store, block_ids=[block.id])

    def longer(before: Block) -> Block:
        return msgspec.structs.replace(before, value=before.value + "x")

    await asyncio.gather(*(store.blocks.update(block.id, longer) for _ in range(50)))
    after = await store.blocks.get(block.id)
    assert (after.value, after.version) == ("x" * 50, 51)
