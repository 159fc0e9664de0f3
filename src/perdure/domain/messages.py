"""What was said: content parts, tool calls and returns, and the stored message (behaviour spec §0.3, §2).

Records are frozen; a stored message never changes (only the system message of a context is rewritten when it is
recompiled). A message compares by identity so that a dialect can keep its encoded form beside it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool", "approval", "summary"]
ReturnStatus = Literal["success", "error"]


class Text(msgspec.Struct, frozen=True, tag="text", tag_field="type", omit_defaults=True):
    """Words. `signature` is a provider's mark on them and goes back to it unchanged."""

    text: str
    signature: str | None = None


class Image(msgspec.Struct, frozen=True, tag="image", tag_field="type", omit_defaults=True):
    """A picture, always held as base64 `data`; `file_id` is what lists show for it."""

    media_type: str
    data: str
    file_id: str
    detail: str | None = None


class Reasoning(msgspec.Struct, frozen=True, tag="reasoning", tag_field="type", omit_defaults=True):
    """Thoughts in clear. `signature` is the provider's seal on them."""

    reasoning: str
    is_native: bool = True
    signature: str | None = None


class RedactedReasoning(msgspec.Struct, frozen=True, tag="redacted_reasoning", tag_field="type"):
    """Thoughts the provider gave only in sealed form."""

    data: str


class OmittedReasoning(msgspec.Struct, frozen=True, tag="omitted_reasoning", tag_field="type", omit_defaults=True):
    """Thoughts that took place and are not shown."""

    signature: str | None = None


class SummaryText(msgspec.Struct, frozen=True):
    """One paragraph of a reasoning summary."""

    index: int
    text: str


class SummarizedReasoning(
    msgspec.Struct, frozen=True, tag="summarized_reasoning", tag_field="type", omit_defaults=True
):
    """A provider's summary of its thoughts, with the sealed original."""

    id: str
    summary: tuple[SummaryText, ...] = ()
    encrypted_content: str | None = None


Part = Text | Image | Reasoning | RedactedReasoning | OmittedReasoning | SummarizedReasoning


class ToolCall(msgspec.Struct, frozen=True):
    """A model's wish to run a tool. `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


class ToolReturn(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of one call: text (or parts), and the streams of a sandboxed tool."""

    tool_call_id: str
    content: str | tuple[Text | Image, ...]
    status: ReturnStatus = "success"
    name: str | None = None
    stdout: tuple[str, ...] | None = None
    stderr: tuple[str, ...] | None = None
    executed: bool = True
    """False for a denial or a return the client gave: the wire then names no tool (spec §3.2)."""


class Approval(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer to one pending call: a decision, or the client's own return."""

    tool_call_id: str
    approve: bool | None = None
    reason: str | None = None
    returned: ToolReturn | None = None


class Message(msgspec.Struct, frozen=True, eq=False, weakref=True, omit_defaults=True, kw_only=True):
    """One stored message; it fans out into 1..n wire messages (spec §0.3)."""

    id: str
    role: Role
    created_at: datetime
    content: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_returns: tuple[ToolReturn, ...] = ()
    approvals: tuple[Approval, ...] = ()
    agent_id: str | None = None
    conversation_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    model: str | None = None
    name: str | None = None
    otid: str | None = None
    sender_id: str | None = None
    group_id: str | None = None
    batch_item_id: str | None = None
    is_err: bool | None = None
    stands_for: tuple[str, ...] = ()
    """Of a summary: the ids of the messages that it took the place of, in their order. They are kept."""


class Stored(msgspec.Struct, frozen=True, eq=False):
    """A message with the place that saving gave it. All ordering and cursors use `sequence_id` (spec §0.3)."""

    sequence_id: int
    message: Message


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one model call, or of several added up. None means that the provider reported nothing."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
            _add(self.cached_input_tokens, other.cached_input_tokens),
            _add(self.cache_write_tokens, other.cache_write_tokens),
            _add(self.reasoning_tokens, other.reasoning_tokens),
        )


def _add(a: int | None, b: int | None) -> int | None:
    return a if b is None else b if a is None else a + b


def text_of(parts: Sequence[Part] | str) -> str:
    """The words among the parts, joined without a separator."""
    if isinstance(parts, str):
        return parts
    return "".join(part.text for part in parts if isinstance(part, Text))


def encode(message: Message) -> bytes:
    """The JSON form in which a message is stored."""
    return _ENCODER.encode(message)


def decode(body: bytes | str) -> Message:
    """A message from its stored JSON form. Raises msgspec.ValidationError if it is not one."""
    return _DECODER.decode(body)


_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)

Json = dict[str, Any]
