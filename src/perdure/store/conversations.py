"""Conversations: the records, and what is made and unmade with them (port `Conversations`).

What is in their contexts is the matter of `contexts` and `inheritance`, their own blocks that of `isolation`.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from perdure.domain.conversations import Conversation, ConversationQuery, ConversationState, SystemText
from perdure.domain.errors import Busy, Invalid, NotFound
from perdure.domain.ports import Page
from perdure.domain.records import Block
from perdure.store import contexts as context_rows
from perdure.store import inheritance, isolation
from perdure.store.codec import encode, micros, moment
from perdure.store.database import Database
from perdure.store.links import bump
from perdure.store.paging import Order, page_of
from perdure.store.schema import OPEN, agents, contexts, conversations, runs

_LAST_RUN = (
    select(func.max(runs.c.completed_at))
    .where(runs.c.agent_id == conversations.c.agent_id, runs.c.context_id == conversations.c.id)
    .correlate(conversations)
    .scalar_subquery()
)

SORTS: dict[str, tuple[ColumnElement[Any], ...]] = {
    "created_at": (),
    "last_message_at": (func.coalesce(conversations.c.last_message_at, 0),),
    "last_run_completion": (func.coalesce(_LAST_RUN, 0),),
}
"""What goes before the moment of creation, which decides among equals."""


class SqlConversations:
    """The conversations of one tenant. All raise NotFound for an unknown id, also of one that was deleted."""

    def __init__(self, db: Database, tenant: str):
        self._db, self._tenant = db, tenant

    async def create(
        self, conversation: Conversation, system: SystemText, *, isolated: Sequence[str] = ()
    ) -> ConversationState:
        """Store it with its own context, and with copies of the agent's blocks of the labels `isolated`.

        Raises NotFound (agent), Invalid (the agent has no such block).
        """
        return await self._db.write(_create, self._tenant, conversation, system, tuple(dict.fromkeys(isolated)))

    async def fork(
        self, conversation: Conversation, source: str, system: SystemText, *, until: str | None = None
    ) -> ConversationState:
        """Store it with the messages that the context `source` has now, up to the message `until` if it is given.

        Raises NotFound (source, message).
        """
        return await self._db.write(_fork, self._tenant, conversation, source, system, until)

    async def get(self, conversation_id: str) -> ConversationState:
        """One conversation."""
        return await self._db.read(_get, self._tenant, conversation_id)

    async def agent_of(self, conversation_id: str) -> str:
        """The id of its agent."""
        return await self._db.read(_agent_of, self._tenant, conversation_id)

    async def find(
        self, query: ConversationQuery, page: Page, sort_by: str = "created_at"
    ) -> list[ConversationState]:
        """A page; `sort_by` ∈ created_at, last_message_at, last_run_completion. Raises NotFound (cursor), Invalid."""
        if sort_by not in SORTS:
            raise Invalid(f"Cannot sort conversations by {sort_by!r}. Use one of {', '.join(SORTS)}.")
        return await self._db.read(_find, self._tenant, query, page, sort_by)

    async def update(
        self, conversation_id: str, change: Callable[[Conversation], Conversation]
    ) -> ConversationState:
        """Apply a pure change in one transaction; another model counts from the next request on."""
        return await self._db.write(_update, self._tenant, conversation_id, change)

    async def touch(self, conversation_id: str, at: datetime) -> str:
        """Note that a message was sent to it then; answers the id of its agent."""
        return await self._db.write(_touch, self._tenant, conversation_id, at)

    async def delete(self, conversation_id: str, at: datetime) -> None:
        """Close it for good and remove its isolated blocks; its messages stay in the agent's history. Raises Busy."""
        await self._db.write(_delete, self._tenant, conversation_id, at)


def _row_of(tenant: str, conversation: Conversation) -> dict[str, Any]:
    spoken, archived = conversation.last_message_at, conversation.archived_at
    return {
        "id": conversation.id, "tenant_id": tenant, "agent_id": conversation.agent_id,
        "created_at": micros(conversation.created_at), "updated_at": micros(conversation.updated_at),
        "last_message_at": None if spoken is None else micros(spoken),
        "archived_at": None if archived is None else micros(archived), "hidden": conversation.hidden,
        "summary": conversation.summary, "body": encode(msgspec.structs.replace(conversation, last_message_at=None)),
    }  # fmt: skip


def _read(row: Any) -> Conversation:
    spoken = None if row.last_message_at is None else moment(row.last_message_at)
    return msgspec.structs.replace(isolation.read_conversation(row.body), last_message_at=spoken)


def _create(
    conn: Connection, tenant: str, conversation: Conversation, system: SystemText, labels: tuple[str, ...]
) -> ConversationState:
    version = _version_of(conn, tenant, conversation.agent_id)
    blocks = isolation.labelled(conn, tenant, conversation.agent_id, labels)
    conversation = msgspec.structs.replace(conversation, isolated_labels=labels)
    _insert(conn, tenant, conversation, blocks)
    context_rows.create_for(conn, tenant, conversation, version, system)
    return _get(conn, tenant, conversation.id)


def _fork(
    conn: Connection, tenant: str, conversation: Conversation, source: str, system: SystemText, until: str | None
) -> ConversationState:
    version = _version_of(conn, tenant, conversation.agent_id)
    known = select(contexts.c.id).where(
        contexts.c.tenant_id == tenant, contexts.c.id == source, contexts.c.agent_id == conversation.agent_id
    )  # fmt: skip
    if conn.scalar(known) is None:
        raise _unknown(source)
    _insert(conn, tenant, conversation, isolation.own_blocks(conn, tenant, source))
    context_rows.create_for(conn, tenant, conversation, version, system, source, until)
    return _get(conn, tenant, conversation.id)


def _insert(conn: Connection, tenant: str, conversation: Conversation, blocks: Sequence[Block]) -> None:
    conn.execute(insert(conversations), _row_of(tenant, conversation))
    isolation.isolate(conn, tenant, conversation, blocks, conversation.created_at)


def _version_of(conn: Connection, tenant: str, agent_id: str) -> int:
    """The version of an agent, which stays until the transaction ends."""
    found = select(agents.c.version).where(agents.c.tenant_id == tenant, agents.c.id == agent_id)
    version: int | None = conn.scalar(found.with_for_update(read=True))
    if version is None:
        raise NotFound("Agent not found")
    return version


def _unknown(conversation_id: str) -> NotFound:
    return NotFound(f"Conversation not found: {conversation_id}")


def _get(conn: Connection, tenant: str, conversation_id: str) -> ConversationState:
    found = select(conversations).where(
        conversations.c.tenant_id == tenant, conversations.c.id == conversation_id,
        conversations.c.deleted_at.is_(None),
    )  # fmt: skip
    rows = conn.execute(found).all()
    if not rows:
        raise _unknown(conversation_id)
    return _states(conn, tenant, rows)[0]


def _states(conn: Connection, tenant: str, rows: Sequence[Any]) -> list[ConversationState]:
    """With blocks and message ids: two statements for any number of conversations."""
    if not rows:
        return []
    ids = [row.id for row in rows]
    blocks = isolation.own_ids(conn, tenant, ids)
    inside: dict[str, list[str]] = {conversation_id: [] for conversation_id in ids}
    for context_id, message_id in conn.execute(inheritance.IDS, {"tenant": tenant, "ids": ids}):
        inside[context_id].append(message_id)
    return [
        ConversationState(
            conversation=_read(row), isolated_block_ids=tuple(blocks[row.id]), message_ids=tuple(inside[row.id])
        )
        for row in rows
    ]  # fmt: skip


def _agent_of(conn: Connection, tenant: str, conversation_id: str) -> str:
    found = select(conversations.c.agent_id).where(
        conversations.c.tenant_id == tenant, conversations.c.id == conversation_id,
        conversations.c.deleted_at.is_(None),
    )  # fmt: skip
    agent_id: str | None = conn.scalar(found)
    if agent_id is None:
        raise _unknown(conversation_id)
    return agent_id


def _find(
    conn: Connection, tenant: str, query: ConversationQuery, page: Page, sort_by: str
) -> list[ConversationState]:
    c = conversations.c
    # One that was deleted after the page before may still be the cursor of the next.
    order = Order(c.id, *SORTS[sort_by], c.created_at, c.id, scope=c.tenant_id == tenant)
    rows = page_of(conn, select(conversations).where(*_conditions(tenant, query)), order, page)
    return _states(conn, tenant, rows)


def _conditions(tenant: str, query: ConversationQuery) -> list[ColumnElement[bool]]:
    c = conversations.c
    found = [c.tenant_id == tenant, c.deleted_at.is_(None)]
    if query.agent_id is not None:
        found.append(c.agent_id == query.agent_id)
    if query.archived is not None:
        found.append(c.archived_at.is_not(None) if query.archived else c.archived_at.is_(None))
    if query.hidden is not None:
        found.append(c.hidden.is_(query.hidden))
    if query.summary_search is not None:
        found.append(c.summary.icontains(query.summary_search, autoescape=True))
    return found


def _locked(conn: Connection, tenant: str, conversation_id: str) -> Any:
    """The row of a conversation, which nobody else can change until the transaction ends.

    Its agent is locked before it, as by whoever deletes the agent: the other way round the two would deadlock.
    """
    owner = select(agents.c.id).where(agents.c.id == _agent_of(conn, tenant, conversation_id))
    conn.execute(owner.with_for_update(key_share=True))
    found = select(conversations).where(
        conversations.c.tenant_id == tenant, conversations.c.id == conversation_id,
        conversations.c.deleted_at.is_(None),
    )  # fmt: skip
    row = conn.execute(found.with_for_update()).one_or_none()
    if row is None:
        raise _unknown(conversation_id)
    return row


def _update(
    conn: Connection, tenant: str, conversation_id: str, change: Callable[[Conversation], Conversation]
) -> ConversationState:
    before = _read(_locked(conn, tenant, conversation_id))
    after = change(before)
    if after != before:
        conn.execute(update(conversations).where(conversations.c.id == before.id).values(_row_of(tenant, after)))
    if any(getattr(after, field) != getattr(before, field) for field in ("llm", "settings", "context_window_limit")):
        # Contexts that are kept in memory are read again, and the system message, which depends on the model, is
        # compiled again even if a run with the former model saves a step meanwhile.
        bump(conn, tenant, agents.c.id == before.agent_id)
    return _get(conn, tenant, conversation_id)


def _touch(conn: Connection, tenant: str, conversation_id: str, at: datetime) -> str:
    c = conversations.c
    written = (
        update(conversations)
        .where(c.tenant_id == tenant, c.id == conversation_id, c.deleted_at.is_(None))
        .values(last_message_at=micros(at))
        .returning(c.agent_id)
    )
    agent_id: str | None = conn.scalar(written)
    if agent_id is None:
        raise _unknown(conversation_id)
    return agent_id


def _delete(conn: Connection, tenant: str, conversation_id: str, at: datetime) -> None:
    row = _locked(conn, tenant, conversation_id)
    # Whoever accepts or enqueues a run holds this row, so none can slip in.
    conn.execute(select(contexts.c.id).where(contexts.c.id == row.id).with_for_update())
    working = select(runs.c.id).where(runs.c.tenant_id == tenant, runs.c.agent_id == row.agent_id, OPEN)
    run_id = conn.scalar(working.where(runs.c.context_id == row.id).order_by(runs.c.sequence).limit(1))
    if run_id is not None:
        raise Busy(row.id, run_id)
    conn.execute(delete(contexts).where(contexts.c.id == row.id))
    isolation.discard(conn, tenant, isolation.own_ids(conn, tenant, [row.id])[row.id])
    conn.execute(update(conversations).where(conversations.c.id == row.id).values(deleted_at=micros(at)))
