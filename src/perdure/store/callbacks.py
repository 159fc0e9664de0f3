"""Callbacks of ended runs: which are due, and what came of them. Statements for `runs.py`."""

from collections.abc import Callable
from datetime import datetime

import msgspec
from sqlalchemy import Connection, select, update

from perdure.domain.records import Run
from perdure.store.codec import encode, micros
from perdure.store.schema import runs

_RUN = msgspec.json.Decoder(Run)


def first_try(run: Run) -> int | None:
    """When a run that ends calls back: at once, if at all."""
    return micros(run.completed_at) if run.callback_url and run.completed_at else None


def due(conn: Connection, tenant: str, now: datetime, again_at: datetime, limit: int) -> list[Run]:
    """Claim due callbacks: no other process gets them before `again_at`."""
    found = (
        select(runs.c.sequence, runs.c.body)
        .where(runs.c.tenant_id == tenant, runs.c.callback_at.is_not(None), runs.c.callback_at <= micros(now))
        .order_by(runs.c.callback_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = conn.execute(found).all()
    if rows:
        claimed = update(runs).where(runs.c.sequence.in_([row.sequence for row in rows]))
        conn.execute(claimed.values(callback_at=micros(again_at)))
    return [_RUN.decode(row.body) for row in rows]


def settle(
    conn: Connection, tenant: str, run_id: str, change: Callable[[Run], Run], again_at: datetime | None
) -> None:
    """Change the stored run, and note when its callback is due again."""
    mine = (runs.c.tenant_id == tenant, runs.c.id == run_id)
    body = conn.scalar(select(runs.c.body).where(*mine).with_for_update())
    if body is not None:
        after = encode(change(_RUN.decode(body)))
        conn.execute(update(runs).where(*mine).values(body=after, callback_at=again_at and micros(again_at)))
