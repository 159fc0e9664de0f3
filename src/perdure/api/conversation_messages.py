"""What is said in conversations: list, send, stream, cancel (api-surface §1, conversations; spec §4.7, §6.3, §6.4).

The same as for agents, on another context; records of conversations are in `conversations`.
"""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from perdure.api import sending
from perdure.api.conversations import ONE, Target, own_of, target_of
from perdure.api.deps import Deps, deps_of
from perdure.api.params import ConversationId
from perdure.api.schemas.messages import LettaMessage, LettaResponse
from perdure.api.send_schema import MessageType, SendRequest
from perdure.api.streams import RunStreamRequest, resume
from perdure.api.views import reply
from perdure.api.wire import listed
from perdure.domain.errors import Invalid, NotFound
from perdure.domain.ports import MessageQuery, Page, RunQuery
from perdure.domain.records import Run
from perdure.runs.admission import REMEMBERED

router = APIRouter(tags=["conversations"])

RUN_TYPE = "send_conversation_message"
PATIENCE = 1.75
"""Seconds that a stream waits for the run of an otid: the request that makes it may be on its way."""
LOOK = 0.25


class ConversationSendRequest(SendRequest):
    """The same as to an agent, streamed unless it says otherwise (api-surface §6, trap 5)."""

    streaming: bool = True
    agent_id: str | None = None


class ConversationStreamRequest(RunStreamRequest):
    """Which run's stream to read, by its id or by the otid of a message; neither: the newest one under way."""

    agent_id: str | None = None
    run_id: str | None = None
    otid: str | None = None


@router.get(ONE + "/messages", response_model=list[LettaMessage])
async def list_conversation_messages(
    conversation_id: ConversationId,
    request: Request,
    agent_id: str | None = None,
    before: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    order: Literal["asc", "desc"] = "desc",
    order_by: Literal["created_at"] = "created_at",
    group_id: str | None = None,
    include_err: bool | None = None,
    include_return_message_types: Annotated[list[MessageType] | None, Query()] = None,
) -> Response:
    """A page of what was said, newest first unless asked otherwise (★S58); of a fork also what it shares.

    `after` means later said and `before` earlier said, whatever the order (spec §9.3).
    """
    deps = deps_of(request)
    target = await target_of(deps, conversation_id, agent_id)
    query = MessageQuery(
        agent_id=target.agent_id, conversation_id=target.named, group_id=group_id, include_err=bool(include_err)
    )
    page = Page(limit=limit, before=before, after=after, ascending=order == "asc")
    stored = await deps.store.messages.find(query, page)
    types = include_return_message_types
    return reply(listed((entry.message for entry in stored), include_return_message_types=types))


@router.post(ONE + "/messages", response_model=LettaResponse)
async def send_conversation_message(
    conversation_id: ConversationId, body: ConversationSendRequest, request: Request, agent_id: str | None = None
) -> Response:
    """Send messages; stream the outcome, or answer with the whole of it (`streaming`: false)."""
    deps = deps_of(request)
    own = own_of(conversation_id, body.agent_id or agent_id)
    to = own or await deps.store.conversations.touch(conversation_id, deps.clock.now())
    raw = await request.body()
    return await sending.send_to(request, to, None if own else conversation_id, body, raw, RUN_TYPE)


@router.post(ONE + "/stream", response_model=None)
async def stream_conversation(
    conversation_id: ConversationId, request: Request, agent_id: str | None = None,
    body: ConversationStreamRequest | None = None,
) -> Response:  # fmt: skip
    """The frames of a background run of the conversation after number `starting_after`, then live to its end."""
    deps, body = deps_of(request), body or ConversationStreamRequest()
    target = await target_of(deps, conversation_id, body.agent_id or agent_id)
    return await resume(deps, await _run_of(deps, target, body), body)


async def _run_of(deps: Deps, target: Target, body: ConversationStreamRequest) -> Run:
    """The run whose stream is meant. Raises NotFound (run, otid), Invalid (none is under way)."""
    if body.run_id is not None:
        run = await deps.store.runs.get(body.run_id)
        if run.context_id != target.context_id:
            raise NotFound(f"Run not found: {run.id} is not of this conversation.")
        return run
    if body.otid is not None:
        return await _run_with(deps, target, body.otid)
    under_way = RunQuery(
        agent_ids=(target.agent_id,), statuses=("created", "running"), background=True, conversation_id=target.named
    )
    found = await deps.store.runs.find(under_way, Page(limit=1))
    if not found:
        raise Invalid(
            "No background run of this conversation is under way. Name one that has ended by its run_id or otid, or "
            "read the messages."
        )
    return found[0]


async def _run_with(deps: Deps, target: Target, otid: str) -> Run:
    """The run that a message with this otid was sent to, waited for a moment. Raises NotFound."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE
    while True:
        run = await deps.store.runs.with_otid(target.context_id, otid, deps.clock.now() - REMEMBERED)
        if run:
            return run
        if loop.time() + LOOK > until:
            raise NotFound(f"No run of this conversation was sent a message with the otid {otid!r}.")
        await asyncio.sleep(LOOK)


@router.post(ONE + "/cancel", response_model=dict[str, Literal["cancelled", "failed"]])
async def cancel_conversation(
    conversation_id: ConversationId, request: Request, agent_id: str | None = None
) -> Response:
    """Cancel what is under way or waits in the conversation; answers what became of each run (spec §6.4)."""
    deps = deps_of(request)
    target = await target_of(deps, conversation_id, agent_id)
    return reply(await deps.executor.cancel(target.agent_id, conversation_id=target.named))
