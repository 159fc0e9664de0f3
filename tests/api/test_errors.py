"""The table from errors to HTTP (behaviour spec §3.4, api-surface §5.3)."""

import json
from typing import Any

import pytest

from perdure.api.errors import response_for
from perdure.domain import errors as e

RUN = "run-00000000-0000-4000-8000-000000000000"
ASKED = "message-00000000-0000-4000-8000-000000000000"

TABLE: list[tuple[Exception, int, Any, str | None]] = [
    (e.Invalid("No."), 400, {"detail": "No."}, None),
    (e.NotFound("Agent not found"), 404, {"detail": "Agent not found"}, None),
    (e.Unauthorized("Unauthorized"), 401, {"detail": "Unauthorized"}, "false"),
    (e.Conflict("Taken."), 409, {"detail": "Taken."}, "false"),
    (e.Gone("Late."), 410, {"detail": "Late."}, None),
    (e.NotImplementedYet("Soon."), 501, {"detail": "Soon."}, "false"),
    (e.Unavailable("Full."), 503, {"detail": "Full."}, None),
    (e.ModelOverloaded("Busy."), 503, {"detail": "Busy."}, None),
    (e.ContextOverflow("Too long."), 400, {"detail": "CONTEXT_WINDOW_EXCEEDED: Too long."}, None),
    (e.ModelTimeout("Late.", "60 s"), 504, {"type": "llm_timeout", "message": "Late.", "detail": "60 s"}, None),
    (e.ModelRateLimited("Slow."), 429, {"type": "llm_rate_limit", "message": "Slow.", "detail": "Slow."}, None),
    (e.ModelOutOfCredits("Pay."), 402, {"type": "llm_insufficient_credits", "message": "Pay.", "detail": "Pay."}, None),
    (e.ModelAuthentication("Key."), 401, {"type": "llm_authentication", "message": "Key.", "detail": "Key."}, "false"),
    (e.ModelBadRequest("Bad."), 400, {"type": "llm_bad_request", "message": "Bad.", "detail": "Bad."}, None),
    (e.ModelEmptyResponse("None."), 500, {"type": "llm_error", "message": "None.", "detail": "None."}, None),
    (e.ModelError("Odd."), 500, {"type": "llm_error", "message": "Odd.", "detail": "Odd."}, None),
    (e.Fenced("?"), 500, {"detail": "An unknown error occurred"}, None),
    (KeyError("secret"), 500, {"detail": "An unknown error occurred"}, None),
]


@pytest.mark.parametrize(("error", "status", "body", "retry"), TABLE)
def test_table(error: Exception, status: int, body: Any, retry: str | None) -> None:
    """Each error has its status and body; what a retry cannot mend says so to SDKs (★S22, ★S24)."""
    answer = response_for(error)
    told = json.loads(answer.body)
    assert answer.status_code == status
    assert told == ({"error": body} if "type" in body else body)
    assert answer.headers.get("x-should-retry") == retry


def test_busy() -> None:
    """A busy context names the run that holds it, in a field and in the words that clients read."""
    answer = response_for(e.Busy("agent-1", RUN))
    told = json.loads(answer.body)
    assert (answer.status_code, told["run_id"]) == (409, RUN)
    assert "is currently being processed" in told["detail"]
    assert f"run_id={RUN}" in told["detail"]
    assert (answer.headers["retry-after"], "x-should-retry" in answer.headers) == ("1", False)


def test_pending_approval() -> None:
    """A pending approval is an object that names the request."""
    answer = response_for(e.PendingApproval(ASKED))
    detail = json.loads(answer.body)["detail"]
    assert answer.status_code == 409
    assert (detail["code"], detail["pending_request_id"]) == ("PENDING_APPROVAL", ASKED)
    assert "waiting for approval" in detail["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_unprocessable() -> None:
    """A refusal of form has words (★S19)."""
    told = json.loads(response_for(e.Unprocessable("Wrong.")).body)
    assert told == {"detail": "Wrong.", "trace_id": ""}
