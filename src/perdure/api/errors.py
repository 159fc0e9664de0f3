"""The one table from errors to HTTP (behaviour spec §3.4, api-surface §5.3). Every refusal leaves through here.

`x-should-retry: false` goes with what another try cannot mend, since SDKs repeat 408, 409, 429 and 5xx by themselves
(★S22, ★S24).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from perdure.api.params import EXAMPLES
from perdure.domain import errors as e

NO_RETRY = {"x-should-retry": "false"}
SHOWN_PROBLEMS = 20
"""A body with more mistakes than this names only the first ones."""

Body = dict[str, Any]


class Row(NamedTuple):
    """How one branch of the error tree looks over HTTP."""

    status: int
    body: Callable[[Any], Body]
    headers: Mapping[str, str] = {}


def _detail(error: Exception) -> Body:
    return {"detail": str(error)}


def _busy(error: e.Busy) -> Body:
    return {"detail": str(error), "run_id": error.run_id}


def _pending(error: e.PendingApproval) -> Body:
    code = {"code": "PENDING_APPROVAL", "message": str(error), "pending_request_id": error.request_id}
    return {"detail": code}


def _model(error: e.ModelError) -> Body:
    return {"error": {"type": error.error_type, "message": str(error), "detail": error.detail}}


def _empty(error: e.ModelEmptyResponse) -> Body:
    """Streams and runs name this failure; without streaming it is one of many (★S13)."""
    return {"error": {"type": e.ModelError.error_type, "message": str(error), "detail": error.detail}}


def _overflow(error: e.ContextOverflow) -> Body:
    return {"detail": f"CONTEXT_WINDOW_EXCEEDED: {error}"}


def _form(error: e.Unprocessable) -> Body:
    return {"detail": str(error), "trace_id": ""}


def _unexpected(_: Exception) -> Body:
    return {"detail": "An unknown error occurred"}


TABLE: dict[type[Exception], Row] = {
    e.Unprocessable: Row(422, _form),
    e.Invalid: Row(400, _detail),
    e.Unauthorized: Row(401, _detail, NO_RETRY),
    e.NotFound: Row(404, _detail),
    e.Busy: Row(409, _busy, {"retry-after": "1"}),
    e.PendingApproval: Row(409, _pending, NO_RETRY),
    e.Conflict: Row(409, _detail, NO_RETRY),
    e.Gone: Row(410, _detail),
    e.RunFailed: Row(500, _detail, NO_RETRY),
    e.NotImplementedYet: Row(501, _detail, NO_RETRY),
    e.Unavailable: Row(503, _detail),
    e.ContextOverflow: Row(400, _overflow),
    e.ModelBadRequest: Row(400, _model),
    e.ModelAuthentication: Row(401, _model, NO_RETRY),
    e.ModelOutOfCredits: Row(402, _model),
    e.ModelRateLimited: Row(429, _model),
    e.ModelOverloaded: Row(503, _detail),
    e.ModelTimeout: Row(504, _model),
    e.ModelEmptyResponse: Row(500, _empty),
    e.ModelError: Row(500, _model),
    Exception: Row(500, _unexpected),
}


def row_of(error: Exception) -> Row:
    """The row of the error's nearest ancestor in the table."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def response_for(error: Exception) -> Response:
    """The answer to a request that ended with this error."""
    if isinstance(error, RequestValidationError):
        return _malformed(error)
    if isinstance(error, HTTPException):
        return answer(error.status_code, {"detail": error.detail}, error.headers)
    row = row_of(error)
    final = NO_RETRY if isinstance(error, e.Busy) and error.final else {}
    return answer(row.status, row.body(error), {**row.headers, **final})


def answer(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer, encoded once."""
    return Response(msgspec.json.encode(body), status, dict(headers or {}), "application/json")


def _malformed(error: RequestValidationError) -> Response:
    """422 with one string, the problems as a JSON list (★S19); 400 for a malformed run id (spec §0.2).

    The offending values are left out: they may be large, or secret.
    """
    every = error.errors()
    problems = [_problem(problem) for problem in every[:SHOWN_PROBLEMS]]
    names = [p["loc"][-1] for p in problems if p["loc"][:1] == ["path"]]
    if "run_id" in names:
        return answer(400, {"detail": f"Invalid run id. Send one such as {EXAMPLES['run_id']}."})
    body: Body = {"detail": _sentence(problems, len(every)), "trace_id": ""}
    examples = [EXAMPLES[name] for name in names if name in EXAMPLES]
    return answer(422, body | ({"examples": examples} if examples else {}))


def _problem(problem: Mapping[str, Any]) -> Body:
    kind, place = str(problem["type"]), [str(part) for part in problem["loc"]]
    if place[:1] == ["path"] and place[-1] in EXAMPLES:
        return {
            "type": "string_pattern_mismatch", "loc": place,
            "msg": f"Not an id of the right form. Send one such as {EXAMPLES[place[-1]]}.",
        }  # fmt: skip
    return {"type": kind, "loc": place, "msg": str(problem["msg"])}


def _sentence(problems: Sequence[Body], count: int) -> str:
    """The list as text, with how many more there are."""
    more = f" (and {count - len(problems)} more)" if count > len(problems) else ""
    return msgspec.json.encode(problems).decode() + more
