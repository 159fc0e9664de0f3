"""Conversations: list, make, read, change, delete, fork, recompile (api-surface §1, conversations; spec §6.3).

What is said in them is in `conversation_messages`. Whatever path names a conversation may also say `default` (with an
agent id beside it) or an agent's id: `target_of` tells which context is meant.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from perdure.agent.conversation_profile import forked, new_conversation, revised
from perdure.api.deps import Deps, deps_of
from perdure.api.lookup import find_model
from perdure.api.params import ConversationId, paged
from perdure.api.schemas.conversations import Conversation, CreateConversation, RecompileRequest, UpdateConversation
from perdure.api.views import conversation_view, reply
from perdure.domain import conversations as records
from perdure.domain.errors import NotFound
from perdure.domain.ports import Page
from perdure.domain.records import Context, ModelInfo
from perdure.memory.prompt import compile_system

router = APIRouter(tags=["conversations"])

SortKey = Literal["created_at", "last_run_completion", "last_message_at"]
ArchiveStatus = Literal["unarchived", "archived", "all"]
ARCHIVED: dict[str, bool | None] = {"unarchived": False, "archived": True, "all": None}
ONE = "/v1/conversations/{conversation_id}"


@dataclass(frozen=True)
class Target:
    """Which context a path means: an agent's own (`conversation_id` None), or that of a conversation of the agent."""

    agent_id: str
    conversation_id: str | None = None

    @property
    def context_id(self) -> str:
        """The id of the context."""
        return self.conversation_id or self.agent_id

    @property
    def named(self) -> str:
        """The conversation as filters name it."""
        return self.conversation_id or "default"


async def target_of(deps: Deps, conversation_id: str, agent_id: str | None = None) -> Target:
    """The context that a path id means; `agent_id` is what came beside it. Raises NotFound (conversation, agent)."""
    own = own_of(conversation_id, agent_id)
    if own is None:
        return Target(await deps.store.conversations.agent_of(conversation_id), conversation_id)
    await deps.store.contexts.blocks(own)  # the cheapest way to learn whether there is such an agent
    return Target(own)


def own_of(conversation_id: str, agent_id: str | None) -> str | None:
    """The agent whose own conversation a path id means; None if it means another one. Raises NotFound (no agent)."""
    if conversation_id.startswith("conv-"):
        return None
    if conversation_id != "default":
        return conversation_id
    if not agent_id:
        raise NotFound("The conversation 'default' is an agent's own: send agent_id, in the query or in the body.")
    if not agent_id.startswith("agent-"):
        raise NotFound("Agent not found")
    return agent_id


@router.get("/v1/conversations/", response_model=list[Conversation])
async def list_conversations(
    request: Request,
    page: Annotated[Page, paged(50)],
    agent_id: str | None = None,
    archive_status: ArchiveStatus = "unarchived",
    summary_search: str | None = None,
    order_by: SortKey = "created_at",
    include_hidden: Annotated[bool, Query(description="Our extension: hidden conversations are listed, too.")] = False,
) -> Response:
    """A page of conversations, of one agent or of all."""
    query = records.ConversationQuery(
        agent_id=agent_id, archived=ARCHIVED[archive_status], hidden=None if include_hidden else False,
        summary_search=summary_search or None,
    )  # fmt: skip
    found = await deps_of(request).store.conversations.find(query, page, order_by)
    return reply([conversation_view(state) for state in found])


@router.post("/v1/conversations/", response_model=Conversation)
async def create_conversation(request: Request, agent_id: str, body: CreateConversation | None = None) -> Response:
    """Make a conversation with an agent. Its system message is compiled now."""
    deps, fields = deps_of(request), _set(body or CreateConversation())
    agent = (await deps.store.agents.get(agent_id)).agent
    model = await _model_after(deps, fields, None)
    made = new_conversation(agent, fields, now=deps.clock.now(), model=model)
    labels = fields.get("isolated_block_labels") or ()
    return reply(conversation_view(await deps.store.conversations.create(made, system_text, isolated=labels)))


def _set(body: CreateConversation | UpdateConversation) -> dict[str, Any]:
    """The fields that were sent; settings as a whole, since parts of them have documented defaults."""
    fields = body.model_dump(exclude_unset=True)
    if body.model_settings is not None:
        fields["model_settings"] = body.model_settings.model_dump()
    return fields


async def _model_after(deps: Deps, fields: dict[str, Any], before: str | None) -> ModelInfo | None:
    """The entry of the model that a conversation has after a change that concerns it. Raises NotFound, Invalid."""
    if "model" not in fields and "model_settings" not in fields:
        return None
    handle = fields.get("model", before)
    return None if handle is None else await find_model(deps.models, {"model": handle})


def system_text(context: Context) -> str:
    """The system message of a context as it is compiled now."""
    return compile_system(
        context.agent, context.blocks, context.tools, compiled_at=context.compiled_at,
        hidden_count=context.hidden_count, conversation_id=context.conversation_id,
    )  # fmt: skip


@router.get(ONE, response_model=Conversation)
async def retrieve_conversation(request: Request, conversation_id: ConversationId) -> Response:
    """One conversation."""
    _check_record(conversation_id)
    return reply(conversation_view(await deps_of(request).store.conversations.get(conversation_id)))


def _check_record(conversation_id: str) -> None:
    """An agent's own conversation is no record of its own. Raises NotFound."""
    if not conversation_id.startswith("conv-"):
        raise NotFound(
            f"There is no conversation {conversation_id!r}: what is said to an agent outside of conversations belongs "
            "to the agent itself. See GET /v1/agents/{agent_id}, or make a conversation."
        )


@router.patch(ONE, response_model=Conversation)
async def update_conversation(
    request: Request, conversation_id: ConversationId, body: UpdateConversation
) -> Response:
    """Change the fields that are sent."""
    _check_record(conversation_id)
    deps, fields = deps_of(request), _set(body)
    before = (await deps.store.conversations.get(conversation_id)).conversation
    model = await _model_after(deps, fields, before.model)
    agent, now = (await deps.store.agents.get(before.agent_id)).agent, deps.clock.now()
    state = await deps.store.conversations.update(
        conversation_id, lambda conversation: revised(conversation, agent, fields, now=now, model=model)
    )
    return reply(conversation_view(state))


@router.delete(ONE, response_model=None)
async def delete_conversation(request: Request, conversation_id: ConversationId) -> Response:
    """Close a conversation for good; what was said in it stays in the agent's history. Answers null."""
    _check_record(conversation_id)
    deps = deps_of(request)
    await deps.store.conversations.delete(conversation_id, deps.clock.now())
    return reply(None)


@router.post(ONE + "/fork", response_model=Conversation)
async def fork_conversation(
    request: Request,
    conversation_id: ConversationId,
    agent_id: str | None = None,
    hidden: bool = False,
    message_id: Annotated[str | None, Query(description="The last message of the context to take along.")] = None,
) -> Response:
    """Make a conversation that goes on from where another one is, or was at a message."""
    deps, now = deps_of(request), deps_of(request).clock.now()
    own = own_of(conversation_id, agent_id)
    if own is None:
        before = (await deps.store.conversations.get(conversation_id)).conversation
        made = forked(before, now=now, hidden=hidden)
    else:
        made = new_conversation((await deps.store.agents.get(own)).agent, {"hidden": hidden}, now=now)
    state = await deps.store.conversations.fork(made, own or conversation_id, system_text, until=message_id)
    return reply(conversation_view(state))


@router.post(ONE + "/recompile", response_model=str)
async def recompile_conversation(
    request: Request, conversation_id: ConversationId, dry_run: bool = False, agent_id: str | None = None,
    body: RecompileRequest | None = None,
) -> Response:  # fmt: skip
    """Write the system message anew from what the agent is now; answers its text. `dry_run` stores nothing."""
    deps = deps_of(request)
    target = await target_of(deps, conversation_id, (body.agent_id if body else None) or agent_id)
    now = deps.clock.now()
    return reply(await deps.store.contexts.recompile(target.context_id, system_text, now, dry_run=dry_run))
