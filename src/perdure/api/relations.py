"""Which relations an agent is shown with (api-surface §6, trap 3).

A current SDK gets only what `include` names; every other client gets everything, unless it names something itself.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request

from perdure.api.deps import Deps
from perdure.api.params import is_current_client, words
from perdure.api.views import RELATIONS, View, agent_view
from perdure.api.wire import listed
from perdure.domain.errors import NotFound
from perdure.domain.records import AgentState

Include = Literal[
    "agent.blocks", "agent.identities", "agent.managed_group", "agent.pending_approval", "agent.secrets",
    "agent.sources", "agent.tags", "agent.tools",
]  # fmt: skip
PENDING = "pending_approval"
_OLD_NAMES = {
    "memory": "blocks", "core_memory": "blocks", "tool_exec_environment_variables": "secrets",
    "identity_ids": "identities", "multi_agent_group": "managed_group",
}  # fmt: skip


async def _relations(
    request: Request,
    include: Annotated[list[Include] | None, Query(description="Relations to show.")] = None,
    include_relationships: Annotated[list[str] | None, Query(deprecated=True)] = None,
) -> frozenset[str]:
    if include is None and include_relationships is None:
        return frozenset() if is_current_client(request) else RELATIONS
    named = [name.removeprefix("agent.") for name in (*(include or ()), *words(include_relationships))]
    return frozenset(_OLD_NAMES.get(name, name) for name in named)


Relations = Annotated[frozenset[str], Depends(_relations)]


async def agents_view(deps: Deps, states: Sequence[AgentState], relations: frozenset[str]) -> list[View]:
    """Agents with these relations. The pending approval is read only where it was named."""
    if PENDING not in relations:
        return [agent_view(state, relations) for state in states]
    pending = await asyncio.gather(*(pending_approval(deps, state) for state in states))
    return [agent_view(state, relations, wire) for state, wire in zip(states, pending, strict=True)]


async def pending_approval(deps: Deps, state: AgentState) -> View | None:
    """The approval request that the agent's context ends with, if it does (spec §5.2)."""
    if len(state.message_ids) < 2:
        return None
    try:
        last = (await deps.store.messages.get(state.message_ids[-1])).message
    except NotFound:  # the agent was deleted between the two reads
        return None
    if last.role != "approval" or not last.tool_calls:
        return None
    shown: list[dict[str, Any]] = listed([last], include_return_message_types=["approval_request_message"])
    return shown[-1] if shown else None
