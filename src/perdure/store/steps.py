"""Steps: one model call each, with its usage (part of port `Runs`)."""

from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, false, select, update

from perdure.domain.errors import NotFound
from perdure.domain.ports import Page, StepQuery
from perdure.domain.records import Step
from perdure.store.codec import encode, micros
from perdure.store.links import mark, marked
from perdure.store.paging import Order, page_of
from perdure.store.schema import agents, runs, step_tags, steps

_STEP = msgspec.json.Decoder(Step)

COLUMNS = tuple(column for column in steps.c if column.name != "sequence")
INSERT_STEP = sa.insert(steps)


def row_of(tenant: str, step: Step) -> dict[str, Any]:
    """The row of a step."""
    return {
        "id": step.id, "tenant_id": tenant, "run_id": step.run_id, "agent_id": step.agent_id,
        "created_at": micros(step.created_at), "model": step.model, "feedback": step.feedback, "body": encode(step),
    }  # fmt: skip


def insert(conn: Connection, tenant: str, step: Step) -> None:
    """Store a step of a run that is known to be its worker's."""
    conn.execute(INSERT_STEP, row_of(tenant, step))
    tag(conn, tenant, step)


def tag(conn: Connection, tenant: str, step: Step) -> None:
    """Make a new step findable by its tags."""
    if step.tags:
        mark(conn, tenant, step_tags, step.id, step.tags, fresh=True)


def get(conn: Connection, tenant: str, step_id: str, *, lock: bool = False) -> Step:
    """One step, locked for the transaction if it shall be changed. Raises NotFound."""
    query = select(steps.c.body).where(steps.c.tenant_id == tenant, steps.c.id == step_id)
    body = conn.scalar(query.with_for_update() if lock else query)
    if body is None:
        raise NotFound(f"Step not found: {step_id}")
    return _STEP.decode(body)


def find(conn: Connection, tenant: str, query: StepQuery, page: Page) -> list[Step]:
    """A page of steps."""
    order = Order(steps.c.id, steps.c.sequence, scope=steps.c.tenant_id == tenant)
    rows = page_of(conn, select(steps.c.body).where(*_conditions(tenant, query)), order, page)
    return [_STEP.decode(row.body) for row in rows]


def _conditions(tenant: str, query: StepQuery) -> list[ColumnElement[bool]]:
    c = steps.c
    found = [c.tenant_id == tenant]
    exact = ((c.run_id, query.run_id), (c.model, query.model),
             (c.feedback, query.feedback))  # fmt: skip
    found += [column == value for column, value in exact if value is not None]
    if query.agent_id is not None:
        found.append(c.run_id.in_(select(runs.c.id).where(runs.c.agent_id == query.agent_id)))
    if query.start is not None:
        found.append(c.created_at >= micros(query.start))
    if query.end is not None:
        found.append(c.created_at <= micros(query.end))
    if query.has_feedback is not None:
        found.append(c.feedback.is_not(None) if query.has_feedback else c.feedback.is_(None))
    if query.tags:
        found.append(marked(step_tags, c.id, tenant, query.tags, every=False))
    if query.project_id is not None:
        found.append(c.agent_id.in_(select(agents.c.id).where(agents.c.project_id == query.project_id)))
    if query.trace_ids:
        found.append(false())  # steps have no trace ids yet, so none has one of these
    return found


def change(conn: Connection, tenant: str, step_id: str, how: Callable[[Step], Step]) -> Step:
    """Apply a pure change."""
    before = get(conn, tenant, step_id, lock=True)
    after = how(before)
    if after == before:
        return before
    conn.execute(update(steps).where(steps.c.tenant_id == tenant, steps.c.id == step_id).values(row_of(tenant, after)))
    if after.tags != before.tags:
        mark(conn, tenant, step_tags, step_id, after.tags, fresh=False)
    return after
