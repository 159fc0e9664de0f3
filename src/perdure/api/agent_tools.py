"""The tools of one agent, and which of them wait for approval (api-surface §1, agents.tools; spec §5.1)."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from perdure.agent.profile import approval_set
from perdure.api.deps import deps_of
from perdure.api.params import AgentId, ToolId, is_current_client, paged, window
from perdure.api.schemas.agents import AgentState
from perdure.api.schemas.tools import ApprovalRequirement, Tool
from perdure.api.views import agent_view, reply, tool_view
from perdure.domain import records
from perdure.domain.errors import NotFound, Unprocessable
from perdure.domain.ports import Page

router = APIRouter(tags=["agents.tools"])

TOOLS = "/v1/agents/{agent_id}/tools"


@router.get(TOOLS, response_model=list[Tool])
async def list_agent_tools(request: Request, agent_id: AgentId, page: Annotated[Page, paged(10)]) -> Response:
    """A page of the agent's tools."""
    state = await deps_of(request).store.agents.get(agent_id)
    shown = window(state.tools, page, lambda tool: tool.created_at, lambda tool: tool.id)
    return reply([tool_view(tool) for tool in shown])


@router.patch(TOOLS + "/attach/{tool_id}", response_model=AgentState | None)
async def attach_tool(request: Request, agent_id: AgentId, tool_id: ToolId) -> Response:
    """Attach a tool, with an approval rule if the tool asks for one."""
    deps = deps_of(request)
    now = deps.clock.now()

    def change(agent: records.Agent, tool: records.Tool) -> records.Agent:
        return approval_set(agent, tool.name, True, now) if tool.default_requires_approval else agent

    return _answer(request, await deps.store.agents.attach_tool(agent_id, tool_id, change))


@router.patch(TOOLS + "/detach/{tool_id}", response_model=AgentState | None)
async def detach_tool(request: Request, agent_id: AgentId, tool_id: ToolId) -> Response:
    """Detach a tool; nothing happens if it is not attached."""
    return _answer(request, await deps_of(request).store.agents.detach_tool(agent_id, tool_id))


@router.patch(TOOLS + "/approval/{tool_name}", response_model=AgentState | None)
async def update_approval(
    request: Request,
    agent_id: AgentId,
    tool_name: str,
    body: ApprovalRequirement | None = None,
    requires_approval: Annotated[bool | None, Query(deprecated=True)] = None,
) -> Response:
    """Make calls of an attached tool wait for approval, or not. Saying it twice changes nothing."""
    required = body.requires_approval if body else requires_approval
    if required is None:
        raise Unprocessable('Say whether calls need approval: send {"requires_approval": true} or false.')
    deps = deps_of(request)
    state = await deps.store.agents.get(agent_id)
    if all(tool.name != tool_name for tool in state.tools):
        raise NotFound(f"The agent has no tool named {tool_name!r}. Attach it first.")
    now = deps.clock.now()
    return _answer(
        request, await deps.store.agents.update(agent_id, lambda agent: approval_set(agent, tool_name, required, now))
    )


def _answer(request: Request, state: records.AgentState) -> Response:
    """Nothing for a current SDK, the agent for everybody else (api-surface §5.7)."""
    return reply(None if is_current_client(request) else agent_view(state))
