"""Tools (port `Tools`). A name is unique among a tenant's tools."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from perdure.domain.errors import Conflict, NotFound
from perdure.domain.ports import Page, ToolQuery
from perdure.domain.records import Tool
from perdure.store.codec import encode, micros
from perdure.store.database import Database
from perdure.store.links import bump, read_tool, with_tool
from perdure.store.paging import Order, page_of
from perdure.store.schema import agent_tools, tools


class SqlTools:
    """The tools of one tenant."""

    def __init__(self, db: Database, tenant: str):
        self._db, self._tenant = db, tenant

    async def save(self, tool: Tool) -> Tool:
        """Insert, or update the one of the same name (its id and created_at stay). Saving the same again is free."""
        try:
            return await self._db.write(_save, self._tenant, tool)
        except IntegrityError:  # another process inserted this name meanwhile: now it can be updated
            return await self._db.write(_save, self._tenant, tool)

    async def get(self, tool_id: str) -> Tool:
        """One tool. Raises NotFound."""
        return await self._db.read(get, self._tenant, tool_id)

    async def find(self, query: ToolQuery, page: Page) -> list[Tool]:
        """A page of tools. Raises NotFound for an unknown cursor."""
        return await self._db.read(_find, self._tenant, query, page)

    async def update(self, tool_id: str, change: Callable[[Tool], Tool]) -> Tool:
        """Apply a pure change. Raises NotFound, Conflict (the new name is taken)."""
        try:
            return await self._db.write(_update, self._tenant, tool_id, change)
        except IntegrityError as error:
            raise Conflict("Another tool has this name. Choose another name, or change that tool.") from error

    async def delete(self, tool_id: str) -> None:
        """Remove the tool, detaching it everywhere. Raises NotFound."""
        await self._db.write(_delete, self._tenant, tool_id)


def _row_of(tenant: str, tool: Tool) -> dict[str, Any]:
    return {
        "id": tool.id, "tenant_id": tenant, "name": tool.name, "tool_type": tool.tool_type,
        "description": tool.description, "created_at": micros(tool.created_at),
        "updated_at": micros(tool.updated_at), "body": encode(tool),
    }  # fmt: skip


def _save(conn: Connection, tenant: str, tool: Tool) -> Tool:
    query = select(tools.c.body).where(tools.c.tenant_id == tenant, tools.c.name == tool.name).with_for_update()
    body = conn.scalar(query)
    if body is None:
        conn.execute(insert(tools), _row_of(tenant, tool))
        return tool
    before = read_tool(body)
    after = msgspec.structs.replace(tool, id=before.id, created_at=before.created_at)
    # Every start of a server saves its built-in tools: that must not change the version of every agent.
    if msgspec.structs.replace(after, updated_at=before.updated_at) == before:
        return before
    _write(conn, tenant, after)
    return after


def _write(conn: Connection, tenant: str, tool: Tool) -> None:
    conn.execute(update(tools).where(tools.c.tenant_id == tenant, tools.c.id == tool.id).values(_row_of(tenant, tool)))
    bump(conn, tenant, with_tool(tool.id))


def get(conn: Connection, tenant: str, tool_id: str, *, lock: bool = False) -> Tool:
    """One tool, locked for the transaction if it shall be changed. Raises NotFound."""
    query = select(tools.c.body).where(tools.c.tenant_id == tenant, tools.c.id == tool_id)
    body = conn.scalar(query.with_for_update() if lock else query)
    if body is None:
        raise NotFound(f"Tool not found: {tool_id}")
    return read_tool(body)


def _find(conn: Connection, tenant: str, query: ToolQuery, page: Page) -> list[Tool]:
    order = Order(tools.c.id, tools.c.created_at, tools.c.id, scope=tools.c.tenant_id == tenant)
    wanted: Select[Any] = select(tools.c.body).where(*_conditions(tenant, query))
    return [read_tool(row[0]) for row in page_of(conn, wanted, order, page)]


def _conditions(tenant: str, query: ToolQuery) -> list[ColumnElement[bool]]:
    c = tools.c
    found = [c.tenant_id == tenant]
    if query.name is not None:
        found.append(c.name == query.name)
    lists = ((c.name, query.names), (c.id, query.tool_ids), (c.tool_type, query.tool_types))
    found += [column.in_(values) for column, values in lists if values]
    if query.exclude_tool_types:
        found.append(c.tool_type.not_in(query.exclude_tool_types))
    if query.search is not None:
        found.append(or_(*(column.icontains(query.search, autoescape=True) for column in (c.name, c.description))))
    if query.letta_only:
        found.append(c.tool_type.startswith("letta_", autoescape=True))
    if query.agent_id is not None:
        found.append(c.id.in_(select(agent_tools.c.tool_id).where(agent_tools.c.agent_id == query.agent_id)))
    return found


def _update(conn: Connection, tenant: str, tool_id: str, change: Callable[[Tool], Tool]) -> Tool:
    before = get(conn, tenant, tool_id, lock=True)
    after = change(before)
    if after != before:
        _write(conn, tenant, after)
    return after


def _delete(conn: Connection, tenant: str, tool_id: str) -> None:
    bump(conn, tenant, with_tool(tool_id))
    if not conn.execute(delete(tools).where(tools.c.tenant_id == tenant, tools.c.id == tool_id)).rowcount:
        raise NotFound(f"Tool not found: {tool_id}")


def known_ids(conn: Connection, tenant: str, tool_ids: Sequence[str]) -> set[str]:
    """Those of the tools that exist."""
    if not tool_ids:
        return set()
    return set(conn.scalars(select(tools.c.id).where(tools.c.tenant_id == tenant, tools.c.id.in_(tool_ids))))
