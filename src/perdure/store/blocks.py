"""Memory blocks (port `Blocks`)."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, delete, false, insert, select, update

from perdure.domain.errors import Conflict, NotFound
from perdure.domain.ports import BlockQuery, Page
from perdure.domain.records import Block
from perdure.store.codec import encode, micros, plain, text_or_none
from perdure.store.database import Database
from perdure.store.links import bump, count_of_agents, mark, marked, read_block, with_block
from perdure.store.paging import Order, page_of
from perdure.store.schema import agent_blocks, block_tags, blocks

SHOWN = ("label", "value", "description", "limit", "read_only")
"""Fields that the model sees; a change of another one does not recompile anything."""

INSERT_BLOCK = insert(blocks)


class SqlBlocks:
    """The blocks of one tenant."""

    def __init__(self, db: Database, tenant: str):
        self._db, self._tenant = db, tenant

    async def create(self, block: Block) -> Block:
        """Store a block that belongs to no agent yet."""
        return await self._db.write(create, self._tenant, block)

    async def get(self, block_id: str) -> Block:
        """One block. Raises NotFound."""
        return await self._db.read(get, self._tenant, block_id)

    async def find(self, query: BlockQuery, page: Page) -> list[Block]:
        """A page of blocks. Raises NotFound for an unknown cursor."""
        return await self._db.read(_find, self._tenant, query, page)

    async def update(self, block_id: str, change: Callable[[Block], Block]) -> Block:
        """Apply a pure change; agents that have the block are marked for recompiling if the model sees the change.

        Raises NotFound, and Conflict if an agent has another block of the new label.
        """
        return await self._db.write(_update, self._tenant, block_id, change)

    async def delete(self, block_id: str) -> None:
        """Remove the block from everywhere. Raises NotFound."""
        await self._db.write(_delete, self._tenant, block_id)


def create(conn: Connection, tenant: str, block: Block) -> Block:
    """Insert a block; answers it as it is stored."""
    block = clean(block)
    conn.execute(INSERT_BLOCK, row_of(tenant, block))
    mark(conn, tenant, block_tags, block.id, block.tags, fresh=True)
    return block


def clean(block: Block) -> Block:
    """The block without what cannot be stored in columns (NUL is stripped from blocks, spec §7.1)."""
    label, value = plain(block.label), plain(block.value)
    if (label, value) == (block.label, block.value):
        return block
    return msgspec.structs.replace(block, label=label, value=value)


def row_of(tenant: str, block: Block) -> dict[str, Any]:
    """The row of a block. The value, often long, stands in its own column only."""
    extra = block.extra
    return {
        "id": block.id, "tenant_id": tenant, "label": block.label, "value": block.value,
        "description": block.description, "template_name": text_or_none(extra.get("template_name")),
        "is_template": bool(extra.get("is_template")), "project_id": text_or_none(extra.get("project_id")),
        "created_at": micros(block.created_at), "updated_at": micros(block.updated_at), "version": block.version,
        "body": encode(msgspec.structs.replace(block, value="")),
    }  # fmt: skip


def get(conn: Connection, tenant: str, block_id: str, *, lock: bool = False) -> Block:
    """One block, locked for the transaction if it shall be changed. Raises NotFound."""
    query = select(blocks.c.body, blocks.c.value).where(blocks.c.tenant_id == tenant, blocks.c.id == block_id)
    row = conn.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"Block not found: {block_id}")
    return read_block(*row)


def _find(conn: Connection, tenant: str, query: BlockQuery, page: Page) -> list[Block]:
    order = Order(blocks.c.id, blocks.c.created_at, blocks.c.id, scope=blocks.c.tenant_id == tenant)
    wanted: Select[Any] = select(blocks.c.body, blocks.c.value).where(*_conditions(tenant, query))
    return [read_block(row.body, row.value) for row in page_of(conn, wanted, order, page)]


def _conditions(tenant: str, query: BlockQuery) -> list[ColumnElement[bool]]:
    c, count = blocks.c, count_of_agents()
    found = [c.tenant_id == tenant]
    exact = ((c.label, query.label), (c.template_name, query.name), (c.project_id, query.project_id),
             (count, query.agents_eq))  # fmt: skip
    found += [column == value for column, value in exact if value is not None]
    parts = ((c.label, query.label_search), (c.description, query.description_search), (c.value, query.value_search))
    found += [column.icontains(value, autoescape=True) for column, value in parts if value is not None]
    if query.agents_gt is not None:
        found.append(count > query.agents_gt)
    if query.agents_lt is not None:
        found.append(count < query.agents_lt)
    if query.tags:
        found.append(marked(block_tags, c.id, tenant, query.tags, every=query.match_all_tags))
    if query.templates_only:
        found.append(c.is_template)
    if query.identity_id is not None:
        found.append(false())  # blocks cannot be given to identities yet, so none belongs to this one
    return found


def _update(conn: Connection, tenant: str, block_id: str, change: Callable[[Block], Block]) -> Block:
    before = get(conn, tenant, block_id, lock=True)
    after = clean(change(before))
    if after == before:
        return before
    after = msgspec.structs.replace(after, version=before.version + 1)
    if any(getattr(after, field) != getattr(before, field) for field in SHOWN):
        bump(conn, tenant, with_block(block_id))
    if after.label != before.label:
        _refuse_taken_label(conn, block_id, after.label)
    save(conn, tenant, after)
    if after.tags != before.tags:
        mark(conn, tenant, block_tags, block_id, after.tags, fresh=False)
    return after


def save(conn: Connection, tenant: str, block: Block, *, based_on: int | None = None) -> bool:
    """Write a changed block, if it still has the version `based_on`; answers whether it was written."""
    changed = update(blocks).where(blocks.c.tenant_id == tenant, blocks.c.id == block.id)
    if based_on is not None:
        changed = changed.where(blocks.c.version == based_on)
    return conn.execute(changed.values(row_of(tenant, block))).rowcount > 0


def _refuse_taken_label(conn: Connection, block_id: str, label: str) -> None:
    mine = select(agent_blocks.c.agent_id).where(agent_blocks.c.block_id == block_id)
    taken = conn.execute(
        select(agent_blocks.c.agent_id, blocks.c.id)
        .join(blocks, blocks.c.id == agent_blocks.c.block_id)
        .where(agent_blocks.c.agent_id.in_(mine), blocks.c.label == label, blocks.c.id != block_id)
        .limit(1)
    ).one_or_none()
    if taken:
        raise Conflict(f"Agent {taken[0]} already has the block {taken[1]} with the label {label!r}. Choose another.")


def _delete(conn: Connection, tenant: str, block_id: str) -> None:
    bump(conn, tenant, with_block(block_id))
    gone = delete(blocks).where(blocks.c.tenant_id == tenant, blocks.c.id == block_id)
    if not conn.execute(gone).rowcount:
        raise NotFound(f"Block not found: {block_id}")


def by_ids(conn: Connection, tenant: str, block_ids: Sequence[str]) -> list[Block]:
    """Those of the blocks that exist, in the order asked for, each once."""
    if not block_ids:
        return []
    found = conn.execute(
        select(blocks.c.body, blocks.c.value).where(blocks.c.tenant_id == tenant, blocks.c.id.in_(block_ids))
    )  # fmt: skip
    known = {block.id: block for block in (read_block(*row) for row in found)}
    return [known[block_id] for block_id in dict.fromkeys(block_ids) if block_id in known]
