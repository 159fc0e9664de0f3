"""Runs: the lease on a context, the commit of a step, and how runs end (port `Runs`).

The run is the lease: a unique index lets one run per context be active, and every write of a worker says
`WHERE epoch = mine AND active`, so a worker that was given up for dead changes nothing.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from perdure.domain.clock import Clock
from perdure.domain.errors import Busy, Fenced, NotFound, PerdureError, Unavailable
from perdure.domain.ports import Accepted, Committed, Page, RunQuery, StepCommit, StepQuery
from perdure.domain.records import Run, Step
from perdure.store import edits, steps
from perdure.store.codec import encode, micros
from perdure.store.contexts import HOLDER, NEWEST, rewrite
from perdure.store.database import Database
from perdure.store.messages import insert_messages
from perdure.store.paging import Order, page_of
from perdure.store.schema import HOLDS, agents, contexts, runs
from perdure.store.schema import steps as step_rows

_RUN = msgspec.json.Decoder(Run)

ATTEMPTS = 5

_COLUMNS = (
    runs.c.id, runs.c.tenant_id, runs.c.agent_id, runs.c.context_id, runs.c.conversation_id, runs.c.status,
    runs.c.background, runs.c.created_at, runs.c.heartbeat_at, runs.c.epoch, runs.c.request, runs.c.body,
)  # fmt: skip

_TAKE = insert(runs).from_select(
    list(_COLUMNS),
    select(*(bindparam(column.name, type_=column.type) for column in _COLUMNS))
    .select_from(contexts)
    .where(
        contexts.c.id == bindparam("context_id"), contexts.c.tenant_id == bindparam("tenant_id"),
        contexts.c.agent_id == bindparam("agent_id"),
        ~select(runs.c.id).where(runs.c.context_id == bindparam("context_id"), HOLDS).exists(),
    )
    .with_for_update(read=True, of=contexts),
)  # fmt: skip

ACCEPT = {
    "sqlite": _TAKE.returning(
        select(agents.c.version).where(agents.c.id == bindparam("agent_id")).scalar_subquery(),
        select(contexts.c.revision).where(contexts.c.id == bindparam("context_id")).scalar_subquery(),
        NEWEST.scalar_subquery(),
    ),
    "postgresql": _TAKE.returning(func.context_facts(bindparam("context_id"))),
}  # fmt: skip
"""Make a run that holds the context, if the context exists and is free; answers what is true of it from then on.

On PostgreSQL the facts come from a function, because a subquery would see the database as it was before the
statement waited for others.
"""

_MINE = and_(
    runs.c.tenant_id == bindparam("tenant"), runs.c.id == bindparam("run"), runs.c.epoch == bindparam("mine")
)  # fmt: skip
_OUTCOME: dict[str, BindParameter[Any]] = {
    "status": bindparam("new_status"), "stop_reason": bindparam("new_stop_reason"),
    "completed_at": bindparam("new_completed_at"), "body": bindparam("new_body"),
}  # fmt: skip

FINISH = update(runs).where(_MINE, HOLDS).values(**_OUTCOME)
"""End a run that its worker still owns."""

END = (
    update(runs)
    .where(
        _MINE,
        or_(
            HOLDS,
            and_(
                runs.c.status == "completed", runs.c.stop_reason == "requires_approval",
                bindparam("new_status") == "cancelled",
            ),
        ),
    )
    .values(**_OUTCOME)
)  # fmt: skip
"""End a run outside a step. One that waits for an approval is over and can still be cancelled (spec §9.1)."""

ADD_STEP_FENCED = (
    insert(step_rows)
    .from_select(
        list(steps.COLUMNS),
        select(*(bindparam(column.name, type_=column.type) for column in steps.COLUMNS))
        .select_from(runs)
        .where(runs.c.tenant_id == bindparam("tenant_id"), runs.c.id == bindparam("run_id"))
        .where(runs.c.epoch == bindparam("mine"), HOLDS)
        .with_for_update(key_share=True),
    )
    .returning(step_rows.c.sequence)
)
"""Store a step if its run is still its worker's; answers nothing if it is not."""


class SqlRuns:
    """The runs and steps of one tenant."""

    def __init__(self, db: Database, tenant: str, clock: Clock):
        self._db, self._tenant, self._clock = db, tenant, clock

    async def accept(self, run: Run, request: bytes) -> Accepted:
        """Take the context and make the run durable with its request, in one transaction. Raises NotFound, Busy."""
        values = _new_row(self._tenant, run, request)
        for _ in range(ATTEMPTS):
            try:
                outcome = await self._db.write(_accept, values)
            except IntegrityError:  # the context was taken or deleted between our look and our insert: look again
                continue
            if isinstance(outcome, PerdureError):
                raise outcome
            if outcome:
                return outcome
        raise Unavailable("The context changes hands too fast to take it. Send the request again.")

    async def commit(self, commit: StepCommit) -> Committed:
        """Store one step. Raises Fenced (nothing written), StaleBlock (nothing written)."""
        try:
            return await self._db.write(_commit, self._tenant, commit)
        except IntegrityError as error:
            if _is_orphaned(error):  # the agent was deleted while this was written
                raise Fenced(f"{commit.run.id} is gone.") from error
            raise

    async def end(self, run: Run, step: Step | None = None) -> None:
        """End a run outside a step (failure, cancel), with the failed step if there is one. Raises Fenced."""
        await self._db.write(_end, self._tenant, run, step)

    async def get(self, run_id: str) -> Run:
        """One run. Raises NotFound."""
        return await self._db.read(_get, self._tenant, run_id)

    async def find(self, query: RunQuery, page: Page) -> list[Run]:
        """A page of runs; cursors follow the requested order. Raises NotFound for an unknown one."""
        return await self._db.read(_find, self._tenant, query, page)

    async def delete(self, run_id: str) -> None:
        """Forget a run and its steps; its messages stay. Raises NotFound."""
        await self._db.write(_delete, self._tenant, run_id)

    async def get_step(self, step_id: str) -> Step:
        """One step. Raises NotFound."""
        return await self._db.read(steps.get, self._tenant, step_id)

    async def find_steps(self, query: StepQuery, page: Page) -> list[Step]:
        """A page of steps. Raises NotFound for an unknown cursor."""
        return await self._db.read(steps.find, self._tenant, query, page)

    async def update_step(self, step_id: str, change: Callable[[Step], Step]) -> Step:
        """Apply a pure change (feedback, tags). Raises NotFound."""
        return await self._db.write(steps.change, self._tenant, step_id, change)

    async def interrupt(self, older_than: datetime, reason: str) -> int:
        """End runs whose worker is gone: status failed, stop reason error, with `reason`. Answers how many."""
        return await self._db.write(_interrupt, self._tenant, older_than, reason, self._clock.now())

    async def beat(self, run_ids: Sequence[str], now: datetime) -> None:
        """Renew the leases of the runs this process works on."""
        if run_ids:
            await self._db.write(_beat, self._tenant, tuple(run_ids), now)


def _new_row(tenant: str, run: Run, request: bytes) -> dict[str, Any]:
    created = micros(run.created_at)
    return {
        "id": run.id, "tenant_id": tenant, "agent_id": run.agent_id, "context_id": run.context_id,
        "conversation_id": run.conversation_id, "status": run.status, "background": run.background,
        "created_at": created, "heartbeat_at": created, "epoch": run.epoch,
        "request": request.decode(errors="replace"), "body": encode(run),
    }  # fmt: skip


def _accept(conn: Connection, values: dict[str, Any]) -> Accepted | PerdureError | None:
    """What is true of the context now taken; or why it cannot be taken; or None if it has just become free."""
    taken = conn.execute(ACCEPT[conn.dialect.name], values).one_or_none()
    if taken is not None:
        return Accepted(*(taken if len(taken) == 3 else taken[0]))
    key = {"tenant": values["tenant_id"], "context_id": values["context_id"]}
    holder = conn.scalar(HOLDER, key)
    if holder is not None:
        return Busy(values["context_id"], holder)
    known = select(contexts.c.id).where(
        contexts.c.tenant_id == key["tenant"], contexts.c.id == key["context_id"],
        contexts.c.agent_id == values["agent_id"],
    )  # fmt: skip
    return NotFound("Agent not found") if conn.scalar(known) is None else None


def _commit(conn: Connection, tenant: str, commit: StepCommit) -> Committed:
    run = commit.run
    if commit.finished:
        _close(conn, tenant, FINISH, commit.finished)
        steps.insert(conn, tenant, commit.step)
    else:
        row = {**steps.row_of(tenant, commit.step), "run_id": run.id, "mine": run.epoch}
        if conn.scalar(ADD_STEP_FENCED, row) is None:
            raise _fenced(run)
        steps.tag(conn, tenant, commit.step)
    newest = insert_messages(
        conn, tenant, commit.messages, agent_id=run.agent_id, context_id=run.context_id,
        conversation_id=run.conversation_id,
    )  # fmt: skip
    version = edits.apply(conn, tenant, run.agent_id, commit.edits) if commit.edits else None
    _recompile(conn, tenant, commit)
    return Committed(newest or conn.scalar(NEWEST, {"context_id": run.context_id}) or 0, version)


def _recompile(conn: Connection, tenant: str, commit: StepCommit) -> None:
    """Store what the commit says of the system message.

    The revision stays: others notice by the messages that come with it, and the cache of this worker stays true.
    """
    if commit.system_message:
        rewrite(conn, tenant, commit.run.context_id, commit.system_message)
    compiled: dict[str, int] = {}
    if commit.compiled_version is not None:
        compiled["compiled_version"] = commit.compiled_version
    if commit.hidden_count is not None:
        compiled["hidden_count"] = commit.hidden_count
    if commit.compiled_at is not None:
        compiled["compiled_at"] = micros(commit.compiled_at)
    if compiled:
        conn.execute(update(contexts).where(contexts.c.id == commit.run.context_id).values(compiled))


def _close(conn: Connection, tenant: str, statement: Any, run: Run) -> None:
    """Write how a run ended, if it is still its worker's."""
    outcome = {
        "tenant": tenant, "run": run.id, "mine": run.epoch, "new_status": run.status,
        "new_stop_reason": run.stop_reason, "new_body": encode(run),
        "new_completed_at": micros(run.completed_at) if run.completed_at else None,
    }  # fmt: skip
    if not conn.execute(statement, outcome).rowcount:
        raise _fenced(run)


def _fenced(run: Run) -> Fenced:
    return Fenced(f"{run.id} is over, or another worker has taken it. Stop working on it.")


def _is_orphaned(error: IntegrityError) -> bool:
    """Whether a row refers to something deleted meanwhile."""
    return getattr(error.orig, "sqlstate", None) == "23503" or "FOREIGN KEY" in str(error.orig)


def _end(conn: Connection, tenant: str, run: Run, step: Step | None) -> None:
    _close(conn, tenant, END, run)
    if step:
        steps.insert(conn, tenant, step)


def _get(conn: Connection, tenant: str, run_id: str) -> Run:
    body = conn.scalar(select(runs.c.body).where(runs.c.tenant_id == tenant, runs.c.id == run_id))
    if body is None:
        raise NotFound(f"Run not found: {run_id}")
    return _RUN.decode(body)


def _find(conn: Connection, tenant: str, query: RunQuery, page: Page) -> list[Run]:
    order = Order(runs.c.id, runs.c.sequence, scope=runs.c.tenant_id == tenant)
    rows = page_of(conn, select(runs.c.body).where(*_conditions(tenant, query)), order, page)
    return [_RUN.decode(row.body) for row in rows]


def _conditions(tenant: str, query: RunQuery) -> list[ColumnElement[bool]]:
    c = runs.c
    found = [c.tenant_id == tenant]
    if query.agent_ids:
        found.append(c.agent_id.in_(query.agent_ids))
    if query.statuses:
        found.append(c.status.in_(query.statuses))
    if query.background is not None:
        found.append(c.background.is_(query.background))
    if query.stop_reason is not None:
        found.append(c.stop_reason == query.stop_reason)
    if query.conversation_id is not None:
        own = query.conversation_id == "default"
        found.append(c.conversation_id.is_(None) if own else c.conversation_id == query.conversation_id)
    return found


def _delete(conn: Connection, tenant: str, run_id: str) -> None:
    if not conn.execute(delete(runs).where(runs.c.tenant_id == tenant, runs.c.id == run_id)).rowcount:
        raise NotFound(f"Run not found: {run_id}")


def _interrupt(conn: Connection, tenant: str, older_than: datetime, reason: str, now: datetime) -> int:
    abandoned = (
        select(runs.c.sequence, runs.c.epoch, runs.c.body)
        .where(runs.c.tenant_id == tenant, HOLDS, runs.c.heartbeat_at < micros(older_than))
        .with_for_update(skip_locked=True)
    )
    rows = conn.execute(abandoned).all()
    for row in rows:
        run = _RUN.decode(row.body)
        error = {"error_type": "internal_error", "message": reason, "detail": "The worker of this run is gone."}
        ended = msgspec.structs.replace(
            run, status="failed", stop_reason="error", completed_at=now, epoch=row.epoch + 1,
            metadata={**run.metadata, "error": error},
        )  # fmt: skip
        conn.execute(
            update(runs).where(runs.c.sequence == row.sequence).values(
                status=ended.status, stop_reason=ended.stop_reason, completed_at=micros(now), epoch=ended.epoch,
                body=encode(ended),
            )
        )  # fmt: skip
    return len(rows)


def _beat(conn: Connection, tenant: str, run_ids: Sequence[str], now: datetime) -> None:
    alive = update(runs).where(runs.c.tenant_id == tenant, runs.c.id.in_(run_ids), HOLDS)
    conn.execute(alive.values(heartbeat_at=micros(now)))
