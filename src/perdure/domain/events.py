"""What a run tells its readers. JSON, step SSE, token SSE and the run log are renderings of these (spec §12.1).

Deltas pass through while the model speaks; `StepCommitted` comes only after its transaction; `RunEnded` is the last.
"""

import msgspec

from perdure.domain.messages import Message, Usage

STOP_REASONS = (
    "end_turn", "error", "llm_api_error", "invalid_llm_response", "invalid_tool_call", "max_steps",
    "max_tokens_exceeded", "no_tool_call", "tool_rule", "cancelled", "insufficient_credits", "requires_approval",
    "context_window_overflow_in_system_prompt",
)  # fmt: skip


class RunStarted(msgspec.Struct, frozen=True):
    """The run is accepted and durable."""

    run_id: str


class Delta(msgspec.Struct, frozen=True):
    """A fragment of the message the model is producing. `part` counts its wire messages from 0 (otid)."""

    message_id: str
    step_id: str
    part: int


class TextDelta(Delta, frozen=True):
    """A fragment of the answer."""

    text: str


class ReasoningDelta(Delta, frozen=True):
    """A fragment of the thoughts; `signature` comes with the last one, if at all."""

    text: str
    signature: str | None = None


class HiddenReasoning(Delta, frozen=True):
    """Thoughts that are sealed (`data`) or left out (None)."""

    data: str | None


class ToolCallDelta(Delta, frozen=True):
    """A fragment of a call; the first one of a call carries its name."""

    tool_call_id: str
    name: str | None
    arguments: str | None


class StepCommitted(msgspec.Struct, frozen=True):
    """One step is stored: the messages it made, in order (the input is not among them)."""

    step_id: str
    messages: tuple[Message, ...]


class RunEnded(msgspec.Struct, frozen=True):
    """The run is over. `error` is the exception that ended it, if one did."""

    stop_reason: str
    usage: Usage
    step_count: int
    context_tokens: int | None = None
    error: Exception | None = None


Event = RunStarted | TextDelta | ReasoningDelta | HiddenReasoning | ToolCallDelta | StepCommitted | RunEnded
