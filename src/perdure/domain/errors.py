"""The error tree. Every error says what to do next; `api/errors.py` holds the one table to HTTP.

    PerdureError
    ├── Invalid               400  the request cannot be carried out as it is
    │   └── Unprocessable     422  its form is wrong
    ├── Unauthorized          401
    ├── NotFound              404
    ├── Conflict              409
    │   ├── Busy              409  another run holds the context
    │   └── PendingApproval   409  the context waits for an approval
    ├── Gone                  410
    ├── RunFailed             500  a run that ended before it was asked for, as its record tells it
    ├── NotImplementedYet     501
    ├── Unavailable           503
    ├── SchemaTooNew           –   the database is newer than the program (start-up only)
    ├── Fenced · StaleBlock    –   a write was refused (never reaches a client)
    ├── ToolError              –   becomes a tool's result
    └── ModelError            500  the provider failed
        ├── ModelTimeout 504 · ModelRateLimited 429 · ModelOutOfCredits 402 · ModelAuthentication 401
        ├── ModelBadRequest 400 · ContextOverflow 400 · ModelOverloaded 503 · ModelEmptyResponse 500
"""


class PerdureError(Exception):
    """Base of all errors we raise on purpose. `str(error)` is meant for the caller."""


class Invalid(PerdureError):
    """The request is well formed and cannot be carried out."""


class Unprocessable(Invalid):
    """The request's form is wrong."""


class Unauthorized(PerdureError):
    """The caller did not show the server's password."""


class NotFound(PerdureError):
    """The thing named does not exist."""


class Conflict(PerdureError):
    """The request contradicts the present state."""


class Busy(Conflict):
    """Another run holds the context; `run_id` names it. `final`: sending the same again by itself would be wrong."""

    def __init__(self, context_id: str, run_id: str, *, final: bool = False):
        self.run_id, self.final = run_id, final
        super().__init__(
            f"CONFLICT: {context_id} is currently being processed by another request (run_id={run_id}). "
            "Wait for that run to end, or cancel it, and send again."
        )


class PendingApproval(Conflict):
    """The context waits for an approval; `request_id` is the id of the message that asks for it."""

    def __init__(self, request_id: str):
        self.request_id = request_id
        super().__init__(
            "Cannot send a new message: the agent is waiting for approval of a tool call. "
            "Please approve or deny the pending request before continuing."
        )


class Gone(PerdureError):
    """The thing existed and is kept no longer."""


class RunFailed(PerdureError):
    """How a run failed, told to somebody who asks for it afterwards."""


class NotImplementedYet(PerdureError):
    """A documented part of the API that this version does not have."""


class Unavailable(PerdureError):
    """The server cannot take this request now."""


class SchemaTooNew(PerdureError):
    """The database was written by a newer Perdure."""


class Fenced(PerdureError):
    """Another worker owns the run by now; what this one wanted to write was not written."""


class StaleBlock(PerdureError):
    """A block changed between reading and writing; the edit must be made again from its present text."""


class ToolError(PerdureError):
    """A tool refuses or fails; the text goes back to the model as the tool's result."""


class ModelError(PerdureError):
    """The provider failed. `detail` is the cause in the provider's words."""

    error_type = "llm_error"

    def __init__(self, message: str, detail: str = ""):
        self.detail = detail or message
        super().__init__(message)


class ModelTimeout(ModelError):
    """The provider did not answer in time."""

    error_type = "llm_timeout"


class ModelRateLimited(ModelError):
    """The provider asks for fewer requests."""

    error_type = "llm_rate_limit"


class ModelOutOfCredits(ModelError):
    """The account at the provider is empty."""

    error_type = "llm_insufficient_credits"


class ModelAuthentication(ModelError):
    """The provider refuses the key."""

    error_type = "llm_authentication"


class ModelBadRequest(ModelError):
    """The provider refuses the request."""

    error_type = "llm_bad_request"


class ContextOverflow(ModelError):
    """The prompt is longer than the model's window."""

    error_type = "internal_error"  # the name that clients of the retired server know it by


class ModelOverloaded(ModelError):
    """The provider is overloaded."""

    error_type = "llm_error"


class ModelEmptyResponse(ModelError):
    """The provider answered with neither text nor a call."""

    error_type = "llm_empty_response"
