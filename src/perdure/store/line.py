"""The line before a context: runs that wait until it is free. Statements for `runs.py`.

First is who came first: the numbers of runs tell, since a context is locked while a run joins its line.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, func, insert, select, update

from perdure.domain.errors import Busy, Fenced, NotFound
from perdure.domain.frames import Lease, Waiting
from perdure.domain.ports import Accepted
from perdure.domain.records import Run
from perdure.store import repeats
from perdure.store.codec import encode, moment
from perdure.store.contexts import HOLDER, NEWEST
from perdure.store.leases import abandoned
from perdure.store.schema import WAITS, agents, contexts, runs

_RUN = msgspec.json.Decoder(Run)

FIRST = (
    select(runs.c.id)
    .where(runs.c.tenant_id == bindparam("tenant"), runs.c.context_id == bindparam("context_id"), WAITS)
    .order_by(runs.c.sequence)
    .limit(1)
)
"""The run whose turn is next."""

_CONTEXT = select(contexts.c.agent_id).where(
    contexts.c.tenant_id == bindparam("tenant"), contexts.c.id == bindparam("context_id")
)  # fmt: skip
_FACTS = (
    select(agents.c.version, contexts.c.revision, NEWEST.scalar_subquery())
    .join(agents, agents.c.id == contexts.c.agent_id)
    .where(contexts.c.id == bindparam("context_id"))
)
_LENGTH = select(func.count()).where(
    runs.c.tenant_id == bindparam("tenant"), runs.c.context_id == bindparam("context_id"), WAITS
)  # fmt: skip
_ADOPT = (
    update(runs)
    .where(runs.c.sequence == bindparam("number"))
    .values(epoch=bindparam("new_epoch"), worker=bindparam("new_worker"), body=bindparam("new_body"))
)  # fmt: skip


def enqueue(
    conn: Connection, tenant: str, row: dict[str, Any], otids: Sequence[str], order: bytes, limit: int
) -> None:
    """Store a run at the end of its context's line. Raises NotFound, Busy (the line is full)."""
    key = {"tenant": tenant, "context_id": row["context_id"]}
    if conn.scalar(_CONTEXT.with_for_update(key_share=True), key) != row["agent_id"]:
        raise NotFound("Agent not found")
    copy = repeats.with_otid(conn, tenant, row["context_id"], otids[0], moment(0)) if otids else None
    if copy and copy.otids == tuple(otids) and copy.completed_at is None:  # another process has just let it in
        raise Busy(row["context_id"], copy.id)
    if (conn.scalar(_LENGTH, key) or 0) >= limit:
        raise Busy(row["context_id"], conn.scalar(HOLDER, key) or conn.scalar(FIRST, key) or row["id"])
    conn.execute(insert(runs), {**row, "waiting_order": order.decode()})
    repeats.note(conn, row, otids)


def promote(conn: Connection, tenant: str, run: Run) -> Accepted | None:
    """Start a waiting run if it is first and its context is free. Raises Fenced if it waits no more, or elsewhere."""
    key = {"tenant": tenant, "context_id": run.context_id}
    # Whoever takes the context now, changes it or joins its line has done so, or waits until we are through.
    conn.execute(_CONTEXT.with_for_update(), key)
    mine = (runs.c.tenant_id == tenant, runs.c.id == run.id, runs.c.epoch == run.epoch)
    if conn.scalar(select(runs.c.id).where(*mine, WAITS)) is None:
        raise Fenced(f"{run.id} waits no more, or another worker has taken it. Read the run's state.")
    if conn.scalar(FIRST, key) != run.id or conn.scalar(HOLDER, key) is not None:
        return None
    started = update(runs).where(*mine, WAITS)
    started = started.values(status=run.status, worker=run.worker, body=encode(run), waiting_order=None)
    if not conn.execute(started).rowcount:  # ended while we looked: the next look says so
        return None
    return Accepted(*conn.execute(_FACTS, key).one())


def adopt(conn: Connection, tenant: str, worker: str, seen: Sequence[Lease] | None) -> list[Waiting]:
    """Take over waiting runs of silent workers, or of everybody, oldest first."""
    taken: list[Waiting] = []
    changes: list[dict[str, Any]] = []
    for row in abandoned(conn, tenant, WAITS, seen):
        run = msgspec.structs.replace(_RUN.decode(row.body), epoch=row.epoch + 1, worker=worker)
        taken.append(Waiting(run, (row.waiting_order or "").encode()))
        changes.append(
            {"number": row.sequence, "new_epoch": run.epoch, "new_worker": worker, "new_body": encode(run)}
        )  # fmt: skip
    if changes:
        conn.execute(_ADOPT, changes)
    return taken
