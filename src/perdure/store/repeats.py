"""Requests that come twice: known by the callers' own ids, or by their very words. Statements for `runs.py`."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, func, insert, select, union_all

from perdure.domain.records import Run
from perdure.store.codec import micros, text_of_request
from perdure.store.schema import HOLDS, WAITS, contexts, run_otids, runs

_RUN = msgspec.json.Decoder(Run)

LONGEST_OTID = 64
"""Characters of an otid that are kept as they are. PostgreSQL refuses to index more than 2 700 bytes."""

WITH_OTID = (
    select(runs.c.body)
    .join(run_otids, run_otids.c.run_id == runs.c.id)
    .where(run_otids.c.tenant_id == bindparam("tenant"), run_otids.c.context_id == bindparam("context_id"))
    .where(run_otids.c.otid == bindparam("otid"), runs.c.created_at > bindparam("since"))
    .order_by(runs.c.sequence.desc())
    .limit(1)
)


def _with_request() -> Any:
    """Looked for among those that hold, wait, and have ended, each by an index that serves it; contexts have none."""
    same = (
        select(runs.c.sequence)
        .where(runs.c.tenant_id == bindparam("tenant"), runs.c.context_id == bindparam("context_id"))
        .where(runs.c.request == bindparam("request"))
    )
    agent = select(contexts.c.agent_id).where(contexts.c.id == bindparam("context_id")).scalar_subquery()
    over = same.where(runs.c.agent_id == agent, runs.c.completed_at > bindparam("since"))
    found = union_all(same.where(HOLDS), same.where(WAITS), over).subquery()
    return select(runs.c.body).where(runs.c.sequence == select(func.max(found.c.sequence)).scalar_subquery())


WITH_REQUEST = _with_request()


def note(conn: Connection, row: Mapping[str, Any], otids: Sequence[str]) -> None:
    """Remember the otids of a run's input."""
    if otids:
        key = {"tenant_id": row["tenant_id"], "context_id": row["context_id"], "run_id": row["id"]}
        conn.execute(insert(run_otids), [{**key, "otid": otid} for otid in dict.fromkeys(map(_indexed, otids))])


def _indexed(otid: str) -> str:
    """An otid as it is kept and looked for: itself if it is of the usual kind, otherwise a digest of it."""
    if len(otid) <= LONGEST_OTID and otid.isascii() and otid.isprintable():
        return otid
    return "sha256:" + hashlib.sha256(otid.encode("utf-8", "surrogatepass")).hexdigest()


def with_otid(conn: Connection, tenant: str, context_id: str, otid: str, since: datetime) -> Run | None:
    """The newest run of the context, accepted after `since`, whose input has this otid."""
    key = {"tenant": tenant, "context_id": context_id, "otid": _indexed(otid), "since": micros(since)}
    return _decoded(conn.scalar(WITH_OTID, key))


def with_request(conn: Connection, tenant: str, context_id: str, request: bytes, since: datetime) -> Run | None:
    """The newest run of the context with this very request that is open or ended after `since`."""
    key = {
        "tenant": tenant, "context_id": context_id, "request": text_of_request(request), "since": micros(since),
    }  # fmt: skip
    return _decoded(conn.scalar(WITH_REQUEST, key))


def _decoded(body: str | None) -> Run | None:
    return None if body is None else _RUN.decode(body)
