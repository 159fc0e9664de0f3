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
from perdure.domain.frames import Frames, Lease, Waiting
from perdure.domain.ports import Accepted, Committed, Page, RunQuery, StepCommit, StepQuery
from perdure.domain.records import Run, Step
from perdure.store import callbacks, compaction, edits, line, repeats, steps
from perdure.store import leases as lease_rows
from perdure.store.codec import encode, micros, text_of_request
from perdure.store.contexts import HOLDER, NEWEST, rewrite
from perdure.store.database import Database
from perdure.store.log import insert_frames
from perdure.store.messages import insert_messages
from perdure.store.paging import Order, page_of
from perdure.store.schema import HOLDS, OPEN, WAITS, agents, contexts, runs
from perdure.store.schema import steps as step_rows

_RUN = msgspec.json.Decoder(Run)

ATTEMPTS = 5

_COLUMNS = (
    runs.c.id, runs.c.tenant_id, runs.c.agent_id, runs.c.context_id, runs.c.conversation_id, runs.c.status,
    runs.c.background, runs.c.created_at, runs.c.epoch, runs.c.request, runs.c.body, runs.c.worker,
)  # fmt: skip

_TAKE = insert(runs).from_select(
    list(_COLUMNS),
    select(*(bindparam(column.name, type_=column.type) for column in _COLUMNS))
    .select_from(contexts)
    .where(
        contexts.c.id == bindparam("context_id"), contexts.c.tenant_id == bindparam("tenant_id"),
        contexts.c.agent_id == bindparam("agent_id"),
        ~select(runs.c.id).where(runs.c.context_id == bindparam("context_id"), HOLDS).exists(),
        or_(bindparam("ahead"), ~select(runs.c.id).where(runs.c.context_id == bindparam("context_id"), WAITS).exists()),
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
    "callback_at": bindparam("new_callback_at"),
}  # fmt: skip

FINISH = update(runs).where(_MINE, HOLDS).values(**_OUTCOME)
"""End a run that its worker still owns."""

END = (
    update(runs)
    .where(
        _MINE,
        or_(
            OPEN,
            and_(
                runs.c.status == "completed", runs.c.stop_reason == "requires_approval",
                bindparam("new_status") == "cancelled",
            ),
        ),
    )
    .values(**_OUTCOME, waiting_order=None)
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

    async def accept(self, run: Run, request: bytes, *, ahead: bool = False) -> Accepted:
        """Take the context and make the run durable with its request, in one transaction. Raises NotFound, Busy.

        Busy also while others wait for the context, unless `ahead`: then it goes before them.
        """
        values = {**new_row(self._tenant, run, request), "ahead": ahead}
        for _ in range(ATTEMPTS):
            try:
                outcome = await self._db.write(_accept, values, run.otids)
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

    async def enqueue(self, run: Run, request: bytes, order: bytes, *, limit: int) -> None:
        """Make a run durable that waits for its context, with its order. Raises NotFound, Busy (`limit` wait already).

        It waits even if the context is free by now: `promote` starts it.
        """
        row = new_row(self._tenant, run, request)
        try:
            await self._db.write(line.enqueue, self._tenant, row, run.otids, order, limit)
        except IntegrityError as error:
            if _is_orphaned(error):  # the agent was deleted while this was written
                raise NotFound("Agent not found") from error
            raise

    async def promote(self, run: Run) -> Accepted | None:
        """Start a waiting run; None while the context is taken or others wait before it. Raises Fenced if it ended."""
        return await self._db.write(line.promote, self._tenant, run)

    async def adopt(self, worker: str, leases: Sequence[Lease] | None) -> list[Waiting]:
        """Take over waiting runs, oldest first, each with a higher epoch, from workers silent since these leases were
        seen; None: from everybody.
        """
        return await self._db.write(line.adopt, self._tenant, worker, leases)

    async def end(self, run: Run, step: Step | None = None, frames: Frames | None = None) -> None:
        """End a run outside a step (failure, cancel), with the failed step if there is one. Raises Fenced."""
        await self._db.write(_end, self._tenant, run, step, frames)

    async def get(self, run_id: str) -> Run:
        """One run. Raises NotFound."""
        return await self._db.read(_get, self._tenant, run_id)

    async def find(self, query: RunQuery, page: Page) -> list[Run]:
        """A page of runs; cursors follow the requested order. Raises NotFound for an unknown one."""
        return await self._db.read(_find, self._tenant, query, page)

    async def delete(self, run_id: str) -> None:
        """Forget a run, its steps and its log; its messages stay. Raises NotFound."""
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

    async def with_otid(self, context_id: str, otid: str, since: datetime) -> Run | None:
        """The newest run of the context, accepted after `since`, whose input has this otid."""
        return await self._db.read(repeats.with_otid, self._tenant, context_id, otid, since)

    async def with_request(self, context_id: str, request: bytes, since: datetime) -> Run | None:
        """The newest run of the context with this very request that is open or ended after `since`."""
        return await self._db.read(repeats.with_request, self._tenant, context_id, request, since)

    async def leases(self) -> list[Lease]:
        """All open runs, oldest first."""
        return await self._db.read(lease_rows.leases, self._tenant)

    async def interrupt(self, leases: Sequence[Lease] | None, reason: str) -> int:
        """End running runs of workers silent since these leases were seen (None: all): status failed, stop reason
        error, with `reason`, a higher epoch. Answers how many.
        """
        return await self._db.write(lease_rows.interrupt, self._tenant, leases, reason, self._clock.now())

    async def beat(self, worker: str, now: datetime) -> None:
        """Renew the leases of all runs of a worker."""
        await self._db.write(lease_rows.beat, worker, now)

    async def due_callbacks(self, now: datetime, again_at: datetime, limit: int) -> list[Run]:
        """Ended runs whose callback is due; each is due again at `again_at`, should nobody settle it before."""
        return await self._db.write(callbacks.due, self._tenant, now, again_at, limit)

    async def settle_callback(self, run_id: str, change: Callable[[Run], Run], again_at: datetime | None) -> None:
        """Record what came of a callback, and when it is due again (None: never). Nothing if the run is gone."""
        await self._db.write(callbacks.settle, self._tenant, run_id, change, again_at)


def new_row(tenant: str, run: Run, request: bytes) -> dict[str, Any]:
    """A run as it is first stored."""
    return {
        "id": run.id, "tenant_id": tenant, "agent_id": run.agent_id, "context_id": run.context_id,
        "conversation_id": run.conversation_id, "status": run.status, "background": run.background,
        "created_at": micros(run.created_at), "epoch": run.epoch, "request": text_of_request(request),
        "body": encode(run), "worker": run.worker,
    }  # fmt: skip


def _accept(conn: Connection, values: dict[str, Any], otids: Sequence[str]) -> Accepted | PerdureError | None:
    """What is true of the context now taken; or why it cannot be taken; or None if it has just become free."""
    taken = conn.execute(ACCEPT[conn.dialect.name], values).one_or_none()
    if taken is not None:
        repeats.note(conn, values, otids)
        return Accepted(*(taken if len(taken) == 3 else taken[0]))
    key = {"tenant": values["tenant_id"], "context_id": values["context_id"]}
    holder = conn.scalar(HOLDER, key) or (None if values["ahead"] else conn.scalar(line.FIRST, key))
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
    if commit.summary:
        newest = compaction.shorten(conn, tenant, commit, commit.summary)
    if commit.frames:
        insert_frames(conn, tenant, run.id, commit.frames)
    version = edits.apply(conn, tenant, run.agent_id, commit.edits, run.conversation_id) if commit.edits else None
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
        "new_callback_at": callbacks.first_try(run),
    }  # fmt: skip
    if not conn.execute(statement, outcome).rowcount:
        raise _fenced(run)


def _fenced(run: Run) -> Fenced:
    return Fenced(f"{run.id} is over, or another worker has taken it. Stop working on it.")


def _is_orphaned(error: IntegrityError) -> bool:
    """Whether a row refers to something deleted meanwhile."""
    return getattr(error.orig, "sqlstate", None) == "23503" or "FOREIGN KEY" in str(error.orig)


def _end(conn: Connection, tenant: str, run: Run, step: Step | None, frames: Frames | None) -> None:
    _close(conn, tenant, END, run)
    if frames:
        insert_frames(conn, tenant, run.id, frames)
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
