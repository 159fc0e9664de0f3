"""The block edits of a step, saved with it (port `BlockEdit`)."""

from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, or_, select

from perdure.domain.errors import StaleBlock
from perdure.domain.ports import BlockEdit
from perdure.domain.records import Block
from perdure.store import isolation
from perdure.store.blocks import clean, create, save
from perdure.store.links import attach, bump, detach, mark, with_block
from perdure.store.schema import agent_blocks, agents, block_tags, blocks


def apply(
    conn: Connection, tenant: str, agent_id: str, edits: Iterable[BlockEdit], conversation_id: str | None = None
) -> int | None:
    """Save what a step did to memory; answers the agent's version after it. Raises StaleBlock.

    A saved block has the version `base_version + 1`, however many edits of it the step made. A block that the
    conversation has for itself is gone when it is detached, and a new one with an isolated label is its own.
    """
    net = net_edits(edits)
    versions = bump(conn, tenant, or_(agents.c.id == agent_id, with_block(*(edit.block.id for edit in net))))
    for edit in net:
        if edit.base_version:
            _change(conn, tenant, agent_id, edit, conversation_id)
        elif not edit.detach:
            _add(conn, tenant, agent_id, edit, conversation_id)
    return versions.get(agent_id)


def net_edits(edits: Iterable[BlockEdit]) -> list[BlockEdit]:
    """One edit per block: from the version that the first was made from to the state that the last wanted.

    Those that detach come first, so that a new block may take over their label.
    """
    net: dict[str, BlockEdit] = {}
    for edit in edits:
        first = net.get(edit.block.id, edit)
        net[edit.block.id] = msgspec.structs.replace(edit, base_version=first.base_version)
    return sorted(net.values(), key=lambda edit: not edit.detach)


def _as_saved(edit: BlockEdit) -> Block:
    return msgspec.structs.replace(clean(edit.block), version=edit.base_version + 1)


def _change(conn: Connection, tenant: str, agent_id: str, edit: BlockEdit, conversation_id: str | None) -> None:
    block = _as_saved(edit)
    if not save(conn, tenant, block, based_on=edit.base_version):
        raise StaleBlock(f"The block {block.label!r} changed meanwhile. Make the edit again from its present text.")
    mark(conn, tenant, block_tags, block.id, block.tags, fresh=False)
    if edit.detach and conversation_id and isolation.remove(conn, tenant, conversation_id, block.id):
        return
    if edit.detach and not detach(conn, agent_blocks, agent_id, block.id):
        raise StaleBlock(f"The block {block.label!r} was detached meanwhile. Look at the present blocks again.")


def _add(conn: Connection, tenant: str, agent_id: str, edit: BlockEdit, conversation_id: str | None) -> None:
    block = create(conn, tenant, _as_saved(edit))
    if conversation_id and isolation.isolates(conn, tenant, conversation_id, block.label):
        isolation.add(conn, tenant, conversation_id, block.id)
        return
    taken = conn.scalar(
        select(blocks.c.id)
        .join(agent_blocks, agent_blocks.c.block_id == blocks.c.id)
        .where(agent_blocks.c.agent_id == agent_id, blocks.c.label == block.label)
        .limit(1)
    )
    if taken is not None:
        raise StaleBlock(f"Another block with the label {block.label!r} was attached meanwhile. Edit that one.")
    attach(conn, tenant, agent_blocks, agent_id, [block.id])
