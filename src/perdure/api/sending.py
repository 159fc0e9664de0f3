"""Sending messages to an agent, listing and resetting them (behaviour spec §2, §3, §9.3)."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from perdure.agent.turn import Options
from perdure.api.deps import Deps, deps_of
from perdure.api.hot import parse
from perdure.api.input import Reader
from perdure.api.params import AgentId
from perdure.api.schemas.agents import AgentState
from perdure.api.schemas.messages import LettaMessage, LettaResponse
from perdure.api.schemas.runs import Run as RunSchema
from perdure.api.send_schema import AsyncRequest, CancelRequest, MessageType, SendRequest, StreamRequest
from perdure.api.sse import usage_statistics
from perdure.api.streams import stream_of
from perdure.api.views import agent_view, reply, run_view
from perdure.api.wire import Wire, listed
from perdure.domain.errors import NotImplementedYet
from perdure.domain.events import RunEnded
from perdure.domain.ids import UUID4
from perdure.domain.messages import Message, Text
from perdure.domain.ports import MessageQuery, Page
from perdure.memory.prompt import compile_system
from perdure.runs.ongoing import Ongoing
from perdure.runs.order import Order, View

router = APIRouter(tags=["agents.messages"])


SEND_PATH = rf"/v1/agents/(agent-{UUID4})/messages"
"""The path that `hot` serves itself."""


@router.post("/v1/agents/{agent_id}/messages", response_model=LettaResponse)
async def send_message(agent_id: AgentId, body: SendRequest, request: Request) -> Response:
    """Send messages; answer with the whole outcome, or stream it (`streaming`)."""
    return await send_to(request, agent_id, None, body, await request.body())


@router.post("/v1/agents/{agent_id}/messages/stream", response_model=None, deprecated=True)
async def stream_messages(agent_id: AgentId, body: StreamRequest, request: Request) -> Response:
    """Send messages and stream the answer, whatever `streaming` says."""
    return await send_to(request, agent_id, None, body, await request.body())


@router.post("/v1/agents/{agent_id}/messages/async", response_model=RunSchema)
async def send_in_background(agent_id: AgentId, body: AsyncRequest, request: Request) -> Response:
    """Send messages and answer at once with the run, to be polled, or followed as a stream (spec §9.1, ★S57)."""
    if body.callback_url:
        deps_of(request).check_callback(body.callback_url)
    order = await _order(request, agent_id, None, body, await request.body(), "send_message_async")
    view = View(pings=False, types=tuple(body.include_return_message_types or ()), numbered=True)
    order = dataclasses.replace(order, background=True, view=view, callback_url=body.callback_url or None)
    started = await deps_of(request).executor.start(order)
    if isinstance(started, Ongoing):
        return reply(run_view(msgspec.structs.replace(started.run, status="created")))
    return reply(run_view(started))


@router.post("/v1/agents/{agent_id}/messages/cancel", response_model=dict[str, Literal["cancelled", "failed"]])
async def cancel_runs(agent_id: AgentId, request: Request, body: CancelRequest | None = None) -> Response:
    """Cancel runs under way; answers what became of each (spec §6.4)."""
    named = body.run_ids if body else None
    own = None if named else "default"  # another conversation's runs are another's (★S41)
    return reply(await deps_of(request).executor.cancel(agent_id, named, own))


async def send_hot(request: Request, agent_id: str) -> Response:
    """The same as `send_message`, past the framework."""
    raw = await request.body()
    return await send_to(request, agent_id, None, parse(SendRequest, raw), raw)


async def send_to(
    request: Request, agent_id: str, conversation_id: str | None, body: SendRequest, raw: bytes,
    run_type: str | None = None,
) -> Response:  # fmt: skip
    """Carry a request out on an agent's own conversation, or on another of its conversations."""
    kind = run_type or ("send_message_streaming" if body.streaming else "send_message")
    order = await _order(request, agent_id, conversation_id, body, raw, kind)
    deps = deps_of(request)
    started = await deps.executor.start(order)
    if body.streaming:
        return stream_of(deps, started, pings=body.include_pings)
    outcome = await deps.executor.outcome(started)
    if outcome.ended.error:
        raise outcome.ended.error
    return reply(_response(outcome.messages, outcome.ended, body.include_return_message_types))


def _response(messages: Sequence[Message], ended: RunEnded, types: Sequence[MessageType] | None) -> Wire:
    return {
        "messages": listed(messages, include_return_message_types=types),
        "stop_reason": {"message_type": "stop_reason", "stop_reason": ended.stop_reason},
        "usage": usage_statistics(ended.usage, ended.step_count, ended.context_tokens),
        "logprobs": None,
        "turns": None,
    }


async def _order(
    request: Request, agent_id: str, conversation_id: str | None, body: SendRequest, raw: bytes, run_type: str
) -> Order:
    """The request as an order. Raises Invalid for what its words mean, NotImplementedYet."""
    deps = deps_of(request)
    if body.client_tools:
        raise NotImplementedYet("client_tools are not available in this version. Send without them.")
    messages = await Reader(deps.fetch_image, deps.store.messages.image, deps.clock.now()).read(body)
    skills = [skill.model_dump() for skill in body.client_skills or ()]
    options = Options(
        max_steps=body.max_steps, override_system=body.override_system, client_skills=skills, deltas=body.stream_tokens
    )
    return Order(
        agent_id=agent_id, conversation_id=conversation_id, messages=messages, request=raw, options=options,
        view=_view(body), override_model=body.override_model, background=body.background, run_type=run_type,
        otids=_otids(body), retry=request.headers.get("x-stainless-retry-count", "0") != "0", on_busy=body.on_busy,
        request_config={
            "use_assistant_message": body.use_assistant_message,
            "assistant_message_tool_name": body.assistant_message_tool_name,
            "assistant_message_tool_kwarg": body.assistant_message_tool_kwarg,
            "include_return_message_types": body.include_return_message_types,
        },
    )  # fmt: skip


def _view(body: SendRequest) -> View | None:
    if not body.streaming:
        return None
    return View(
        tokens=body.stream_tokens, pings=body.include_pings, types=tuple(body.include_return_message_types or ()),
        numbered=body.background,
    )  # fmt: skip


def _otids(body: SendRequest) -> tuple[str, ...]:
    """The caller's own ids of its messages; none if any message has none (spec §6.2)."""
    given = [message.otid for message in body.messages or ()]
    return tuple(otid for otid in given if otid) if all(given) else ()


@router.get("/v1/agents/{agent_id}/messages", response_model=list[LettaMessage])
async def list_messages(
    agent_id: AgentId,
    request: Request,
    before: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    order: Literal["asc", "desc"] = "desc",
    group_id: str | None = None,
    conversation_id: str | None = None,
    include_return_message_types: Annotated[list[MessageType] | None, Query()] = None,
    use_assistant_message: bool = True,
    assistant_message_tool_name: str = "send_message",
    assistant_message_tool_kwarg: str = "message",
    include_err: bool | None = None,
) -> Response:
    """A page of history: `limit` stored messages, always oldest first in the array (★S58)."""
    deps = deps_of(request)
    query = MessageQuery(
        agent_id=agent_id, group_id=group_id, conversation_id=conversation_id, include_err=bool(include_err)
    )
    page = Page(limit=limit, before=before, after=after, ascending=order == "asc")
    stored = await deps.store.messages.find(query, page)
    if not stored:
        await deps.store.agents.get(agent_id)
    messages = [entry.message for entry in (stored if order == "asc" else reversed(stored))]
    return reply(listed(messages, include_return_message_types=include_return_message_types))


class ResetRequest(BaseModel):
    """Whether to begin again with the agent type's default initial messages (none for current types)."""

    add_default_initial_messages: bool = False


@router.patch("/v1/agents/{agent_id}/reset-messages", response_model=AgentState)
async def reset_messages(agent_id: AgentId, request: Request, body: ResetRequest | None = None) -> Response:
    """Empty the context but for a freshly compiled system message; history is kept."""
    deps = deps_of(request)
    await reset_context(deps, agent_id)
    return reply(agent_view(await deps.store.agents.get(agent_id)))


async def reset_context(deps: Deps, context_id: str) -> None:
    """Context = [recompiled system message]. Raises NotFound, Busy."""
    context = await deps.store.contexts.load(context_id)
    hidden = context.hidden_count + len(context.messages) - 1
    now = deps.clock.now()
    text = compile_system(
        context.agent, context.blocks, context.tools, compiled_at=now, hidden_count=hidden,
        conversation_id=context.conversation_id,
    )  # fmt: skip
    system = msgspec.structs.replace(context.messages[0], content=(Text(text),))
    await deps.store.contexts.reset(
        context_id, system, [], compiled_version=context.agent_version, compiled_at=now, hidden_count=hidden
    )
