"""Agents with their relations (port `Agents`)."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    ScalarSelect,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from perdure.domain.errors import Conflict, Invalid, NotFound
from perdure.domain.messages import Message
from perdure.domain.ports import AgentQuery, Page
from perdure.domain.records import Agent, AgentState, Block, Tool
from perdure.store import blocks as block_rows
from perdure.store import contexts as context_rows
from perdure.store import isolation
from perdure.store import tools as tool_rows
from perdure.store.codec import encode, micros, moment, text_or_none
from perdure.store.database import Database
from perdure.store.links import attach, blocks_of, bump, detach, detach_all, mark, marked, tools_of
from perdure.store.paging import Order, page_of
from perdure.store.schema import (
    agent_blocks,
    agent_identities,
    agent_tags,
    agent_tools,
    agents,
    messages,
    runs,
)

_AGENT = msgspec.json.Decoder(Agent)


def _last_run(column: ColumnElement[Any]) -> "ScalarSelect[Any]":
    """A column of the run of an agent that ended last."""
    return (
        select(column)
        .where(runs.c.agent_id == agents.c.id, runs.c.completed_at.is_not(None))
        .order_by(runs.c.completed_at.desc(), runs.c.sequence.desc())
        .limit(1)
        .correlate(agents)
        .scalar_subquery()
    )


SORTS = {
    "created_at": agents.c.created_at,
    "updated_at": agents.c.updated_at,
    "last_run_completion": func.coalesce(_last_run(runs.c.completed_at), 0),
}

WITH_LAST_RUN = (
    select(agents.c.id, agents.c.body, runs.c.stop_reason, runs.c.created_at, runs.c.completed_at)
    .outerjoin(runs, runs.c.sequence == _last_run(runs.c.sequence))
    .where(agents.c.tenant_id == bindparam("tenant"), agents.c.id.in_(bindparam("ids", expanding=True)))
)
"""Agents with the outcome of the run that ended last."""

MESSAGE_IDS = (
    select(messages.c.agent_id, messages.c.id)
    .where(messages.c.tenant_id == bindparam("tenant"), messages.c.context_id.in_(bindparam("ids", expanding=True)))
    .where(messages.c.in_context)
    .order_by(messages.c.agent_id, func.coalesce(messages.c.position, messages.c.sequence_id))
)
"""The messages in agents' default contexts (which have the ids of the agents), in order."""


class SqlAgents:
    """The agents of one tenant. All raise NotFound("Agent not found") for an unknown id."""

    def __init__(self, db: Database, tenant: str):
        self._db, self._tenant = db, tenant

    async def create(
        self, agent: Agent, *, blocks: Sequence[Block], block_ids: Sequence[str], tool_ids: Sequence[str],
        messages: Sequence[Message],
    ) -> AgentState:
        """Store the agent, its own new blocks, its links (unknown block ids are ignored) and its first context.

        Raises Invalid for an unknown tool id or two blocks of one label.
        """
        return await self._db.write(_create, self._tenant, agent, blocks, block_ids, tool_ids, messages)

    async def get(self, agent_id: str) -> AgentState:
        """The agent with blocks, tools, message ids and the outcome of its last run."""
        return await self._db.read(_get, self._tenant, agent_id)

    async def find(self, query: AgentQuery, page: Page, sort_by: str = "created_at") -> list[AgentState]:
        """A page of agents; `sort_by` ∈ created_at, updated_at, last_run_completion. Raises NotFound, Invalid."""
        if sort_by not in SORTS:
            raise Invalid(f"Cannot sort agents by {sort_by!r}. Use one of {', '.join(SORTS)}.")
        return await self._db.read(_find, self._tenant, query, page, sort_by)

    async def count(self) -> int:
        """How many agents there are."""
        return await self._db.read(_count, self._tenant)

    async def update(
        self, agent_id: str, change: Callable[[Agent], Agent], *, block_ids: Sequence[str] | None = None,
        tool_ids: Sequence[str] | None = None, message_ids: Sequence[str] | None = None,
    ) -> AgentState:
        """Apply a pure change in one transaction, and replace links where given.

        `message_ids` puts these messages into the default context, behind its system message. Raises Invalid (unknown
        tool, two blocks of one label, foreign message), Busy (message_ids while a run holds the context).
        """
        return await self._db.write(_update, self._tenant, agent_id, change, block_ids, tool_ids, message_ids)

    async def delete(self, agent_id: str) -> None:
        """Remove the agent with its messages, runs, steps and conversations; blocks stay, but for those that its
        conversations have for themselves. A run under way is fenced off by it.
        """
        await self._db.write(_delete, self._tenant, agent_id)

    async def attach_block(self, agent_id: str, block_id: str) -> AgentState:
        """Attach; no change if attached. Raises NotFound, Conflict (another block of that label)."""
        return await self._db.write(_attach_block, self._tenant, agent_id, block_id)

    async def detach_block(self, agent_id: str, block_id: str) -> AgentState:
        """Detach. Raises NotFound if the block is not attached."""
        return await self._db.write(_detach_block, self._tenant, agent_id, block_id)

    async def attach_tool(self, agent_id: str, tool_id: str, change: Callable[[Agent, Tool], Agent]) -> AgentState:
        """Attach a tool and apply `change` (approval rule); attached already, only `change`. Raises NotFound."""
        return await self._db.write(_attach_tool, self._tenant, agent_id, tool_id, change)

    async def detach_tool(self, agent_id: str, tool_id: str) -> AgentState:
        """Detach a tool; no change if it is not attached. Raises NotFound for an unknown tool."""
        return await self._db.write(_detach_tool, self._tenant, agent_id, tool_id)


def _row_of(tenant: str, agent: Agent) -> dict[str, Any]:
    echoed = ("project_id", "template_id", "base_template_id", "created_by_id")
    return {
        "id": agent.id, "tenant_id": tenant, "name": agent.name, "created_at": micros(agent.created_at),
        "updated_at": micros(agent.updated_at), "body": encode(agent),
        **{field: text_or_none(agent.extra.get(field)) for field in echoed},
    }  # fmt: skip


def _create(
    conn: Connection, tenant: str, agent: Agent, own: Sequence[Block], block_ids: Sequence[str],
    tool_ids: Sequence[str], spoken: Sequence[Message],
) -> AgentState:
    conn.execute(insert(agents), {**_row_of(tenant, agent), "version": 1})
    mark(conn, tenant, agent_tags, agent.id, agent.tags, fresh=True)
    mark(conn, tenant, agent_identities, agent.id, agent.identity_ids, fresh=True)
    made = [block_rows.create(conn, tenant, block) for block in own]
    _link_blocks(conn, tenant, agent.id, [*made, *block_rows.by_ids(conn, tenant, block_ids)])
    _link_tools(conn, tenant, agent.id, tool_ids)
    context_rows.create(conn, tenant, agent, spoken)
    return _get(conn, tenant, agent.id)


def _link_blocks(conn: Connection, tenant: str, agent_id: str, chosen: Sequence[Block]) -> None:
    by_label: dict[str, Block] = {}
    for block in chosen:
        other = by_label.setdefault(block.label, block)
        if other.id != block.id:
            raise Invalid(
                f"An agent cannot have two blocks with the label {block.label!r}: {other.id} and {block.id}. "
                "Leave one of them out, or give it another label."
            )
    attach(conn, tenant, agent_blocks, agent_id, [block.id for block in by_label.values()])


def _link_tools(conn: Connection, tenant: str, agent_id: str, tool_ids: Sequence[str]) -> None:
    wanted = list(dict.fromkeys(tool_ids))
    known = tool_rows.known_ids(conn, tenant, wanted)
    unknown = [tool_id for tool_id in wanted if tool_id not in known]
    if unknown:
        raise Invalid(f"Tools not found: {', '.join(unknown)}. Use ids from GET /v1/tools/.")
    attach(conn, tenant, agent_tools, agent_id, wanted)


def _get(conn: Connection, tenant: str, agent_id: str) -> AgentState:
    found = states(conn, tenant, [agent_id])
    if not found:
        raise NotFound("Agent not found")
    return found[0]


def states(conn: Connection, tenant: str, agent_ids: Sequence[str]) -> list[AgentState]:
    """Those of the agents that exist, in the order asked for: four statements for any number of them."""
    key = {"tenant": tenant, "ids": agent_ids}
    rows = {row.id: row for row in conn.execute(WITH_LAST_RUN, key)}
    present = [agent_id for agent_id in agent_ids if agent_id in rows]
    if not present:
        return []
    blocks, tools = blocks_of(conn, tenant, present), tools_of(conn, tenant, present)
    inside: dict[str, list[str]] = {agent_id: [] for agent_id in present}
    for agent_id, message_id in conn.execute(MESSAGE_IDS, key):
        inside[agent_id].append(message_id)
    return [_state(rows[a], blocks[a], tools[a], inside[a]) for a in present]


def _state(row: Any, blocks: Sequence[Block], tools: Sequence[Tool], message_ids: Sequence[str]) -> AgentState:
    ended = row.completed_at is not None
    return AgentState(
        agent=_AGENT.decode(row.body), blocks=tuple(blocks), tools=tuple(tools), message_ids=tuple(message_ids),
        last_stop_reason=row.stop_reason, last_run_completion=moment(row.completed_at) if ended else None,
        last_run_duration_ms=(row.completed_at - row.created_at) // 1000 if ended else None,
    )  # fmt: skip


def _find(conn: Connection, tenant: str, query: AgentQuery, page: Page, sort_by: str) -> list[AgentState]:
    order = Order(agents.c.id, SORTS[sort_by], agents.c.id, scope=agents.c.tenant_id == tenant)
    rows = page_of(conn, select(agents.c.id).where(*_conditions(tenant, query)), order, page)
    return states(conn, tenant, [row.id for row in rows])


def _conditions(tenant: str, query: AgentQuery) -> list[ColumnElement[bool]]:
    c = agents.c
    found = [c.tenant_id == tenant]
    exact = ((c.name, query.name), (c.project_id, query.project_id), (c.template_id, query.template_id),
             (c.base_template_id, query.base_template_id), (c.created_by_id, query.created_by_id))  # fmt: skip
    found += [column == value for column, value in exact if value is not None]
    if query.tags:
        found.append(marked(agent_tags, c.id, tenant, query.tags, every=query.match_all_tags))
    if query.identity_id is not None:
        found.append(marked(agent_identities, c.id, tenant, [query.identity_id], every=False))
    if query.query_text is not None:
        found.append(c.name.icontains(query.query_text, autoescape=True))
    if query.last_stop_reason is not None:
        found.append(_last_run(runs.c.stop_reason) == query.last_stop_reason)
    if query.block_id is not None:
        found.append(c.id.in_(select(agent_blocks.c.agent_id).where(agent_blocks.c.block_id == query.block_id)))
    return found


def _count(conn: Connection, tenant: str) -> int:
    return conn.scalar(select(func.count()).where(agents.c.tenant_id == tenant)) or 0


def _locked(conn: Connection, tenant: str, agent_id: str) -> Agent:
    """The agent, which nobody else can change until the transaction ends."""
    found = select(agents.c.body).where(agents.c.tenant_id == tenant, agents.c.id == agent_id)
    body = conn.scalar(found.with_for_update(key_share=True))
    if body is None:
        raise NotFound("Agent not found")
    return _AGENT.decode(body)


def _update(
    conn: Connection, tenant: str, agent_id: str, change: Callable[[Agent], Agent], block_ids: Sequence[str] | None,
    tool_ids: Sequence[str] | None, message_ids: Sequence[str] | None,
) -> AgentState:
    before = _locked(conn, tenant, agent_id)
    changed = _save(conn, tenant, before, change(before))
    if block_ids is not None:
        detach_all(conn, agent_blocks, agent_id)
        _link_blocks(conn, tenant, agent_id, block_rows.by_ids(conn, tenant, block_ids))
    if tool_ids is not None:
        detach_all(conn, agent_tools, agent_id)
        _link_tools(conn, tenant, agent_id, tool_ids)
    if message_ids is not None:
        context_rows.choose(conn, tenant, agent_id, message_ids)
    if changed or block_ids is not None or tool_ids is not None:
        bump(conn, tenant, agents.c.id == agent_id)
    return _get(conn, tenant, agent_id)


def _save(conn: Connection, tenant: str, before: Agent, after: Agent) -> bool:
    """Write a changed agent; answers whether it changed."""
    if after == before:
        return False
    conn.execute(
        update(agents).where(agents.c.tenant_id == tenant, agents.c.id == before.id).values(_row_of(tenant, after))
    )  # fmt: skip
    for table, old, new in (
        (agent_tags, before.tags, after.tags), (agent_identities, before.identity_ids, after.identity_ids)
    ):  # fmt: skip
        if old != new:
            mark(conn, tenant, table, before.id, new, fresh=False)
    return True


def _delete(conn: Connection, tenant: str, agent_id: str) -> None:
    _locked(conn, tenant, agent_id)  # or a conversation made meanwhile would leave its blocks behind
    isolated = isolation.of_agent(conn, agent_id)
    conn.execute(delete(agents).where(agents.c.id == agent_id))
    isolation.discard(conn, tenant, isolated)


def _attached(conn: Connection, table: Table, agent_id: str, other_id: str) -> bool:
    other = table.c.block_id if table is agent_blocks else table.c.tool_id
    return conn.scalar(select(table.c.position).where(table.c.agent_id == agent_id, other == other_id)) is not None


def _attach_block(conn: Connection, tenant: str, agent_id: str, block_id: str) -> AgentState:
    _locked(conn, tenant, agent_id)
    block = block_rows.get(conn, tenant, block_id)
    if not _attached(conn, agent_blocks, agent_id, block_id):
        for other in blocks_of(conn, tenant, [agent_id])[agent_id]:
            if other.label == block.label:
                raise Conflict(
                    f"The agent already has the block {other.id} with the label {block.label!r}. "
                    "Detach that one first, or give one of them another label."
                )
        attach(conn, tenant, agent_blocks, agent_id, [block_id])
        bump(conn, tenant, agents.c.id == agent_id)
    return _get(conn, tenant, agent_id)


def _detach_block(conn: Connection, tenant: str, agent_id: str, block_id: str) -> AgentState:
    _locked(conn, tenant, agent_id)
    if not detach(conn, agent_blocks, agent_id, block_id):
        raise NotFound(f"Block {block_id} is not attached to this agent.")
    bump(conn, tenant, agents.c.id == agent_id)
    return _get(conn, tenant, agent_id)


def _attach_tool(
    conn: Connection, tenant: str, agent_id: str, tool_id: str, change: Callable[[Agent, Tool], Agent]
) -> AgentState:
    before = _locked(conn, tenant, agent_id)
    tool = tool_rows.get(conn, tenant, tool_id)
    changed = _save(conn, tenant, before, change(before, tool))
    if not _attached(conn, agent_tools, agent_id, tool_id):
        attach(conn, tenant, agent_tools, agent_id, [tool_id])
        changed = True
    if changed:
        bump(conn, tenant, agents.c.id == agent_id)
    return _get(conn, tenant, agent_id)


def _detach_tool(conn: Connection, tenant: str, agent_id: str, tool_id: str) -> AgentState:
    _locked(conn, tenant, agent_id)
    tool_rows.get(conn, tenant, tool_id)
    if detach(conn, agent_tools, agent_id, tool_id):
        bump(conn, tenant, agents.c.id == agent_id)
    return _get(conn, tenant, agent_id)
