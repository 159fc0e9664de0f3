"""Runs: what was asked, what became of it, what it cost (api-surface §1, runs; spec §9.1)."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from perdure.api.deps import Deps, deps_of
from perdure.api.lookup import find_all
from perdure.api.params import RunId, paged, words
from perdure.api.schemas.messages import LettaMessage
from perdure.api.schemas.runs import Run, RunMetrics, RunStatus, RunUsage, Step, StopReasonType
from perdure.api.views import reply, run_metrics_view, run_usage_view, run_view, step_view
from perdure.api.wire import Wire, listed
from perdure.domain.errors import Conflict
from perdure.domain.messages import Stored
from perdure.domain.ports import MessageQuery, Page, RunQuery, StepQuery

router = APIRouter(tags=["runs"])

ACTIVE: tuple[RunStatus, ...] = ("created", "running")
Ids = Annotated[list[str] | None, Query()]


@router.get("/v1/runs/", response_model=list[Run])
async def list_runs(
    request: Request,
    page: Annotated[Page, paged(100)],
    agent_id: str | None = None,
    agent_ids: Annotated[list[str] | None, Query(deprecated=True)] = None,
    statuses: Annotated[list[RunStatus] | None, Query()] = None,
    active: bool = False,
    background: bool | None = None,
    stop_reason: StopReasonType | None = None,
    conversation_id: str | None = None,
) -> Response:
    """A page of runs."""
    wanted = [status for status in statuses or ACTIVE if status in ACTIVE] if active else statuses or []
    if active and not wanted:
        return reply([])
    query = RunQuery(
        agent_ids=_agents(agent_id, agent_ids), statuses=tuple(wanted), background=background, stop_reason=stop_reason,
        conversation_id=conversation_id,
    )  # fmt: skip
    return reply([run_view(run) for run in await deps_of(request).store.runs.find(query, page)])


def _agents(agent_id: str | None, agent_ids: list[str] | None) -> tuple[str, ...]:
    return (*((agent_id,) if agent_id else ()), *words(agent_ids))


@router.get("/v1/runs/active", response_model=list[Run], deprecated=True)
async def list_active_runs(
    request: Request, page: Annotated[Page, paged(100)], agent_id: str | None = None, background: bool | None = None
) -> Response:
    """Runs that are under way."""
    query = RunQuery(agent_ids=_agents(agent_id, None), statuses=ACTIVE, background=background)
    return reply([run_view(run) for run in await deps_of(request).store.runs.find(query, page)])


@router.get("/v1/runs/{run_id}", response_model=Run)
async def retrieve_run(request: Request, run_id: RunId) -> Response:
    """One run."""
    return reply(run_view(await deps_of(request).store.runs.get(run_id)))


@router.delete("/v1/runs/{run_id}", response_model=None)
async def delete_run(request: Request, run_id: RunId) -> Response:
    """Forget a run and its steps; its messages stay. Answers null."""
    runs = deps_of(request).store.runs
    if (await runs.get(run_id)).status in ACTIVE:
        raise Conflict(f"{run_id} is under way. Cancel it, or wait for its end, and delete it then.")
    await runs.delete(run_id)
    return reply(None)


@router.get("/v1/runs/{run_id}/messages", response_model=list[LettaMessage])
async def list_run_messages(request: Request, run_id: RunId, page: Annotated[Page, paged(100, "asc")]) -> Response:
    """The messages of a run, its input included."""
    deps = deps_of(request)
    found = await messages_of(deps, MessageQuery(run_id=run_id, include_err=True), page)
    if not found:
        await deps.store.runs.get(run_id)
    return reply(found)


async def messages_of(deps: Deps, query: MessageQuery, page: Page) -> list[Wire]:
    """Wire messages of a page of stored ones, in the order asked for, parts in their natural order (★S70).

    Cursors follow the requested order here, unlike those of an agent's history (api-surface §5.5).
    """
    if not page.ascending:
        page = Page(page.limit, before=page.after, after=page.before, ascending=False)
    found: list[Stored] = await deps.store.messages.find(query, page)
    return listed(entry.message for entry in found)


@router.get("/v1/runs/{run_id}/steps", response_model=list[Step])
async def list_run_steps(request: Request, run_id: RunId, page: Annotated[Page, paged(100)]) -> Response:
    """The steps of a run."""
    runs = deps_of(request).store.runs
    found = await runs.find_steps(StepQuery(run_id=run_id), page)
    if not found:
        await runs.get(run_id)
    return reply([step_view(step) for step in found])


@router.get("/v1/runs/{run_id}/usage", response_model=RunUsage)
async def retrieve_run_usage(request: Request, run_id: RunId) -> Response:
    """The tokens of a run."""
    return reply(run_usage_view((await deps_of(request).store.runs.get(run_id)).usage))


@router.get("/v1/runs/{run_id}/metrics", response_model=RunMetrics)
async def retrieve_run_metrics(request: Request, run_id: RunId) -> Response:
    """How long a run took, in how many steps, with which tools."""
    store = deps_of(request).store
    run = await store.runs.get(run_id)
    steps = await find_all(lambda page: store.runs.find_steps(StepQuery(run_id=run_id), page), lambda step: step.id)
    stored = await store.messages.find(MessageQuery(run_id=run_id), Page(limit=1000, ascending=True))
    used = sorted({call.name for entry in stored for call in entry.message.tool_calls})
    return reply(run_metrics_view(run, len(steps), used))


@router.get("/v1/runs/{run_id}/trace", response_model=list[dict[str, object]])
async def retrieve_run_trace(request: Request, run_id: RunId, limit: int = 1000) -> Response:
    """Spans of a run; this server keeps none."""
    await deps_of(request).store.runs.get(run_id)
    return reply([])
