"""Agents: list, make, read, change, delete (api-surface §1, agents).

What an agent is made of is decided in `agent.profile`; here its ingredients are looked up.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from perdure.agent import profile
from perdure.api.deps import Deps, deps_of
from perdure.api.input import Reader
from perdure.api.lookup import count_all, find_blocks, find_embedding, find_model, find_tools
from perdure.api.params import AgentId, paged
from perdure.api.relations import Relations, agents_view, pending_approval
from perdure.api.schemas.agents import AgentState, CreateAgentRequest, Deleted, Memory, UpdateAgent
from perdure.api.schemas.runs import StopReasonType
from perdure.api.send_schema import SendRequest
from perdure.api.views import RELATIONS, agent_view, block_view, memory_view, reply
from perdure.domain import records
from perdure.domain.errors import NotImplementedYet
from perdure.domain.ids import DEFAULT_USER
from perdure.domain.messages import Message
from perdure.domain.ports import AgentQuery, Page

router = APIRouter(tags=["agents"])

SortKey = Literal["created_at", "updated_at", "last_run_completion"]
Names = Annotated[list[str] | None, Query()]


async def _query(
    name: str | None = None,
    tags: Names = None,
    match_all_tags: bool = False,
    query_text: str | None = None,
    last_stop_reason: StopReasonType | None = None,
    identity_id: str | None = None,
    identifier_keys: Names = None,
    project_id: str | None = None,
    template_id: str | None = None,
    base_template_id: str | None = None,
    created_by_id: str | None = None,
) -> AgentQuery | None:
    """Which agents; None if none can match, since this server has one user and no identities with keys."""
    if identifier_keys or created_by_id not in (None, DEFAULT_USER):
        return None
    return AgentQuery(
        name=name, tags=tuple(tags or ()), match_all_tags=match_all_tags, query_text=query_text,
        last_stop_reason=last_stop_reason, identity_id=identity_id, project_id=project_id, template_id=template_id,
        base_template_id=base_template_id,
    )  # fmt: skip


Wanted = Annotated[AgentQuery | None, Depends(_query)]


@router.get("/v1/agents/", response_model=list[AgentState])
async def list_agents(
    request: Request,
    query: Wanted,
    relations: Relations,
    page: Annotated[Page, paged(50)],
    sort_by: SortKey = "created_at",
    order_by: SortKey | None = None,
) -> Response:
    """A page of agents."""
    deps = deps_of(request)
    found = await deps.store.agents.find(query, page, order_by or sort_by) if query else []
    return reply(await agents_view(deps, found, relations))


@router.get("/v1/agents/count", response_model=int)
async def count_agents(request: Request, query: Wanted) -> Response:
    """How many agents there are, or how many a filter finds."""
    agents = deps_of(request).store.agents
    if query is None:
        return reply(0)
    if query == AgentQuery():
        return reply(await agents.count())
    return reply(await count_all(lambda page: agents.find(query, page), lambda state: state.agent.id))


@router.post("/v1/agents/", response_model=AgentState)
async def create_agent(request: Request, body: CreateAgentRequest) -> Response:
    """Make an agent."""
    deps = deps_of(request)
    fields = _set(body)
    _refuse_folders(fields)
    model = await find_model(deps.models, fields)
    embedding = await find_embedding(deps.models, fields)
    tools = await find_tools(deps.store.tools, body.tool_ids or (), _tool_names(body), _base_names(body))
    shared = await find_blocks(deps.store.blocks, body.block_ids or ())
    made = profile.new_agent(
        fields, model, now=deps.clock.now(), tools=tools, attached=shared, opening=await _opening(deps, body),
        embedding=embedding,
    )  # fmt: skip
    state = await deps.store.agents.create(
        made.agent, blocks=made.blocks, block_ids=[block.id for block in shared],
        tool_ids=[tool.id for tool in tools], messages=made.messages,
    )  # fmt: skip
    return reply(agent_view(state))


def _set(body: CreateAgentRequest | UpdateAgent) -> dict[str, Any]:
    """The fields that were sent. Parts with documented defaults are filled in, the older llm_config is not."""
    fields = body.model_dump(exclude_unset=True, exclude={"initial_message_sequence"})
    for name in ("model_settings", "compaction_settings", "tool_rules", "response_format", "embedding_config"):
        part = getattr(body, name)
        if name in fields and part is not None:
            fields[name] = [rule.model_dump() for rule in part] if isinstance(part, list) else part.model_dump()
    return fields


def _refuse_folders(fields: dict[str, Any]) -> None:
    if fields.get("folder_ids") or fields.get("source_ids"):
        raise NotImplementedYet("Folders are not available in this version. Leave out folder_ids and source_ids.")


def _tool_names(body: CreateAgentRequest) -> list[str]:
    named = list(body.tools or ())
    return [*named, *profile.MULTI_AGENT_TOOLS] if body.include_multi_agent_tools else named


def _base_names(body: CreateAgentRequest) -> tuple[str, ...]:
    if body.include_base_tools is False:
        return ()
    return profile.base_tool_names(body.agent_type, bool(body.enable_sleeptime))


async def _opening(deps: Deps, body: CreateAgentRequest) -> list[Message] | None:
    """The caller's first messages in stored form; None if it leaves them to the agent's type."""
    if body.initial_message_sequence is None:
        return None
    if not body.initial_message_sequence:
        return []
    sent = SendRequest(messages=list(body.initial_message_sequence))
    return await Reader(deps.fetch_image, deps.store.messages.image, deps.clock.now()).read(sent)


@router.get("/v1/agents/{agent_id}", response_model=AgentState)
async def retrieve_agent(request: Request, agent_id: AgentId, relations: Relations) -> Response:
    """One agent."""
    deps = deps_of(request)
    state = await deps.store.agents.get(agent_id)
    if relations is RELATIONS:  # nothing was named by a client that gets everything: then this, too
        return reply(agent_view(state, relations, await pending_approval(deps, state)))
    return reply((await agents_view(deps, [state], relations))[0])


@router.patch("/v1/agents/{agent_id}", response_model=AgentState)
async def update_agent(request: Request, agent_id: AgentId, body: UpdateAgent) -> Response:
    """Change the fields that are sent."""
    deps = deps_of(request)
    fields = _set(body)
    _refuse_folders(fields)
    before = await deps.store.agents.get(agent_id)
    model = await find_model(deps.models, fields) if _names_model(fields) else None
    embedding = await find_embedding(deps.models, fields)
    tools = None if body.tool_ids is None else await find_tools(deps.store.tools, body.tool_ids)
    shared = None if body.block_ids is None else await find_blocks(deps.store.blocks, body.block_ids)
    profile.check_labels(shared or ())
    attached = {tool.id for tool in before.tools}
    new_tools = [tool for tool in tools or () if tool.id not in attached]
    now = deps.clock.now()

    def change(agent: records.Agent) -> records.Agent:
        return profile.revised(agent, fields, now=now, model=model, embedding=embedding, new_tools=new_tools)

    state = await deps.store.agents.update(
        agent_id, change,
        block_ids=None if shared is None else [block.id for block in shared],
        tool_ids=None if tools is None else [tool.id for tool in tools],
        message_ids=body.message_ids,
    )  # fmt: skip
    return reply(agent_view(state))


def _names_model(fields: dict[str, Any]) -> bool:
    return bool(fields.get("model") or fields.get("llm_config"))


@router.delete("/v1/agents/{agent_id}", response_model=Deleted)
async def delete_agent(request: Request, agent_id: AgentId) -> Response:
    """Delete an agent with its history. Its memory blocks stay."""
    await deps_of(request).store.agents.delete(agent_id)
    return reply({"message": f"Agent {agent_id} is deleted."})


@router.get("/v1/agents/{agent_id}/core-memory", response_model=Memory, deprecated=True)
async def retrieve_memory(request: Request, agent_id: AgentId) -> Response:
    """The agent's blocks in their older form."""
    state = await deps_of(request).store.agents.get(agent_id)
    return reply(memory_view(state.agent, [block_view(block) for block in state.blocks]))
