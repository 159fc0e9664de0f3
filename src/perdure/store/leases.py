"""Who has which open run, and what becomes of the runs of a worker that is gone. Statements for `runs.py`.

A worker's sign of life is one row for all its runs, and how long it has been silent is for whoever looks to measure,
not for the clocks of two machines to agree upon (decision 0007).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, TextClause, bindparam, delete, insert, select, update

from perdure.domain.frames import Lease
from perdure.domain.records import Run, ended
from perdure.store import callbacks
from perdure.store.codec import encode, micros, moment
from perdure.store.schema import HOLDS, WAITS, runs, workers

_RUN = msgspec.json.Decoder(Run)

FORGOTTEN = timedelta(days=1)
"""A worker that has been silent for so long leaves the table when the next one enters it."""

_INDEXED = runs.c.context_id >= ""
"""True of every run; without it SQLite would not look at the small indexes of open runs, but through all runs."""

_BEATEN = update(workers).where(workers.c.id == bindparam("worker")).values(heartbeat_at=bindparam("beat"))

_BROKEN_OFF = (
    update(runs)
    .where(runs.c.sequence == bindparam("number"))
    .values(
        status=bindparam("new_status"), stop_reason=bindparam("new_stop_reason"), epoch=bindparam("new_epoch"),
        completed_at=bindparam("new_completed_at"), callback_at=bindparam("new_callback_at"),
        body=bindparam("new_body"),
    )
)  # fmt: skip


def leases(conn: Connection, tenant: str) -> list[Lease]:
    """All open runs with their workers' last beats, oldest first."""
    open_runs = (
        select(runs.c.sequence, runs.c.id, runs.c.status, runs.c.worker, workers.c.heartbeat_at)
        .outerjoin_from(runs, workers, workers.c.id == runs.c.worker)
        .where(runs.c.tenant_id == tenant, _INDEXED)
    )
    rows = [row for state in (HOLDS, WAITS) for row in conn.execute(open_runs.where(state))]
    return [
        Lease(row.id, row.status, row.worker, None if row.heartbeat_at is None else moment(row.heartbeat_at))
        for row in sorted(rows)
    ]


def beat(conn: Connection, worker: str, now: datetime) -> None:
    """A sign of life."""
    if not conn.execute(_BEATEN, {"worker": worker, "beat": micros(now)}).rowcount:
        conn.execute(delete(workers).where(workers.c.heartbeat_at < micros(now - FORGOTTEN)))
        conn.execute(insert(workers), {"id": worker, "heartbeat_at": micros(now)})


def abandoned(conn: Connection, tenant: str, state: TextClause, seen: Sequence[Lease] | None) -> list[Any]:
    """Rows, locked and oldest first, of runs in this state whose workers have not beaten since these leases were seen;
    None: all. Rows that somebody else has locked are left to them.
    """
    if seen is not None and not seen:
        return []
    found = (
        select(runs.c.sequence, runs.c.id, runs.c.epoch, runs.c.worker, runs.c.body, runs.c.waiting_order)
        .where(runs.c.tenant_id == tenant, state, _INDEXED)
        .with_for_update(skip_locked=True)
    )
    if seen is None:
        return sorted(conn.execute(found))
    by_run = {lease.run_id: lease for lease in seen}
    silent = {lease.worker for lease in seen}
    rows = conn.execute(found.where(runs.c.worker.in_(silent))).all()
    beats = {row.id: row.heartbeat_at for row in conn.execute(select(workers).where(workers.c.id.in_(silent)))}
    return sorted(row for row in rows if _is_silent(by_run.get(row.id), row.worker, beats.get(row.worker)))


def _is_silent(seen: Lease | None, worker: str, beat_at: int | None) -> bool:
    if seen is None or seen.worker != worker:
        return False
    return beat_at is None or (seen.beat_at is not None and beat_at <= micros(seen.beat_at))


def interrupt(conn: Connection, tenant: str, seen: Sequence[Lease] | None, reason: str, now: datetime) -> int:
    """End running runs of silent workers; answers how many."""
    rows = abandoned(conn, tenant, HOLDS, seen)
    if rows:
        conn.execute(_BROKEN_OFF, [_broken_off(row, reason, now) for row in rows])
    return len(rows)


def _broken_off(row: Any, reason: str, now: datetime) -> dict[str, Any]:
    run = _RUN.decode(row.body)
    error = {"error_type": "internal_error", "message": reason, "detail": "The worker of this run is gone."}
    over = ended(
        run, "failed", "error", now, run.usage, epoch=row.epoch + 1, metadata={**run.metadata, "error": error}
    )  # fmt: skip
    return {
        "number": row.sequence, "new_status": over.status, "new_stop_reason": over.stop_reason,
        "new_epoch": over.epoch, "new_completed_at": micros(now), "new_callback_at": callbacks.first_try(over),
        "new_body": encode(over),
    }  # fmt: skip
