"""What a caller orders: a run on one context, with its input and options."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.agent.turn import Options
from perdure.domain.messages import Message


@dataclass(frozen=True)
class Order:
    """A request for a run, checked and translated; `request` is its raw JSON, kept with the run."""

    agent_id: str
    messages: Sequence[Message]
    request: bytes
    options: Options = field(default_factory=Options)
    conversation_id: str | None = None
    override_model: str | None = None
    background: bool = False
    run_type: str = "send_message"
    request_config: dict[str, Any] = field(default_factory=dict)

    @property
    def context_id(self) -> str:
        """The context the run works on: the conversation, or the agent's default one."""
        return self.conversation_id or self.agent_id
