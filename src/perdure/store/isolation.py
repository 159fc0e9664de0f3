"""Blocks that one conversation has for itself (behaviour spec §6.3, isolated blocks).

A conversation names labels whose blocks it does not share; the copies made for it hang on it instead of on the agent.
In its contexts they take the place of the agent's blocks of those labels. Above are the files of conversations,
contexts and edits; beside it `links`, which knows what hangs on agents.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select

from perdure.domain.conversations import Conversation
from perdure.domain.errors import Invalid
from perdure.domain.ids import new_id
from perdure.domain.records import Block
from perdure.store import blocks as block_rows
from perdure.store.links import blocks_of, read_block
from perdure.store.schema import agent_blocks, blocks, conversation_blocks, conversations

_CONVERSATION = msgspec.json.Decoder(Conversation)

OWN_BLOCKS = (
    select(conversation_blocks.c.conversation_id, blocks.c.id, blocks.c.body, blocks.c.value)
    .join(blocks, blocks.c.id == conversation_blocks.c.block_id)
    .where(conversation_blocks.c.tenant_id == bindparam("tenant"))
    .where(conversation_blocks.c.conversation_id.in_(bindparam("ids", expanding=True)))
    .order_by(conversation_blocks.c.conversation_id, blocks.c.created_at, blocks.c.id)
)
"""The blocks that conversations have for themselves."""


def read_conversation(body: str) -> Conversation:
    """A conversation from its row. When it was last written to stands in a column of its own only."""
    return _CONVERSATION.decode(body)


def in_sight(conn: Connection, tenant: str, agent_id: str, conversation: Conversation | None) -> tuple[Block, ...]:
    """The blocks of a context: the agent's, save for those in whose place the conversation has its own."""
    shared = blocks_of(conn, tenant, [agent_id])[agent_id]
    if conversation is None or not conversation.isolated_labels:
        return tuple(shared)
    own = own_blocks(conn, tenant, conversation.id)
    taken = {*conversation.isolated_labels, *(block.label for block in own)}
    return (*(block for block in shared if block.label not in taken), *own)


def own_blocks(conn: Connection, tenant: str, conversation_id: str) -> list[Block]:
    """The blocks that the conversation has for itself."""
    rows = conn.execute(OWN_BLOCKS, {"tenant": tenant, "ids": [conversation_id]})
    return [read_block(row.body, row.value) for row in rows]


def isolate(
    conn: Connection, tenant: str, conversation: Conversation, sources: Iterable[Block], now: datetime
) -> None:
    """Give a new conversation copies of these blocks. They keep their age, so the prompt keeps its order."""
    for source in sources:
        copy = msgspec.structs.replace(source, id=new_id("block"), updated_at=now, version=1)
        add(conn, tenant, conversation.id, block_rows.create(conn, tenant, copy).id)


def labelled(conn: Connection, tenant: str, agent_id: str, labels: Sequence[str]) -> list[Block]:
    """The agent's blocks of these labels. Raises Invalid with the labels there are."""
    known = {block.label: block for block in blocks_of(conn, tenant, [agent_id])[agent_id]}
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise Invalid(
            f"The agent has no block with the label {unknown[0]!r} to isolate. Its labels: "
            f"{', '.join(known) or 'none'}."
        )
    return [known[label] for label in labels]


def add(conn: Connection, tenant: str, conversation_id: str, block_id: str) -> None:
    """Let a conversation have a block for itself."""
    conn.execute(
        insert(conversation_blocks),
        {"conversation_id": conversation_id, "block_id": block_id, "tenant_id": tenant},
    )  # fmt: skip


def remove(conn: Connection, tenant: str, conversation_id: str, block_id: str) -> bool:
    """Delete a block that the conversation has for itself; answers whether it was one."""
    mine = select(conversation_blocks.c.block_id).where(
        conversation_blocks.c.conversation_id == conversation_id, conversation_blocks.c.block_id == block_id
    )  # fmt: skip
    return conn.execute(delete(blocks).where(blocks.c.tenant_id == tenant, blocks.c.id.in_(mine))).rowcount > 0


def isolates(conn: Connection, tenant: str, conversation_id: str, label: str) -> bool:
    """Whether blocks of this label belong to the conversation alone."""
    found = select(conversations.c.body).where(conversations.c.tenant_id == tenant)
    body = conn.scalar(found.where(conversations.c.id == conversation_id))
    return body is not None and label in read_conversation(body).isolated_labels


def own_ids(conn: Connection, tenant: str, conversation_ids: Sequence[str]) -> dict[str, list[str]]:
    """The ids of the blocks that each conversation has for itself."""
    found: dict[str, list[str]] = {conversation_id: [] for conversation_id in conversation_ids}
    for row in conn.execute(OWN_BLOCKS, {"tenant": tenant, "ids": conversation_ids}):
        found[row.conversation_id].append(row.id)
    return found


def of_agent(conn: Connection, agent_id: str) -> list[str]:
    """The ids of the blocks that the agent's conversations have for themselves."""
    found = (
        select(conversation_blocks.c.block_id)
        .join(conversations, conversations.c.id == conversation_blocks.c.conversation_id)
        .where(conversations.c.agent_id == agent_id)
    )
    return list(conn.scalars(found))


def discard(conn: Connection, tenant: str, block_ids: Sequence[str]) -> None:
    """Delete blocks whose conversation is gone, but for those that somebody attached to an agent meanwhile."""
    if not block_ids:
        return
    kept = select(agent_blocks.c.block_id).where(agent_blocks.c.block_id.in_(block_ids))
    orphans = delete(blocks).where(blocks.c.tenant_id == tenant, blocks.c.id.in_(block_ids))
    conn.execute(orphans.where(blocks.c.id.not_in(kept)))
