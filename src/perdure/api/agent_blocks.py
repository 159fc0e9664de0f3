"""The core memory of one agent, block by block (api-surface §1, agents.blocks). Labels may hold slashes."""

from typing import Annotated

from fastapi import APIRouter, Request, Response

from perdure.api.blocks import apply_update
from perdure.api.deps import deps_of
from perdure.api.params import AgentId, BlockId, paged, window
from perdure.api.schemas.agents import AgentState
from perdure.api.schemas.blocks import Block, BlockUpdate
from perdure.api.views import agent_view, block_view, reply
from perdure.domain import records
from perdure.domain.errors import NotFound
from perdure.domain.ports import Page

router = APIRouter(tags=["agents.blocks"])

BLOCKS = "/v1/agents/{agent_id}/core-memory/blocks"


@router.get(BLOCKS, response_model=list[Block])
async def list_agent_blocks(request: Request, agent_id: AgentId, page: Annotated[Page, paged(100)]) -> Response:
    """A page of the agent's blocks."""
    state = await deps_of(request).store.agents.get(agent_id)
    shown = window(state.blocks, page, lambda block: block.created_at, lambda block: block.id)
    return reply([block_view(block) for block in shown])


@router.patch(BLOCKS + "/attach/{block_id}", response_model=AgentState)
async def attach_block(request: Request, agent_id: AgentId, block_id: BlockId) -> Response:
    """Attach a block; nothing happens if it is attached."""
    return reply(agent_view(await deps_of(request).store.agents.attach_block(agent_id, block_id)))


@router.patch(BLOCKS + "/detach/{block_id}", response_model=AgentState)
async def detach_block(request: Request, agent_id: AgentId, block_id: BlockId) -> Response:
    """Detach a block; it stays in the store."""
    return reply(agent_view(await deps_of(request).store.agents.detach_block(agent_id, block_id)))


@router.get(BLOCKS + "/{block_label:path}", response_model=Block)
async def retrieve_agent_block(request: Request, agent_id: AgentId, block_label: str) -> Response:
    """One block of the agent, by its label."""
    return reply(block_view(await _labelled(request, agent_id, block_label)))


@router.patch(BLOCKS + "/{block_label:path}", response_model=Block)
async def update_agent_block(request: Request, agent_id: AgentId, block_label: str, body: BlockUpdate) -> Response:
    """Change a block of the agent. A read-only block can be changed here: only tools may not (spec §7.1)."""
    block = await _labelled(request, agent_id, block_label)
    return reply(block_view(await apply_update(request, block.id, body)))


async def _labelled(request: Request, agent_id: str, label: str) -> records.Block:
    """Raises NotFound with the labels there are."""
    state = await deps_of(request).store.agents.get(agent_id)
    for block in state.blocks:
        if block.label == label:
            return block
    labels = ", ".join(block.label for block in state.blocks) or "none"
    raise NotFound(f"The agent has no block with the label {label!r}. Its labels: {labels}.")
