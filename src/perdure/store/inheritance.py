"""Messages that a fork shares with the context it was made from: rows are linked, never copied.

A link has the place that the message had there, so that own and shared messages of a context are ordered by one
number: the system message stands at 0, what is said after the fork has greater numbers than all before it. A link that
left the context stays, as history. Above are `contexts`, `conversations` and `messages`.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Connection,
    bindparam,
    func,
    insert,
    literal,
    select,
    union_all,
    update,
)

from perdure.domain.errors import NotFound
from perdure.store.schema import context_inherited as links
from perdure.store.schema import messages

PLACE = func.coalesce(messages.c.position, messages.c.sequence_id)
"""Where an own message stands in its context."""


def members(tenant: Any, contexts: ColumnElement[bool], linked: ColumnElement[bool]) -> "CompoundSelect[Any]":
    """What is in contexts, shared or not: context_id, place, sequence_id, id and body, in no order."""
    own = select(
        messages.c.context_id.label("context_id"), PLACE.label("place"), messages.c.sequence_id, messages.c.id,
        messages.c.body,
    ).where(messages.c.tenant_id == tenant, contexts, messages.c.in_context)  # fmt: skip
    shared = (
        select(links.c.context_id, links.c.position, messages.c.sequence_id, messages.c.id, messages.c.body)
        .join(messages, messages.c.sequence_id == links.c.message_sequence)
        .where(messages.c.tenant_id == tenant, linked, links.c.in_context)
    )
    return union_all(own, shared)


_ids: BindParameter[Any] = bindparam("ids", expanding=True)
_in = members(bindparam("tenant"), messages.c.context_id.in_(_ids), links.c.context_id.in_(_ids)).subquery()
PLACES = select(_in.c.id, _in.c.place).order_by(_in.c.place)
"""The ids of the messages in one context with their places, in order."""
IDS = select(_in.c.context_id, _in.c.id).order_by(_in.c.context_id, _in.c.place)
"""The ids of the messages in contexts, in order."""
BODIES = select(_in.c.body).order_by(_in.c.place)
"""The messages of one context, in the order the model sees them."""


def share(conn: Connection, tenant: str, source: str, context_id: str, until: str | None) -> int:
    """Link a new context to all that its source has now, but the system message; answers how many messages that is.

    `until` names the last one to take. Raises NotFound if the source has no such message.
    """
    there = members(tenant, messages.c.context_id == source, links.c.context_id == source).subquery()
    wanted = select(literal(context_id), there.c.sequence_id, there.c.place, literal(True)).where(there.c.place != 0)
    if until is not None:
        last = conn.scalar(select(there.c.place).where(there.c.id == until))
        if last is None:
            raise NotFound(
                f"Message not found: {until} is not in the context to be forked. Use an id from its "
                "in_context_message_ids."
            )
        wanted = wanted.where(there.c.place <= last)
    columns = [links.c.context_id, links.c.message_sequence, links.c.position, links.c.in_context]
    linked = insert(links).from_select(columns, wanted)
    return conn.execute(linked.execution_options(preserve_rowcount=True)).rowcount


def leave(conn: Connection, tenant: str, context_id: str, before: int | None = None) -> None:
    """Take everything but the system message out of the context, or what stands before a place; history is kept."""
    own = update(messages).where(
        messages.c.tenant_id == tenant, messages.c.context_id == context_id, messages.c.in_context,
        messages.c.position.is_distinct_from(0),
    )  # fmt: skip
    shared = update(links).where(links.c.context_id == context_id, links.c.in_context)
    if before is not None:
        own, shared = own.where(before > PLACE), shared.where(links.c.position < before)
    conn.execute(own.values(in_context=False))
    conn.execute(shared.values(in_context=False))


def shared_with(conn: Connection, context_id: str) -> bool:
    """Whether the context shares messages with another one, in its context or in its history."""
    return conn.scalar(select(links.c.context_id).where(links.c.context_id == context_id).limit(1)) is not None


def history(tenant: str, conversation_ids: Sequence[str]) -> "CompoundSelect[Any]":
    """The numbers of all messages of conversations, those they share included."""
    own = select(messages.c.sequence_id).where(
        messages.c.tenant_id == tenant, messages.c.conversation_id.in_(conversation_ids)
    )  # fmt: skip
    return union_all(own, select(links.c.message_sequence).where(links.c.context_id.in_(conversation_ids)))
