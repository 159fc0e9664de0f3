"""Memory blocks on their own (api-surface §1, blocks). No limit is enforced here: only tools keep to it (★S44)."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from perdure.agent.profile import new_block, sorted_tags
from perdure.api.deps import deps_of
from perdure.api.lookup import count_all
from perdure.api.params import BlockId, paged
from perdure.api.relations import Relations, agents_view
from perdure.api.schemas.agents import AgentState
from perdure.api.schemas.blocks import Block, BlockUpdate, CreateBlock
from perdure.api.views import block_view, reply
from perdure.domain import records
from perdure.domain.errors import NotImplementedYet
from perdure.domain.ports import AgentQuery, BlockQuery, Page

router = APIRouter(tags=["blocks"])

Many = Annotated[list[str] | None, Query()]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


async def _query(
    label: str | None = None,
    name: str | None = None,
    tags: Many = None,
    match_all_tags: bool = False,
    label_search: str | None = None,
    description_search: str | None = None,
    value_search: str | None = None,
    connected_to_agents_count_eq: Annotated[list[Count] | None, Query()] = None,
    connected_to_agents_count_gt: Count | None = None,
    connected_to_agents_count_lt: Count | None = None,
    templates_only: bool = False,
    identity_id: str | None = None,
    identifier_keys: Many = None,
    project_id: str | None = None,
) -> BlockQuery | None:
    """Which blocks; None if none can match, since this server has no identities with keys."""
    if identifier_keys:
        return None
    counts = set(connected_to_agents_count_eq or ())
    if len(counts) > 1:
        raise NotImplementedYet("connected_to_agents_count_eq takes one number in this version. Ask for each in turn.")
    return BlockQuery(
        label=label, name=name, tags=tuple(tags or ()), match_all_tags=match_all_tags, label_search=label_search,
        description_search=description_search, value_search=value_search, agents_eq=next(iter(counts), None),
        agents_gt=connected_to_agents_count_gt, agents_lt=connected_to_agents_count_lt, templates_only=templates_only,
        identity_id=identity_id, project_id=project_id,
    )  # fmt: skip


Wanted = Annotated[BlockQuery | None, Depends(_query)]


@router.get("/v1/blocks/", response_model=list[Block])
async def list_blocks(request: Request, query: Wanted, page: Annotated[Page, paged(50, "asc")]) -> Response:
    """A page of blocks."""
    found = await deps_of(request).store.blocks.find(query, page) if query else []
    return reply([block_view(block) for block in found])


@router.get("/v1/blocks/count", response_model=int)
async def count_blocks(request: Request, query: Wanted) -> Response:
    """How many blocks a filter finds."""
    if query is None:
        return reply(0)
    blocks = deps_of(request).store.blocks
    return reply(await count_all(lambda page: blocks.find(query, page), lambda block: block.id))


@router.post("/v1/blocks/", response_model=Block)
async def create_block(request: Request, body: CreateBlock) -> Response:
    """Make a block that belongs to no agent yet."""
    deps = deps_of(request)
    block = new_block(body.model_dump(exclude_unset=True), deps.clock.now())
    return reply(block_view(await deps.store.blocks.create(block)))


@router.get("/v1/blocks/{block_id}", response_model=Block)
async def retrieve_block(request: Request, block_id: BlockId) -> Response:
    """One block."""
    return reply(block_view(await deps_of(request).store.blocks.get(block_id)))


@router.patch("/v1/blocks/{block_id}", response_model=Block)
async def update_block(request: Request, block_id: BlockId, body: BlockUpdate) -> Response:
    """Change the fields that are sent, for every agent that has the block."""
    return reply(block_view(await apply_update(request, block_id, body)))


@router.delete("/v1/blocks/{block_id}", response_model=None)
async def delete_block(request: Request, block_id: BlockId) -> Response:
    """Delete a block, detaching it everywhere. Answers null."""
    await deps_of(request).store.blocks.delete(block_id)
    return reply(None)


@router.get("/v1/blocks/{block_id}/agents", response_model=list[AgentState])
async def list_block_agents(
    request: Request, block_id: BlockId, relations: Relations, page: Annotated[Page, paged(50)]
) -> Response:
    """The agents that have the block."""
    deps = deps_of(request)
    found = await deps.store.agents.find(AgentQuery(block_id=block_id), page)
    if not found:
        await deps.store.blocks.get(block_id)
    return reply(await agents_view(deps, found, relations))


async def apply_update(request: Request, block_id: str, body: BlockUpdate) -> records.Block:
    """Store a block's change. Raises NotFound, Conflict."""
    deps = deps_of(request)
    fields, now = body.model_dump(exclude_unset=True), deps.clock.now()
    return await deps.store.blocks.update(block_id, lambda block: changed(block, fields, now))


_KEPT_BY_NULL = ("label", "value", "limit", "read_only", "metadata")
_ECHOED = ("is_template", "preserve_on_migration", "project_id", "template_id", "template_name", "base_template_id",
           "deployment_id", "entity_id")  # fmt: skip


def changed(block: records.Block, fields: dict[str, Any], now: datetime) -> records.Block:
    """The block after a change; itself if nothing differs, so that nothing is recompiled (spec §7.1)."""
    change: dict[str, Any] = {key: fields[key] for key in _KEPT_BY_NULL if fields.get(key) is not None}
    change |= {key: fields[key] for key in ("description", "hidden") if key in fields}
    if fields.get("tags") is not None:
        change["tags"] = sorted_tags(fields["tags"])
    echoed = {key: fields[key] for key in _ECHOED if key in fields}
    change["extra"] = {key: value for key, value in (block.extra | echoed).items() if value}
    after = msgspec.structs.replace(block, **change)
    return block if after == block else msgspec.structs.replace(after, updated_at=now)
