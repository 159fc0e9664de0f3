"""Compacting a context on request (behaviour spec §1.7; api-surface, agents.messages.compact)."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from perdure.api.deps import Deps, deps_of
from perdure.api.params import AgentId
from perdure.api.schemas.models import CompactionSettings
from perdure.api.views import reply
from perdure.domain.errors import NotFound
from perdure.domain.ids import UUID4
from perdure.runs.compaction import Compactions

router = APIRouter(tags=["agents.messages"])

ConversationId = Annotated[
    str, Path(pattern=f"^(default|(conv|agent)-{UUID4})$", description="'conv-' and a UUID, or 'default'.")
]


class CompactionRequest(BaseModel):
    """Settings for this one compaction; those that are left out are the agent's own."""

    compaction_settings: CompactionSettings | None = None

    def given(self) -> dict[str, Any]:
        """The settings that were sent."""
        return self.compaction_settings.model_dump(exclude_unset=True) if self.compaction_settings else {}


class ConversationCompactionRequest(CompactionRequest):
    """The same for a conversation; `agent_id` says whose `default` one is meant."""

    agent_id: Annotated[str, Field(pattern=f"^agent-{UUID4}$")] | None = None


class CompactionResponse(BaseModel):
    """What a compaction did. The numbers are those of messages in the context, the system message counted in."""

    summary: str
    num_messages_before: int
    num_messages_after: int


@router.post("/v1/agents/{agent_id}/summarize", response_model=CompactionResponse)
async def compact_messages(agent_id: AgentId, request: Request, body: CompactionRequest | None = None) -> Response:
    """Put a summary in the place of the oldest part of the agent's context; history is kept."""
    return await _compacted(request, agent_id, None, body or CompactionRequest())


@router.post("/v1/conversations/{conversation_id}/compact", response_model=CompactionResponse)
async def compact_conversation(
    conversation_id: ConversationId, request: Request, body: ConversationCompactionRequest | None = None
) -> Response:
    """Put a summary in the place of the oldest part of a conversation; `default` with `agent_id` is the agent's own."""
    body = body or ConversationCompactionRequest()
    if conversation_id.startswith("conv-"):
        owner = await _owner(deps_of(request), conversation_id)
        return await _compacted(request, owner, conversation_id, body)
    agent_id = body.agent_id if conversation_id == "default" else conversation_id
    if agent_id is None:
        raise NotFound("Every agent has a conversation 'default'. Send the agent_id in the body to say whose is meant.")
    return await _compacted(request, agent_id, None, body)


async def _owner(deps: Deps, conversation_id: str) -> str:
    """The agent of a conversation. Raises NotFound."""
    try:
        return (await deps.store.contexts.load(conversation_id)).agent.id
    except NotFound:
        raise NotFound(f"Conversation not found: {conversation_id}") from None


async def _compacted(request: Request, agent_id: str, conversation_id: str | None, body: CompactionRequest) -> Response:
    deps: Deps = deps_of(request)
    compactions = Compactions(deps.executor, deps.store, deps.models, deps.clock)
    retry = request.headers.get("x-stainless-retry-count", "0") != "0"
    report = await compactions.compact(agent_id, conversation_id, body.given(), retry=retry)
    return reply(msgspec.structs.asdict(report))
