"""Contexts: what a run works on, and which messages are in it (port `Contexts`)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, func, insert, select, update

from perdure.domain.errors import Busy, Invalid, NotFound
from perdure.domain.messages import Message, decode
from perdure.domain.records import Agent, Context
from perdure.store.codec import encode, micros, moment
from perdure.store.database import Database
from perdure.store.links import blocks_of, tools_of
from perdure.store.messages import IN_CONTEXT, REWRITE, insert_messages
from perdure.store.schema import HOLDS, agents, contexts, messages, runs

_AGENT = msgspec.json.Decoder(Agent)

NEWEST = select(func.coalesce(func.max(messages.c.sequence_id), 0)).where(
    messages.c.context_id == bindparam("context_id"), messages.c.in_context
)  # fmt: skip
"""The number of the newest message in a context, 0 if there is none. What is appended is in the context at first, and
taking it out raises the revision, so both together tell whether a remembered context is still true."""

LOAD = (
    select(contexts, agents.c.body.label("agent"), agents.c.version, NEWEST.scalar_subquery().label("newest"))
    .join(agents, agents.c.id == contexts.c.agent_id)
    .where(contexts.c.tenant_id == bindparam("tenant"), contexts.c.id == bindparam("context_id"))
)
"""A context with its agent."""

HOLDER = select(runs.c.id).where(
    runs.c.tenant_id == bindparam("tenant"), runs.c.context_id == bindparam("context_id"), HOLDS
)  # fmt: skip
"""The run that holds a context."""


class SqlContexts:
    """The contexts of one tenant."""

    def __init__(self, db: Database, tenant: str):
        self._db, self._tenant = db, tenant

    async def load(self, context_id: str) -> Context:
        """Everything of a context. Raises NotFound."""
        return await self._db.read(_load, self._tenant, context_id)

    async def reset(
        self, context_id: str, system_message: Message, messages: Sequence[Message], *, compiled_version: int,
        compiled_at: datetime, hidden_count: int,
    ) -> None:
        """Context = [the rewritten system message, `messages`]; history is kept.

        Raises NotFound, Invalid (not this context's system message), Busy while a run holds it.
        """
        compiled = {
            "compiled_version": compiled_version, "compiled_at": micros(compiled_at), "hidden_count": hidden_count,
        }  # fmt: skip
        await self._db.write(_reset, self._tenant, context_id, system_message, tuple(messages), compiled)


def create(conn: Connection, tenant: str, agent: Agent, spoken: Sequence[Message]) -> None:
    """The first context of a new agent, its messages in it, the system message first."""
    conn.execute(
        insert(contexts),
        {
            "id": agent.id, "tenant_id": tenant, "agent_id": agent.id, "conversation_id": None, "revision": 1,
            "compiled_version": 1, "compiled_at": micros(agent.created_at), "hidden_count": 0,
        },
    )  # fmt: skip
    insert_messages(
        conn, tenant, spoken, agent_id=agent.id, context_id=agent.id, conversation_id=None, system_first=True
    )  # fmt: skip


def _load(conn: Connection, tenant: str, context_id: str) -> Context:
    key = {"tenant": tenant, "context_id": context_id}
    row = conn.execute(LOAD, key).one_or_none()
    if row is None:
        raise NotFound("Agent not found")
    agent_id = row.agent_id
    return Context(
        id=context_id, agent=_AGENT.decode(row.agent),
        blocks=tuple(blocks_of(conn, tenant, [agent_id])[agent_id]),
        tools=tuple(tools_of(conn, tenant, [agent_id])[agent_id]),
        messages=[decode(body) for body in conn.scalars(IN_CONTEXT, key)], agent_version=row.version,
        compiled_version=row.compiled_version, compiled_at=moment(row.compiled_at), revision=row.revision,
        last_sequence=row.newest, hidden_count=row.hidden_count, conversation_id=row.conversation_id,
    )  # fmt: skip


def take(conn: Connection, tenant: str, context_id: str) -> Any:
    """Lock a context that no run holds, for the rest of the transaction; answers its row. Raises NotFound, Busy.

    Accepting a run locks the same row, so neither can slip in between the other's look and its change.
    """
    found = select(contexts).where(contexts.c.tenant_id == tenant, contexts.c.id == context_id)
    row = conn.execute(found.with_for_update()).one_or_none()
    if row is None:
        raise NotFound("Agent not found")
    holder = conn.scalar(HOLDER, {"tenant": tenant, "context_id": context_id})
    if holder is not None:
        raise Busy(context_id, holder)
    return row


def _reset(
    conn: Connection, tenant: str, context_id: str, system: Message, spoken: Sequence[Message], compiled: dict[str, int]
) -> None:
    row = take(conn, tenant, context_id)
    mine = (messages.c.tenant_id == tenant, messages.c.context_id == context_id)
    conn.execute(
        update(messages).where(*mine, messages.c.in_context, messages.c.id != system.id).values(in_context=False)
    )  # fmt: skip
    rewrite(conn, tenant, context_id, system)
    insert_messages(
        conn, tenant, spoken, agent_id=row.agent_id, context_id=context_id, conversation_id=row.conversation_id
    )  # fmt: skip
    conn.execute(
        update(contexts).where(contexts.c.id == context_id).values(revision=contexts.c.revision + 1, **compiled)
    )  # fmt: skip


def rewrite(conn: Connection, tenant: str, context_id: str, system: Message) -> None:
    """Store the recompiled system message. Raises Invalid if the context has no such message."""
    key = {"tenant": tenant, "context": context_id, "message": system.id, "new_body": encode(system)}
    if not conn.execute(REWRITE, key).rowcount:
        raise Invalid(f"{system.id} is not the system message of {context_id}. Load the context again.")


def choose(conn: Connection, tenant: str, context_id: str, message_ids: Sequence[str]) -> None:
    """Put exactly these messages of the context's history into it, in this order, behind its system message.

    Raises NotFound, Busy, Invalid (a message that is not of this context).
    """
    take(conn, tenant, context_id)
    mine = (messages.c.tenant_id == tenant, messages.c.context_id == context_id)
    system = set(conn.scalars(select(messages.c.id).where(*mine, messages.c.in_context, messages.c.position == 0)))
    chosen = [message_id for message_id in dict.fromkeys(message_ids) if message_id not in system]
    numbers = _numbers(conn, context_id, chosen, mine)
    conn.execute(
        update(messages).where(*mine, messages.c.in_context, messages.c.position.is_distinct_from(0))
        .values(in_context=False)
    )  # fmt: skip
    # New messages get greater numbers than all of these, so the old numbers in the new order keep them in front.
    for message_id, position in zip(chosen, sorted(numbers.values()), strict=True):
        place = None if numbers[message_id] == position else position
        conn.execute(
            update(messages).where(*mine, messages.c.id == message_id).values(in_context=True, position=place)
        )  # fmt: skip
    conn.execute(update(contexts).where(contexts.c.id == context_id).values(revision=contexts.c.revision + 1))


def _numbers(conn: Connection, context_id: str, chosen: Sequence[str], mine: Any) -> dict[str, int]:
    found = conn.execute(select(messages.c.id, messages.c.sequence_id).where(*mine, messages.c.id.in_(chosen)))
    numbers = {row.id: row.sequence_id for row in found}
    unknown = [message_id for message_id in chosen if message_id not in numbers]
    if unknown:
        raise Invalid(f"Not messages of {context_id}: {', '.join(unknown[:5])}. Use ids from its message list.")
    return numbers
