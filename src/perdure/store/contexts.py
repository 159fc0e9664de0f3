"""Contexts: what a run works on, and which messages are in it (port `Contexts`)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, func, insert, select, update

from perdure.domain.conversations import Conversation, SystemText, in_force
from perdure.domain.errors import Busy, Invalid, NotFound
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text, decode
from perdure.domain.records import Agent, Block, Context
from perdure.store import inheritance
from perdure.store.codec import encode, micros, moment
from perdure.store.database import Database
from perdure.store.isolation import in_sight, read_conversation
from perdure.store.links import tools_of
from perdure.store.messages import IN_CONTEXT, REWRITE, insert_messages
from perdure.store.schema import HOLDS, agents, contexts, conversations, messages, runs

_AGENT = msgspec.json.Decoder(Agent)

NEWEST = select(func.coalesce(func.max(messages.c.sequence_id), 0)).where(
    messages.c.context_id == bindparam("context_id"), messages.c.in_context
)  # fmt: skip
"""The number of the newest message in a context, 0 if there is none. What is appended is in the context at first, and
taking it out raises the revision, so both together tell whether a remembered context is still true."""

LOAD = (
    select(
        contexts, agents.c.body.label("agent"), agents.c.version, conversations.c.body.label("conversation"),
        NEWEST.scalar_subquery().label("newest"),
    )
    .join(agents, agents.c.id == contexts.c.agent_id)
    .outerjoin(conversations, conversations.c.id == contexts.c.conversation_id)
    .where(contexts.c.tenant_id == bindparam("tenant"), contexts.c.id == bindparam("context_id"))
)
"""A context with its agent and, if it is not the agent's own, its conversation."""

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

    async def blocks(self, context_id: str) -> tuple[Block, ...]:
        """The blocks in sight there. Raises NotFound."""
        return await self._db.read(_blocks, self._tenant, context_id)

    async def recompile(self, context_id: str, system: SystemText, now: datetime, *, dry_run: bool = False) -> str:
        """Write the system message anew, with the present time and count; answers its text.

        With `dry_run` nothing is stored. Raises NotFound, Invalid (no system message), Busy while a run holds it.
        """
        if dry_run:
            return await self._db.read(_compiled, self._tenant, context_id, system, now)
        return await self._db.write(_recompile, self._tenant, context_id, system, now)

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
    _insert(conn, tenant, agent.id, agent.id, None, 1, agent.created_at)
    insert_messages(
        conn, tenant, spoken, agent_id=agent.id, context_id=agent.id, conversation_id=None, system_first=True
    )  # fmt: skip


def create_for(
    conn: Connection, tenant: str, conversation: Conversation, agent_version: int, system: SystemText,
    source: str | None = None, until: str | None = None,
) -> None:
    """The context of a new conversation, its blocks being there; with what `source` has up to `until`, if it is given.

    Raises NotFound (message).
    """
    here, now = conversation.id, conversation.created_at
    _insert(conn, tenant, here, conversation.agent_id, here, agent_version, now)
    inside = 0 if source is None else inheritance.share(conn, tenant, source, here, until)
    hidden = _hidden(conn, conversation.agent_id, inside, coming=1)
    conn.execute(update(contexts).where(contexts.c.id == here).values(hidden_count=hidden))
    text = system(_bare(conn, tenant, here))
    first = Message(
        id=new_id("message"), role="system", created_at=now, content=(Text(text),), agent_id=conversation.agent_id,
        conversation_id=here,
    )  # fmt: skip
    insert_messages(
        conn, tenant, [first], agent_id=conversation.agent_id, context_id=here, conversation_id=here, system_first=True
    )  # fmt: skip


def _insert(
    conn: Connection, tenant: str, context_id: str, agent_id: str, conversation_id: str | None, version: int,
    now: datetime,
) -> None:
    conn.execute(
        insert(contexts),
        {
            "id": context_id, "tenant_id": tenant, "agent_id": agent_id, "conversation_id": conversation_id,
            "revision": 1, "compiled_version": version, "compiled_at": micros(now), "hidden_count": 0,
        },
    )  # fmt: skip


def _hidden(conn: Connection, agent_id: str, inside: int, coming: int = 0) -> int:
    """How many of the agent's messages are outside a context that has so many, system messages not counted.

    Each conversation has one system message, also one that was closed, and the agent has its own: counting these is
    cheaper than reading roles. `coming`: one of them is not stored yet.
    """
    said = conn.scalar(select(func.count()).where(messages.c.agent_id == agent_id)) or 0
    talks = conn.scalar(select(func.count()).where(conversations.c.agent_id == agent_id)) or 0
    return max(0, said + coming - (talks + 1) - inside)


def _load(conn: Connection, tenant: str, context_id: str) -> Context:
    context = _bare(conn, tenant, context_id)
    return msgspec.structs.replace(context, messages=_messages_in(conn, tenant, context))


def _messages_in(conn: Connection, tenant: str, context: Context) -> list[Message]:
    if context.conversation_id is None:  # the agent's own: nothing is shared there
        bodies = conn.scalars(IN_CONTEXT, {"tenant": tenant, "context_id": context.id})
    else:
        bodies = conn.scalars(inheritance.BODIES, {"tenant": tenant, "ids": [context.id]})
    return [decode(body) for body in bodies]


def _bare(conn: Connection, tenant: str, context_id: str) -> Context:
    """A context without its messages."""
    row = conn.execute(LOAD, {"tenant": tenant, "context_id": context_id}).one_or_none()
    if row is None:
        raise NotFound(_unknown(context_id))
    agent, conversation = _AGENT.decode(row.agent), read_conversation(row.conversation) if row.conversation else None
    return Context(
        id=context_id, agent=in_force(agent, conversation) if conversation else agent,
        blocks=in_sight(conn, tenant, row.agent_id, conversation),
        tools=tuple(tools_of(conn, tenant, [row.agent_id])[row.agent_id]), messages=[], agent_version=row.version,
        compiled_version=row.compiled_version, compiled_at=moment(row.compiled_at), revision=row.revision,
        last_sequence=row.newest, hidden_count=row.hidden_count, conversation_id=row.conversation_id,
    )  # fmt: skip


def _unknown(context_id: str) -> str:
    return "Agent not found" if context_id.startswith("agent-") else f"Conversation not found: {context_id}"


def _blocks(conn: Connection, tenant: str, context_id: str) -> tuple[Block, ...]:
    row = conn.execute(LOAD, {"tenant": tenant, "context_id": context_id}).one_or_none()
    if row is None:
        raise NotFound(_unknown(context_id))
    conversation = read_conversation(row.conversation) if row.conversation else None
    return in_sight(conn, tenant, row.agent_id, conversation)


def take(conn: Connection, tenant: str, context_id: str) -> Any:
    """Lock a context that no run holds, for the rest of the transaction; answers its row. Raises NotFound, Busy.

    Accepting a run locks the same row, so neither can slip in between the other's look and its change.
    """
    found = select(contexts).where(contexts.c.tenant_id == tenant, contexts.c.id == context_id)
    row = conn.execute(found.with_for_update()).one_or_none()
    if row is None:
        raise NotFound(_unknown(context_id))
    holder = conn.scalar(HOLDER, {"tenant": tenant, "context_id": context_id})
    if holder is not None:
        raise Busy(context_id, holder)
    return row


def _reset(
    conn: Connection, tenant: str, context_id: str, system: Message, spoken: Sequence[Message], compiled: dict[str, int]
) -> None:
    row = take(conn, tenant, context_id)
    inheritance.leave(conn, tenant, context_id)
    rewrite(conn, tenant, context_id, system)
    insert_messages(
        conn, tenant, spoken, agent_id=row.agent_id, context_id=context_id, conversation_id=row.conversation_id
    )  # fmt: skip
    conn.execute(
        update(contexts).where(contexts.c.id == context_id).values(revision=contexts.c.revision + 1, **compiled)
    )  # fmt: skip


def _recompile(conn: Connection, tenant: str, context_id: str, system: SystemText, now: datetime) -> str:
    take(conn, tenant, context_id)
    context = _now(conn, tenant, context_id, now)
    first = _first(conn, tenant, context_id)
    text = system(context)
    rewrite(conn, tenant, context_id, msgspec.structs.replace(first, content=(Text(text),)))
    compiled = {
        "compiled_version": context.agent_version, "compiled_at": micros(now), "hidden_count": context.hidden_count,
        "revision": context.revision + 1,
    }  # fmt: skip
    conn.execute(update(contexts).where(contexts.c.id == context_id).values(**compiled))
    return text


def _compiled(conn: Connection, tenant: str, context_id: str, system: SystemText, now: datetime) -> str:
    return system(_now(conn, tenant, context_id, now))


def _now(conn: Connection, tenant: str, context_id: str, now: datetime) -> Context:
    """A context without its messages, as it is to be compiled now."""
    context = _bare(conn, tenant, context_id)
    inside = conn.execute(inheritance.IDS, {"tenant": tenant, "ids": [context_id]}).all()
    hidden = _hidden(conn, context.agent.id, max(0, len(inside) - 1))
    return msgspec.structs.replace(context, compiled_at=now, hidden_count=hidden)


def _first(conn: Connection, tenant: str, context_id: str) -> Message:
    """The system message of a context. Raises Invalid if it has none."""
    found = select(messages.c.body).where(
        messages.c.tenant_id == tenant, messages.c.context_id == context_id, messages.c.in_context,
        messages.c.position == 0,
    )  # fmt: skip
    body = conn.scalar(found)
    if body is None:
        raise Invalid(f"{context_id} has no system message to recompile.")
    return decode(body)


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
    inheritance.leave(conn, tenant, context_id)
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
