"""The request to send messages, as the wire has it (behaviour spec §2; api-surface §7, Requests: sending).

Only shapes are checked here; what the words mean is decided in `input`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

MessageType = Literal[
    "system_message", "user_message", "assistant_message", "reasoning_message", "hidden_reasoning_message",
    "tool_call_message", "tool_return_message", "approval_request_message", "approval_response_message",
    "summary_message", "event_message",
]  # fmt: skip


class Body(BaseModel):
    """Unknown fields are ignored (spec §2)."""

    model_config = ConfigDict(extra="ignore")


def by_type(**telling: str) -> Discriminator:
    """Choose a union's member by `type`; where that is left out, by the field that tells it (api-surface §7)."""

    def kind(value: Any) -> str | None:
        fields = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        if fields.get("type") is not None:
            return str(fields["type"])
        return next((name for name, field in telling.items() if field in fields), None)

    return Discriminator(kind)


class TextContent(Body):
    """Words."""

    type: Literal["text"] = "text"
    text: str
    signature: str | None = None


class UrlImage(Body):
    """An image to be fetched at once."""

    type: Literal["url"] = "url"
    url: str


class Base64Image(Body):
    """An image in the request."""

    type: Literal["base64"] = "base64"
    media_type: str
    data: str
    detail: str | None = None


class LettaImage(Body):
    """An image as lists show it; without data, one that this server has stored."""

    type: Literal["letta"] = "letta"
    file_id: str
    media_type: str | None = None
    data: str | None = None
    detail: str | None = None


class ImageContent(Body):
    """A picture."""

    type: Literal["image"] = "image"
    source: Annotated[
        Annotated[UrlImage, Tag("url")] | Annotated[Base64Image, Tag("base64")] | Annotated[LettaImage, Tag("letta")],
        by_type(url="url", letta="file_id", base64="data"),
    ]


class ToolCallContent(Body):
    """A call the assistant made, replayed."""

    type: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    input: dict[str, Any]
    signature: str | None = None


class ToolReturnContent(Body):
    """What came of a replayed call."""

    type: Literal["tool_return"] = "tool_return"
    tool_call_id: str
    content: str
    is_error: bool


class ReasoningContent(Body):
    """Thoughts, replayed."""

    type: Literal["reasoning"] = "reasoning"
    is_native: bool
    reasoning: str
    signature: str | None = None


class RedactedReasoningContent(Body):
    """Sealed thoughts, replayed."""

    type: Literal["redacted_reasoning"] = "redacted_reasoning"
    data: str


class OmittedReasoningContent(Body):
    """Thoughts left out, replayed."""

    type: Literal["omitted_reasoning"] = "omitted_reasoning"
    signature: str | None = None


class SummaryPart(Body):
    """A paragraph of summarized reasoning."""

    index: int
    text: str


class SummarizedReasoningContent(Body):
    """A summary of thoughts with the sealed original, replayed."""

    type: Literal["summarized_reasoning"] = "summarized_reasoning"
    id: str
    summary: list[SummaryPart]
    encrypted_content: str | None = None


ContentPart = Annotated[
    Annotated[TextContent, Tag("text")]
    | Annotated[ImageContent, Tag("image")]
    | Annotated[ToolCallContent, Tag("tool_call")]
    | Annotated[ToolReturnContent, Tag("tool_return")]
    | Annotated[ReasoningContent, Tag("reasoning")]
    | Annotated[RedactedReasoningContent, Tag("redacted_reasoning")]
    | Annotated[OmittedReasoningContent, Tag("omitted_reasoning")]
    | Annotated[SummarizedReasoningContent, Tag("summarized_reasoning")],
    by_type(
        text="text", image="source", tool_return="tool_call_id", tool_call="input", summarized_reasoning="summary",
        reasoning="reasoning", redacted_reasoning="data",
    ),
]  # fmt: skip
Content = str | list[ContentPart]


class MessageCreate(Body):
    """A message of the conversation."""

    type: Literal["message"] | None = "message"
    role: Literal["user", "system", "assistant"]
    content: Content
    name: str | None = None
    otid: str | None = None
    sender_id: str | None = None
    group_id: str | None = None
    batch_item_id: str | None = None


ReturnPart = Annotated[
    Annotated[TextContent, Tag("text")] | Annotated[ImageContent, Tag("image")], by_type(text="text", image="source")
]


class ToolReturnItem(Body):
    """A tool's result that the client gives."""

    type: Literal["tool"] = "tool"
    tool_call_id: str
    status: Literal["success", "error"]
    tool_return: str | list[ReturnPart]
    stdout: list[str] | None = None
    stderr: list[str] | None = None


class ApprovalItem(Body):
    """A decision on one pending call."""

    type: Literal["approval"] = "approval"
    tool_call_id: str
    approve: bool
    reason: str | None = None


AnswerItem = Annotated[
    Annotated[ApprovalItem, Tag("approval")] | Annotated[ToolReturnItem, Tag("tool")],
    by_type(approval="approve", tool="tool_return"),
]


class ApprovalCreate(Body):
    """Answers to pending calls, or the deprecated single answer."""

    type: Literal["approval"] = "approval"
    approvals: list[AnswerItem] | None = None
    approve: bool | None = None
    approval_request_id: str | None = None
    reason: str | None = None
    group_id: str | None = None
    otid: str | None = None


class ToolReturnCreate(Body):
    """Results of client-side tools."""

    type: Literal["tool_return"] = "tool_return"
    tool_returns: list[ToolReturnItem]
    group_id: str | None = None
    otid: str | None = None


def _kind_of(value: Any) -> str:
    """The kind of an input message; a missing type is inferred from its fields (★S17)."""
    fields = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    kind = fields.get("type")
    if kind is not None:
        return str(kind)
    if any(fields.get(key) is not None for key in ("approvals", "approve", "approval_request_id")):
        return "approval"
    return "tool_return" if fields.get("tool_returns") is not None else "message"


InputMessage = Annotated[
    Annotated[MessageCreate, Tag("message")]
    | Annotated[ApprovalCreate, Tag("approval")]
    | Annotated[ToolReturnCreate, Tag("tool_return")],
    Discriminator(_kind_of),
]


class ClientTool(Body):
    """A tool that the client runs."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ClientSkill(Body):
    """A skill the client offers for this request."""

    name: str
    description: str
    location: str


class SendRequest(Body):
    """Send a message to an agent. Exactly one of `messages` and `input`."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    messages: list[InputMessage] | None = None
    input: str | list[ContentPart] | None = None
    max_steps: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 50
    streaming: bool = False
    stream_tokens: bool = False
    include_pings: bool = True
    background: bool = False
    include_return_message_types: list[MessageType] | None = None
    use_assistant_message: bool = True
    assistant_message_tool_name: str = "send_message"
    assistant_message_tool_kwarg: str = "message"
    enable_thinking: str | bool = "true"
    client_tools: list[ClientTool] | None = None
    client_skills: list[ClientSkill] | None = None
    override_model: str | None = None
    override_system: Annotated[str | None, Field(alias="system")] = None
    include_compaction_messages: bool = False
    on_busy: Literal["reject", "enqueue", "interrupt"] = "reject"
    """Our extension (docs/extensions.md): what to do while another run holds the context."""
    return_logprobs: bool = False
    top_logprobs: int | None = None
    return_token_ids: bool = False

    @model_validator(mode="after")
    def _one_input(self) -> "SendRequest":
        if (self.messages is None) == (self.input is None):
            raise ValueError("Send exactly one of 'messages' and 'input'.")
        if self.messages is not None and not self.messages:
            raise ValueError("Messages must not be empty")
        return self

    @model_validator(mode="after")
    def _stream_options(self) -> "SendRequest":
        """Options of a stream without a stream are refused, all of them in one sentence (spec §2)."""
        offending = [name for name in ("stream_tokens", "background") if getattr(self, name)]
        offending += [] if self.include_pings else ["include_pings=false"]
        if offending and not self.streaming:
            raise ValueError(f"{', '.join(offending)}: only allowed together with streaming=true.")
        return self


class StreamRequest(SendRequest):
    """The same for the deprecated path that always streams; what it says of `streaming` does not count."""

    @model_validator(mode="before")
    @classmethod
    def _always_streams(cls, value: Any) -> Any:
        return value | {"streaming": True} if isinstance(value, dict) else value


class AsyncRequest(SendRequest):
    """The same for a run that nobody waits for; the options of a stream do not count."""

    callback_url: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_stream(cls, value: Any) -> Any:
        options = ("streaming", "stream_tokens", "include_pings", "background")
        return {key: v for key, v in value.items() if key not in options} if isinstance(value, dict) else value


class CancelRequest(Body):
    """Which runs to cancel; none named: all that are under way for the agent."""

    run_ids: list[str] | None = None
