"""How runs end that do not reach their own end: which stop reason, which record, which words."""

from datetime import datetime
from typing import Any

from perdure.agent.turn import Turn
from perdure.domain.errors import ContextOverflow, ModelEmptyResponse, ModelError
from perdure.domain.ids import new_id
from perdure.domain.messages import Usage
from perdure.domain.records import Run, Step, ended

OUSTED = "The run was ended from outside: its agent was deleted, or another process took it over. Read the run's state."
STOPPING = "The server is stopping. The message is kept and is answered after the restart: see GET /v1/runs/{}."


def stop_reason_of(error: Exception) -> str:
    """The stop reason an error ends a run with (spec §1.5)."""
    if isinstance(error, ModelEmptyResponse):
        return "invalid_llm_response"
    if isinstance(error, ContextOverflow):
        return "error"
    return "llm_api_error" if isinstance(error, ModelError) else "error"


def describe(error: Exception) -> dict[str, str]:
    """An error as a run's metadata shows it (★S23)."""
    kind = error.error_type if isinstance(error, ModelError) else "internal_error"
    detail = error.detail if isinstance(error, ModelError) else type(error).__name__
    return {"error_type": kind, "message": str(error), "detail": detail}


def failed(run: Run, stop: str, usage: Usage, at: datetime, **changes: Any) -> Run:
    """The run as it is recorded when it did not reach its own end."""
    return ended(run, "cancelled" if stop == "cancelled" else "failed", stop, at, usage, **changes)


def failed_step(turn: Turn | None, error: Exception | None, stop: str, now: datetime) -> Step | None:
    """A row for the model call that failed, so that lists of steps show it."""
    if turn is None or not isinstance(error, ModelError):
        return None
    info = turn.model.info
    return Step(
        id=new_id("step"), run_id=turn.run.id, agent_id=turn.run.agent_id, created_at=now, status="failed",
        stop_reason=stop, provider_name=info.provider_name, model=info.name, model_handle=info.handle,
        model_endpoint=info.endpoint, context_window_limit=info.context_window, error_type=error.error_type,
        error_data=dict(describe(error)),
    )  # fmt: skip
