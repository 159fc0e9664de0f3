"""What hangs on an agent: its blocks and tools, the tags beside records, and the version that counts changes.

Used by the files of the records themselves; knows their tables, not their rules.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    ScalarSelect,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    union_all,
    update,
)

from perdure.domain.records import Block, Tool
from perdure.store.schema import agent_blocks, agent_tools, agents, blocks, conversation_blocks, conversations, tools

_BLOCK = msgspec.json.Decoder(Block)
_TOOL = msgspec.json.Decoder(Tool)

BLOCKS_OF = (
    select(agent_blocks.c.agent_id, blocks.c.body, blocks.c.value)
    .join(blocks, blocks.c.id == agent_blocks.c.block_id)
    .where(agent_blocks.c.tenant_id == bindparam("tenant"))
    .where(agent_blocks.c.agent_id.in_(bindparam("ids", expanding=True)))
    .order_by(agent_blocks.c.agent_id, agent_blocks.c.position)
)  # fmt: skip
"""Blocks of agents, in the order they were attached."""

TOOLS_OF = (
    select(agent_tools.c.agent_id, tools.c.body)
    .join(tools, tools.c.id == agent_tools.c.tool_id)
    .where(agent_tools.c.tenant_id == bindparam("tenant"))
    .where(agent_tools.c.agent_id.in_(bindparam("ids", expanding=True)))
    .order_by(agent_tools.c.agent_id, agent_tools.c.position)
)  # fmt: skip
"""Tools of agents, in the order they were attached."""

_BUMP = update(agents).values(version=agents.c.version + 1)


def read_block(body: str, value: str) -> Block:
    """A block from its row. The value stands in its own column only."""
    return msgspec.structs.replace(_BLOCK.decode(body), value=value)


@lru_cache(maxsize=512)
def read_tool(body: str) -> Tool:
    """A tool from its row. Most agents have the same ones: all contexts in memory share what is equal."""
    return _TOOL.decode(body)


def blocks_of(conn: Connection, tenant: str, agent_ids: Sequence[str]) -> dict[str, list[Block]]:
    """The blocks of each agent."""
    found: dict[str, list[Block]] = {agent_id: [] for agent_id in agent_ids}
    for agent_id, body, value in conn.execute(BLOCKS_OF, {"tenant": tenant, "ids": agent_ids}):
        found[agent_id].append(read_block(body, value))
    return found


def tools_of(conn: Connection, tenant: str, agent_ids: Sequence[str]) -> dict[str, list[Tool]]:
    """The tools of each agent."""
    found: dict[str, list[Tool]] = {agent_id: [] for agent_id in agent_ids}
    for agent_id, body in conn.execute(TOOLS_OF, {"tenant": tenant, "ids": agent_ids}):
        found[agent_id].append(read_tool(body))
    return found


def bump(conn: Connection, tenant: str, which: ColumnElement[bool]) -> dict[str, int]:
    """Mark agents as changed; answers their new versions. They stay locked until the transaction ends.

    Locked in the order of their ids, so that two changes of shared blocks wait for each other instead of deadlocking.
    """
    # Without their keys: steps that insert messages hold those, and would deadlock with a change of shared memory.
    which_agents = select(agents.c.id).where(agents.c.tenant_id == tenant, which).order_by(agents.c.id)
    chosen = which_agents.with_for_update(key_share=True)
    bumped = _BUMP.where(agents.c.id.in_(chosen)).returning(agents.c.id, agents.c.version)
    return {row.id: row.version for row in conn.execute(bumped)}


def with_block(*block_ids: str) -> ColumnElement[bool]:
    """Agents that have one of the blocks, or have a conversation that has it for itself."""
    attached = select(agent_blocks.c.agent_id).where(agent_blocks.c.block_id.in_(block_ids))
    isolated = (
        select(conversations.c.agent_id)
        .join(conversation_blocks, conversation_blocks.c.conversation_id == conversations.c.id)
        .where(conversation_blocks.c.block_id.in_(block_ids))
    )
    return agents.c.id.in_(union_all(attached, isolated))


def with_tool(tool_id: str) -> ColumnElement[bool]:
    """Agents that have the tool."""
    return agents.c.id.in_(select(agent_tools.c.agent_id).where(agent_tools.c.tool_id == tool_id))


def attach(conn: Connection, tenant: str, table: Table, agent_id: str, other_ids: Sequence[str]) -> None:
    """Attach blocks or tools behind those that are attached already. The ids must be new to the agent."""
    if not other_ids:
        return
    other = _other(table)
    taken = conn.scalar(
        select(func.coalesce(func.max(table.c.position) + 1, 0)).where(table.c.agent_id == agent_id)
    )  # fmt: skip
    conn.execute(
        insert(table),
        [
            {"agent_id": agent_id, other.name: other_id, "tenant_id": tenant, "position": position}
            for position, other_id in enumerate(other_ids, taken or 0)
        ],
    )


def detach(conn: Connection, table: Table, agent_id: str, other_id: str) -> bool:
    """Detach a block or tool; answers whether it was attached."""
    gone = delete(table).where(table.c.agent_id == agent_id, _other(table) == other_id)
    return conn.execute(gone).rowcount > 0


def detach_all(conn: Connection, table: Table, agent_id: str) -> None:
    """Detach all blocks, or all tools, of an agent."""
    conn.execute(delete(table).where(table.c.agent_id == agent_id))


def _other(table: Table) -> "Column[Any]":
    return table.c.block_id if table is agent_blocks else table.c.tool_id


def mark(conn: Connection, tenant: str, table: Table, owner_id: str, marks: Iterable[str], *, fresh: bool) -> None:
    """Set the tags (or identities) of a record; `fresh` says that it has none yet."""
    owner, word = table.primary_key.columns
    if not fresh:
        conn.execute(delete(table).where(owner == owner_id))
    rows = [{owner.name: owner_id, word.name: text, "tenant_id": tenant} for text in dict.fromkeys(marks)]
    if rows:
        conn.execute(insert(table), rows)


def marked(
    table: Table, ident: ColumnElement[str], tenant: str, marks: Sequence[str], *, every: bool
) -> ColumnElement[bool]:
    """Records with one of the tags, or with every one of them."""
    owner, word = table.primary_key.columns
    wanted = set(marks)
    having = select(owner).where(table.c.tenant_id == tenant, word.in_(wanted))
    if every:
        having = having.group_by(owner).having(func.count() == len(wanted))
    return ident.in_(having)


def count_of_agents() -> "ScalarSelect[int]":
    """To how many agents a block is attached."""
    return (
        select(func.count()).where(agent_blocks.c.block_id == blocks.c.id).correlate(blocks).scalar_subquery()
    )  # fmt: skip
