"""What came of a run, read from what is stored: for those who were not there when it ended."""

from collections.abc import Mapping

from perdure.domain import errors as e
from perdure.domain.events import RunEnded
from perdure.domain.messages import Message
from perdure.domain.ports import MessageQuery, Page, Store
from perdure.domain.records import Run
from perdure.runs.ongoing import Outcome

PAGE = 1000
KINDS: Mapping[str, type[e.ModelError]] = {
    kind.__name__: kind
    for kind in (
        e.ModelTimeout, e.ModelRateLimited, e.ModelOutOfCredits, e.ModelAuthentication, e.ModelBadRequest,
        e.ContextOverflow, e.ModelOverloaded, e.ModelEmptyResponse, e.ModelError,
    )
}  # fmt: skip


async def recorded(store: Store, run: Run) -> Outcome:
    """The outcome of a run that has ended."""
    return Outcome(await made_by(store, run), ended_of(run))


async def made_by(store: Store, run: Run) -> list[Message]:
    """The messages that a run has made, oldest first, without its input and what the loop said to the model."""
    found: list[Message] = []
    after: str | None = None
    while True:
        page = Page(limit=PAGE, after=after, ascending=True)
        stored = await store.messages.find(MessageQuery(run_id=run.id, include_err=True), page)
        found += [entry.message for entry in stored]
        if len(stored) < PAGE:
            return [message for message in found[run.input_count :] if message.role != "user"]
        after = stored[-1].message.id


def ended_of(run: Run) -> RunEnded:
    """How a run ended, as its record has it."""
    error = error_of(run) if run.stop_reason != "cancelled" else None
    return RunEnded(run.stop_reason or "error", run.usage, run.step_count, run.context_tokens, error)


def error_of(run: Run) -> Exception | None:
    """The error behind a run's `metadata.error`."""
    told = run.metadata.get("error")
    if not isinstance(told, dict):
        return None
    message, detail = str(told.get("message", "")), str(told.get("detail", ""))
    kind = KINDS.get(run.error_kind)
    return kind(message, detail) if kind else e.RunFailed(message)
