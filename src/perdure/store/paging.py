"""Pages of a list with ids as cursors (port `Page`, api-surface §5.5)."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, or_, select

from perdure.domain.errors import NotFound
from perdure.domain.ports import Page


class Order:
    """How a list is ordered: by `keys`, the last of which is unique. `ident` is the column that cursors name.

    `scope` says which rows may serve as cursors.
    """

    def __init__(self, ident: ColumnElement[str], *keys: ColumnElement[Any], scope: ColumnElement[bool]):
        self.ident, self.keys, self.scope = ident, keys, scope


def page_of(conn: Connection, query: "Select[Any]", order: Order, page: Page) -> Sequence[Row[Any]]:
    """The rows of a page. `after` and `before` follow the requested order; `before` alone gives the rows next to it.

    Raises NotFound for a cursor that names nothing here, since page one would send a client in circles.
    """
    marks = _marks(conn, order, page)
    if page.after is not None:
        query = query.where(_beyond(order.keys, marks[page.after], greater=page.ascending))
    if page.before is not None:
        query = query.where(_beyond(order.keys, marks[page.before], greater=not page.ascending))
    backwards = page.before is not None and page.after is None
    up = page.ascending != backwards
    query = query.order_by(*(key.asc() if up else key.desc() for key in order.keys)).limit(max(page.limit, 0))
    rows = conn.execute(query).all()
    return rows[::-1] if backwards else rows


def _marks(conn: Connection, order: Order, page: Page) -> dict[str, Sequence[Any]]:
    """Where the page's cursors stand."""
    cursors = [cursor for cursor in (page.after, page.before) if cursor is not None]
    if not cursors:
        return {}
    found = conn.execute(select(order.ident, *order.keys).where(order.ident.in_(cursors), order.scope))
    marks: dict[str, Sequence[Any]] = {row[0]: row[1:] for row in found}
    for cursor in cursors:
        if cursor not in marks:
            raise NotFound(f"{cursor} not found. A cursor must be the id of an item of this list.")
    return marks


def _beyond(keys: Sequence[ColumnElement[Any]], mark: Sequence[Any], *, greater: bool) -> ColumnElement[bool]:
    """Rows whose keys come after (or before) the mark, compared as one."""
    key, value = keys[0], mark[0]
    strictly: ColumnElement[bool] = key > value if greater else key < value
    if len(keys) == 1:
        return strictly
    return or_(strictly, and_(key == value, _beyond(keys[1:], mark[1:], greater=greater)))
