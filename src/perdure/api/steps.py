"""Steps: single model calls with what they triggered (api-surface §1, steps; spec §9.2; ★S74)."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from perdure.api.deps import deps_of
from perdure.api.params import StepId, paged
from perdure.api.runs import messages_of
from perdure.api.schemas.messages import LettaMessage
from perdure.api.schemas.runs import FeedbackRequest, Step, StepMetrics
from perdure.api.views import reply, step_metrics_view, step_view
from perdure.domain import records
from perdure.domain.errors import Unprocessable
from perdure.domain.ports import MessageQuery, Page, StepQuery

router = APIRouter(tags=["steps"])

Many = Annotated[list[str] | None, Query()]


@router.get("/v1/steps/", response_model=list[Step])
async def list_steps(
    request: Request,
    page: Annotated[Page, paged(50)],
    agent_id: str | None = None,
    model: str | None = None,
    start_date: datetime | None = None,
    end_date: datetime | None = None,
    feedback: Literal["positive", "negative"] | None = None,
    has_feedback: bool | None = None,
    tags: Many = None,
    trace_ids: Many = None,
    project_id: str | None = None,
) -> Response:
    """A page of steps."""
    query = StepQuery(
        agent_id=agent_id, model=model, start=_aware(start_date), end=_aware(end_date), feedback=feedback,
        has_feedback=has_feedback, tags=tuple(tags or ()), trace_ids=tuple(trace_ids or ()), project_id=project_id,
    )  # fmt: skip
    return reply([step_view(step) for step in await deps_of(request).store.runs.find_steps(query, page)])


def _aware(when: datetime | None) -> datetime | None:
    """The moment in UTC, which is also meant where no zone is given. Raises Unprocessable at the ends of time."""
    if when is None:
        return None
    try:
        return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except OverflowError as error:
        raise Unprocessable(f"The moment {when} lies outside the calendar. Choose a nearer one.") from error


@router.get("/v1/steps/{step_id}", response_model=Step)
async def retrieve_step(request: Request, step_id: StepId) -> Response:
    """One step."""
    return reply(step_view(await deps_of(request).store.runs.get_step(step_id)))


@router.get("/v1/steps/{step_id}/messages", response_model=list[LettaMessage])
async def list_step_messages(request: Request, step_id: StepId, page: Annotated[Page, paged(100, "asc")]) -> Response:
    """The messages of a step, in natural order (★S70)."""
    deps = deps_of(request)
    found = await messages_of(deps, MessageQuery(step_id=step_id, include_err=True), page)
    if not found:
        await deps.store.runs.get_step(step_id)
    return reply(found)


@router.get("/v1/steps/{step_id}/metrics", response_model=StepMetrics)
async def retrieve_step_metrics(request: Request, step_id: StepId) -> Response:
    """How long a step took."""
    return reply(step_metrics_view(await deps_of(request).store.runs.get_step(step_id)))


@router.get("/v1/steps/{step_id}/trace", response_model=dict[str, Any] | None)
async def retrieve_step_trace(request: Request, step_id: StepId) -> Response:
    """The provider's request and response; this version keeps none: null."""
    await deps_of(request).store.runs.get_step(step_id)
    return reply(None)


@router.patch("/v1/steps/{step_id}/feedback", response_model=Step)
async def give_feedback(request: Request, step_id: StepId, body: FeedbackRequest) -> Response:
    """Say whether a step was good, and tag it."""
    sent = body.model_dump(exclude_unset=True)

    def change(step: records.Step) -> records.Step:
        tags = step.tags if sent.get("tags") is None else tuple(dict.fromkeys(sent["tags"]))
        return msgspec.structs.replace(step, feedback=sent.get("feedback", step.feedback), tags=tags)

    return reply(step_view(await deps_of(request).store.runs.update_step(step_id, change)))
