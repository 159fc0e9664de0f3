"""Response schemas of messages, for the API description; answers themselves are encoded from plain dicts in `wire`.

Field sets: api-surface §7, Messages and Responses. Null fields are present (spec §0.2).
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from perdure.domain.events import STOP_REASONS


class MessageBase(BaseModel):
    """What every wire message has."""

    id: str
    date: datetime
    name: str | None
    otid: str | None
    sender_id: str | None
    step_id: str | None
    is_err: bool | None
    seq_id: int | None
    run_id: str | None


class SystemMessage(MessageBase):
    """Instructions."""

    message_type: Literal["system_message"]
    content: str


class UserMessage(MessageBase):
    """Words of a user: a string, or text and image parts."""

    message_type: Literal["user_message"]
    content: str | list[dict[str, Any]]


class AssistantMessage(MessageBase):
    """Words of the agent."""

    message_type: Literal["assistant_message"]
    content: str | list[dict[str, Any]]


class ReasoningMessage(MessageBase):
    """Thoughts of the agent."""

    message_type: Literal["reasoning_message"]
    source: Literal["reasoner_model", "non_reasoner_model"]
    reasoning: str
    signature: str | None


class HiddenReasoningMessage(MessageBase):
    """Thoughts that are sealed or left out."""

    message_type: Literal["hidden_reasoning_message"]
    state: Literal["redacted", "omitted"]
    hidden_reasoning: str | None


class ToolCall(BaseModel):
    """A call: `arguments` is JSON text."""

    name: str
    arguments: str
    tool_call_id: str


class ToolCallMessage(MessageBase):
    """Calls the agent makes; `tool_call` is the first of them (deprecated)."""

    message_type: Literal["tool_call_message"]
    tool_call: ToolCall
    tool_calls: list[ToolCall]


class ToolReturn(BaseModel):
    """What came of a call."""

    type: Literal["tool"]
    tool_return: str | list[dict[str, Any]]
    status: Literal["success", "error"]
    tool_call_id: str
    stdout: list[str] | None
    stderr: list[str] | None


class ToolReturnMessage(MessageBase):
    """What came of a step's calls; the fields beside `tool_returns` repeat the first (deprecated)."""

    message_type: Literal["tool_return_message"]
    tool_return: str
    status: Literal["success", "error"]
    tool_call_id: str
    stdout: list[str] | None
    stderr: list[str] | None
    tool_returns: list[ToolReturn]


class ApprovalRequestMessage(MessageBase):
    """Calls that wait for a decision."""

    message_type: Literal["approval_request_message"]
    tool_call: ToolCall
    tool_calls: list[ToolCall]


class ApprovalResponseMessage(MessageBase):
    """The decision."""

    message_type: Literal["approval_response_message"]
    approvals: list[dict[str, Any]] | None
    approve: bool | None
    approval_request_id: str | None
    reason: str | None


class SummaryMessage(MessageBase):
    """What stands for messages that left the context."""

    message_type: Literal["summary_message"]
    summary: str
    compaction_stats: dict[str, Any] | None


class EventMessage(MessageBase):
    """Something the server did."""

    message_type: Literal["event_message"]
    event_type: Literal["compaction"]
    event_data: dict[str, Any]


LettaMessage = Annotated[
    SystemMessage
    | UserMessage
    | AssistantMessage
    | ReasoningMessage
    | HiddenReasoningMessage
    | ToolCallMessage
    | ToolReturnMessage
    | ApprovalRequestMessage
    | ApprovalResponseMessage
    | SummaryMessage
    | EventMessage,
    Field(discriminator="message_type"),
]


class StopReason(BaseModel):
    """Why the run ended."""

    message_type: Literal["stop_reason"]
    stop_reason: Literal[STOP_REASONS]  # type: ignore[valid-type]  # one list serves the schema and the loop


class UsageStatistics(BaseModel):
    """Tokens, summed over the steps of the request."""

    message_type: Literal["usage_statistics"]
    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    step_count: int
    run_ids: list[str] | None
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    context_tokens: int | None


class LettaResponse(BaseModel):
    """The whole answer to a request without streaming."""

    messages: list[LettaMessage]
    stop_reason: StopReason
    usage: UsageStatistics
    logprobs: dict[str, Any] | None
    turns: list[dict[str, Any]] | None
