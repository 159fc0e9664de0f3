"""Conversations: further contexts of one agent, each with messages of its own in sight (behaviour spec §6.3).

An agent's own conversation (`default`) is no record: its context has the agent's id. This file has the record, what
it makes of its agent, and the port; where the rows are is the store's business.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from perdure.domain.records import Agent, Context

if TYPE_CHECKING:  # `ports` names this port among those of the store
    from perdure.domain.ports import Page

SystemText = Callable[[Context], str]
"""Writes the system message of a context; pure, and called inside the transaction that stores what it writes.

The context has everything but its messages.
"""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation beside the agent's own. What it says of its model is null where the agent's word counts."""

    id: str
    agent_id: str
    created_at: datetime
    updated_at: datetime
    summary: str | None = None
    description: str | None = None
    model: str | None = None
    """A handle (provider/model)."""
    model_settings: dict[str, Any] | None = None
    """As they are shown."""
    context_window_limit: int | None = None
    """Tokens."""
    last_message_at: datetime | None = None
    archived_at: datetime | None = None
    hidden: bool = False
    isolated_labels: tuple[str, ...] = ()
    """Labels whose blocks this conversation has for itself."""
    llm: dict[str, Any] = {}
    """What is other than in the agent's model configuration; all of it if a model is named."""
    settings: dict[str, Any] = {}
    """Likewise for the agent's model settings."""


class ConversationState(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation with everything a read of it shows."""

    conversation: Conversation
    isolated_block_ids: tuple[str, ...] = ()
    message_ids: tuple[str, ...] = ()
    """The messages in its context, system message first."""


class ConversationQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which conversations. Empty fields do not restrict; `summary_search` matches anywhere, ignoring case."""

    agent_id: str | None = None
    archived: bool | None = None
    hidden: bool | None = None
    summary_search: str | None = None


def in_force(agent: Agent, conversation: Conversation) -> Agent:
    """The agent as it answers in this conversation: its model goes before the agent's, capped to the agent's window.

    A window that the conversation sets itself takes the place of the agent's.
    """
    if not conversation.llm and conversation.context_window_limit is None:
        return agent
    windows = [
        conversation.context_window_limit or agent.llm.get("context_window"), conversation.llm.get("context_window")
    ]  # fmt: skip
    window = min((tokens for tokens in windows if tokens), default=None)
    settings = conversation.settings if conversation.model else agent.model_settings | conversation.settings
    return msgspec.structs.replace(
        agent, model=conversation.model or agent.model, model_settings=settings,
        llm=agent.llm | conversation.llm | {"context_window": window},
    )  # fmt: skip


class Conversations(Protocol):
    """Conversations of all agents. All raise NotFound for an unknown id, also of one that was deleted."""

    async def create(
        self, conversation: Conversation, system: SystemText, *, isolated: Sequence[str] = ()
    ) -> ConversationState:
        """Store it with its own context, and with copies of the agent's blocks of the labels `isolated`.

        Raises NotFound (agent), Invalid (the agent has no such block).
        """

    async def fork(
        self, conversation: Conversation, source: str, system: SystemText, *, until: str | None = None
    ) -> ConversationState:
        """Store it with the messages that the context `source` has now, up to the message `until` if it is given.

        The messages are shared, the source's isolated blocks are copied. Raises NotFound (source, message).
        """

    async def get(self, conversation_id: str) -> ConversationState:
        """One conversation."""

    async def agent_of(self, conversation_id: str) -> str:
        """The id of its agent."""

    async def find(
        self, query: ConversationQuery, page: "Page", sort_by: str = "created_at"
    ) -> list[ConversationState]:
        """A page; `sort_by` ∈ created_at, last_message_at, last_run_completion. Raises Invalid for another one."""

    async def update(
        self, conversation_id: str, change: Callable[[Conversation], Conversation]
    ) -> ConversationState:
        """Apply a pure change in one transaction."""

    async def touch(self, conversation_id: str, at: datetime) -> str:
        """Note that a message was sent to it then; answers the id of its agent."""

    async def delete(self, conversation_id: str, at: datetime) -> None:
        """Close it for good and remove its isolated blocks; its messages stay in the agent's history.

        Raises Busy while a run works on it or waits for it.
        """
