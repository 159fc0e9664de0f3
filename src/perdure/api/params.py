"""Path ids, paging and the kinds of client: what many routes read from a request (api-surface §5.1, §5.5, §6).

Checked here is only the form; whether a thing exists is the store's answer.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Path, Query
from starlette.requests import Request

from perdure.domain.errors import NotFound
from perdure.domain.ids import UUID4
from perdure.domain.ports import Page

EXAMPLE_UUID = "123e4567-e89b-42d3-a456-426614174000"
EXAMPLES: dict[str, str] = {}
"""An id of the right form for each path parameter, to be shown with a refusal."""

Order = Literal["asc", "desc"]
MAX_LIMIT = 1000
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="How many results at most.")]
Cursor = Annotated[str | None, Query(description="The id of the result that the page lies before or after.")]


def _id(parameter: str, prefix: str) -> Any:
    """The check of a path id; also notes an example of one."""
    EXAMPLES[parameter] = f"{prefix}-{EXAMPLE_UUID}"
    return Path(pattern=f"^{prefix}-{UUID4}$", description=f"'{prefix}-' and a UUID, such as {EXAMPLES[parameter]}.")


AgentId = Annotated[str, _id("agent_id", "agent")]
BlockId = Annotated[str, _id("block_id", "block")]
ToolId = Annotated[str, _id("tool_id", "tool")]
RunId = Annotated[str, _id("run_id", "run")]
StepId = Annotated[str, _id("step_id", "step")]
MessageId = Annotated[str, _id("message_id", "message")]


CONVERSATION_ID = rf"^(?:default|(?:conv|agent)-{UUID4})$"
EXAMPLES["conversation_id"] = f"conv-{EXAMPLE_UUID}"
ConversationId = Annotated[
    str,
    Path(
        pattern=CONVERSATION_ID,
        description=f"'conv-' and a UUID, such as {EXAMPLES['conversation_id']}; 'default' together with an agent_id; "
        "or, deprecated, the id of an agent, which means its own conversation.",
    ),
]


def paged(limit: int, order: Order = "desc") -> Any:
    """A dependency that reads a page's bounds, with this endpoint's own defaults (api-surface §6, trap 6).

    The deprecated `ascending` counts only where `order` is not sent.
    """

    async def page(
        limit: Limit = limit,
        before: Cursor = None,
        after: Cursor = None,
        order: Annotated[Order | None, Query(description=f"asc: oldest first, desc: newest first; {order}.")] = None,
        ascending: Annotated[bool | None, Query(deprecated=True)] = None,
    ) -> Page:
        if order is None and ascending is not None:
            return Page(limit, before, after, ascending)
        return Page(limit, before, after, (order or default) == "asc")

    default = order
    return Depends(page)


T = TypeVar("T")


def window(items: Sequence[T], page: Page, key: Callable[[T], Any], id_of: Callable[[T], str]) -> list[T]:
    """The page of a list that is at hand as a whole; what is equally old stays in the list's order.

    Raises NotFound for a cursor that is not in it.
    """
    ordered = sorted(items, key=key)[:: 1 if page.ascending else -1]
    ids = [id_of(item) for item in ordered]
    start = _position(ids, page.after) + 1 if page.after else 0
    end = _position(ids, page.before) if page.before else len(ids)
    if page.before and not page.after:
        start = max(start, end - page.limit)
    return ordered[start:end][: page.limit]


def _position(ids: Sequence[str], cursor: str) -> int:
    try:
        return ids.index(cursor)
    except ValueError:
        raise NotFound(f"No result has the id {cursor!r}. Page with an id from this list.") from None


def words(values: Sequence[str] | None) -> tuple[str, ...]:
    """The values of a repeated parameter; a value may hold several, separated by commas."""
    return tuple(word for value in values or () for word in value.split(",") if word)


def is_current_client(request: Request) -> bool:
    """Whether the caller is an SDK of version 1 (api-surface §6, trap 3): no User-Agent at all counts as one."""
    agent = request.headers.get("user-agent")
    return "x-stainless-package-version" in request.headers or not agent or agent.startswith("letta-client/1.")
