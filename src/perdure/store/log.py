"""The frames that runs told their readers (port `Log`), in batches as they were saved.

Saving is the most frequent thing a busy server asks of its database, so it is one statement for all runs, in plain SQL
on the driver: `store/schema.py` has the table, `runs.py` saves frames along with steps by `insert_frames`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Integer, bindparam, delete, func, literal, select, text

from perdure.domain.errors import Fenced
from perdure.domain.frames import Batch, Frames
from perdure.store.codec import micros
from perdure.store.database import Database
from perdure.store.schema import OPEN, run_frames, runs

PRUNED_AT_ONCE = 50
"""Runs whose frames leave the database in one transaction."""
LOOKED_AT_ONCE = 500
"""Runs in the log that are looked at in one transaction."""
READ_AT_ONCE = 2000
"""Batches that one reading weighs at most."""

_PLACE = 'INSERT INTO run_frames (run_sequence, "first", tenant_id, "count", data) '
# A worker that was not told whether its frames were saved brings them again, perhaps with newer ones behind them.
_AGAIN = (
    ' ON CONFLICT (run_sequence, "first") DO UPDATE SET "count" = excluded."count", data = excluded.data '
    "WHERE substr(excluded.data, 1, length(run_frames.data)) = run_frames.data"
)
_OWN = (
    "SELECT sequence, ?, tenant_id, ?, ? FROM runs "
    "WHERE id = ? AND tenant_id = ? AND epoch = ? AND status IN ('created', 'running')"
)
_ALL_OWN = (
    "SELECT r.sequence, g.first, r.tenant_id, g.count, g.data "
    "FROM unnest(%(firsts)b::bigint[], %(counts)b::bigint[], %(datas)b::bytea[], %(ids)b::text[], %(epochs)b::bigint[])"
    ' AS g("first", "count", data, id, epoch) JOIN runs r ON r.id = g.id '
    "WHERE r.tenant_id = %(tenant)s AND r.epoch = g.epoch AND r.status IN ('created', 'running') FOR SHARE OF r"
)
_PROVED = (
    "SELECT sequence, :first_number, tenant_id, :how_many, :frames FROM runs WHERE id = :run AND tenant_id = :tenant"
)

APPEND = {"sqlite": _PLACE + _OWN + _AGAIN, "postgresql": _PLACE + _ALL_OWN + _AGAIN}
"""Save batches whose runs are open and their workers'.

On PostgreSQL one statement has them all, in binary arrays: a fortieth of what a statement for each would cost us.
"""

INSERT_FRAMES = text(_PLACE + _PROVED + _AGAIN)

_STORED = (
    select(literal(1))
    .select_from(run_frames.join(runs, runs.c.sequence == run_frames.c.run_sequence))
    .where(runs.c.tenant_id == bindparam("tenant"), runs.c.id == bindparam("run"))
    .where(runs.c.epoch == bindparam("mine"), OPEN)
    .where(run_frames.c.first == bindparam("first_number"), run_frames.c.data == bindparam("frames"))
)


def _reading() -> Any:
    """Batches from the one that holds a number, as many as begin before so many bytes have come."""
    mine = (
        select(runs.c.sequence)
        .where(runs.c.tenant_id == bindparam("tenant"), runs.c.id == bindparam("run"))
        .scalar_subquery()
    )
    start = select(func.max(run_frames.c.first)).where(
        run_frames.c.run_sequence == mine, run_frames.c.first <= bindparam("wanted")
    )  # fmt: skip
    sizes = (
        select(run_frames.c.first, func.length(run_frames.c.data).label("size"))
        .where(run_frames.c.run_sequence == mine)
        .where(run_frames.c.first >= func.coalesce(start.scalar_subquery(), 0))
        .where(run_frames.c.first + run_frames.c.count > bindparam("wanted"))
        .order_by(run_frames.c.first)
        .limit(READ_AT_ONCE)
        .subquery()
    )
    so_far = func.sum(sizes.c.size).over(order_by=sizes.c.first) - sizes.c.size
    weighed = select(sizes.c.first, so_far.label("so_far")).subquery()
    return (
        select(run_frames.c.first, run_frames.c.count, run_frames.c.data)
        .join(weighed, weighed.c.first == run_frames.c.first)
        .where(run_frames.c.run_sequence == mine, weighed.c.so_far < bindparam("bytes"))
        .order_by(run_frames.c.first)
    )


def _walking() -> Any:
    """The next runs in the log, each found by one look into the index however many batches it has, and their ends."""
    behind = select(func.min(run_frames.c.run_sequence))
    first = behind.where(run_frames.c.run_sequence > bindparam("behind"))
    walk = select(first.scalar_subquery().label("run"), literal(1, Integer).label("steps")).cte("walk", recursive=True)
    following = behind.where(run_frames.c.run_sequence > walk.c.run).scalar_subquery()
    walk = walk.union_all(
        select(following, walk.c.steps + 1).where(walk.c.run.is_not(None), walk.c.steps < LOOKED_AT_ONCE)
    )
    return (
        select(walk.c.run, runs.c.completed_at, runs.c.tenant_id)
        .join(runs, runs.c.sequence == walk.c.run)
        .order_by(walk.c.run)
    )


READ, WALK = _reading(), _walking()


class SqlLog:
    """The frames of one tenant's runs."""

    def __init__(self, db: Database, tenant: str):
        self._db, self._tenant = db, tenant

    async def append(self, batches: Sequence[Batch]) -> set[str]:
        """Save frames of many runs in one transaction; answers the ids of the runs that refused theirs.

        A run refuses when it is over, when another worker has it, and when it already has other frames under the same
        number. Frames that are saved already, wholly or their beginning, may come again.
        """
        return await self._db.write(_append, self._tenant, tuple(batches)) if batches else set()

    async def read(self, run_id: str, after: int, limit: int) -> list[Frames]:
        """Saved frames with numbers above `after`, in order, about `limit` bytes of them, at least one batch.

        The first batch may begin at or below `after`. Nothing for a run that is unknown or has no such frames.
        """
        return await self._db.read(_read, self._tenant, run_id, after, limit)

    async def prune(self, ended_before: datetime) -> int:
        """Remove the frames of runs that ended before then, some at a time; answers of how many runs."""
        total, behind = 0, 0
        while found := await self._db.read(_walk, behind):
            behind = found[-1].run
            old = [
                row.run for row in found
                if row.tenant_id == self._tenant and row.completed_at and row.completed_at < micros(ended_before)
            ]  # fmt: skip
            for start in range(0, len(old), PRUNED_AT_ONCE):
                total += await self._db.write(_forget, old[start : start + PRUNED_AT_ONCE])
        return total


def insert_frames(conn: Connection, tenant: str, run_id: str, frames: Frames) -> None:
    """Save frames within a transaction that has proved the run to be its worker's. Raises Fenced (numbers taken)."""
    row = {
        "run": run_id, "tenant": tenant, "first_number": frames.first, "how_many": frames.count, "frames": frames.data,
    }  # fmt: skip
    if not conn.execute(INSERT_FRAMES, row).rowcount:
        raise Fenced(f"{run_id} already has other frames from number {frames.first} on. Stop working on it.")


def _append(conn: Connection, tenant: str, batches: Sequence[Batch]) -> set[str]:
    saved = conn.exec_driver_sql(APPEND[conn.dialect.name], _PARAMETERS[conn.dialect.name](tenant, batches))
    if saved.rowcount == len(batches):
        return set()
    return {batch.run_id for batch in batches if not _is_stored(conn, tenant, batch)}


def _rows(tenant: str, batches: Sequence[Batch]) -> Any:
    return [(b.frames.first, b.frames.count, b.frames.data, b.run_id, tenant, b.epoch) for b in batches]


def _arrays(tenant: str, batches: Sequence[Batch]) -> Any:
    return {
        "tenant": tenant, "ids": [batch.run_id for batch in batches], "epochs": [batch.epoch for batch in batches],
        "firsts": [batch.frames.first for batch in batches], "counts": [batch.frames.count for batch in batches],
        "datas": [batch.frames.data for batch in batches],
    }  # fmt: skip


_PARAMETERS = {"sqlite": _rows, "postgresql": _arrays}


def _is_stored(conn: Connection, tenant: str, batch: Batch) -> bool:
    key = {
        "tenant": tenant, "run": batch.run_id, "mine": batch.epoch, "first_number": batch.frames.first,
        "frames": batch.frames.data,
    }  # fmt: skip
    return conn.scalar(_STORED, key) is not None


def _read(conn: Connection, tenant: str, run_id: str, after: int, limit: int) -> list[Frames]:
    key = {"tenant": tenant, "run": run_id, "wanted": after + 1, "bytes": max(limit, 1)}
    return [Frames(first, count, data) for first, count, data in conn.execute(READ, key)]


def _walk(conn: Connection, behind: int) -> Sequence[Any]:
    return conn.execute(WALK, {"behind": behind}).all()


def _forget(conn: Connection, numbers: Sequence[int]) -> int:
    conn.execute(delete(run_frames).where(run_frames.c.run_sequence.in_(numbers)))
    return len(numbers)
