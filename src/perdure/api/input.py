"""From the wire's input to domain messages: content parts, images, replayed tool calls (behaviour spec §2).

Everything that can be refused is refused here, before a run exists.
"""

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from perdure.api.send_schema import (
    Content,
    ImageContent,
    InputMessage,
    LettaImage,
    MessageCreate,
    OmittedReasoningContent,
    ReasoningContent,
    RedactedReasoningContent,
    SendRequest,
    SummarizedReasoningContent,
    TextContent,
    ToolCallContent,
    ToolReturnContent,
    UrlImage,
)
from perdure.domain.errors import Invalid
from perdure.domain.ids import new_id, new_uuid
from perdure.domain.messages import (
    Image,
    Message,
    OmittedReasoning,
    Part,
    Reasoning,
    RedactedReasoning,
    SummarizedReasoning,
    SummaryText,
    Text,
    ToolCall,
    ToolReturn,
)

FetchImage = Callable[[str], Awaitable[Image]]
FindImage = Callable[[str], Awaitable[Image | None]]

NOTHING_PENDING = (
    "No tool call is currently awaiting approval. Send a normal message, or read the agent's messages to see what "
    "became of the call."
)


class Reader:
    """Reads a request's input; `fetch` gets images by URL, `find` those this server has stored."""

    def __init__(self, fetch: FetchImage, find: FindImage, now: datetime):
        self._fetch, self._find, self._now = fetch, find, now

    async def read(self, body: SendRequest) -> list[Message]:
        """The stored form of the input, in order. Raises Invalid with what to change."""
        given: Sequence[InputMessage] = (
            body.messages if body.messages is not None else [MessageCreate(role="user", content=body.input or "")]
        )
        plain = [_plain(place, message) for place, message in enumerate(given)]
        read = [made for message in plain for made in await self._message(message)]
        return pair_replayed_calls(read)

    async def _message(self, given: MessageCreate) -> list[Message]:
        """One message; tool returns among its parts become a tool message of their own, before it."""
        if not given.content:
            raise Invalid("There is empty content in a message. Give it text, or leave the message out.")
        parts = _as_parts(given.content)
        returns = tuple(_return(part) for part in parts if isinstance(part, ToolReturnContent))
        calls = tuple(_call(part) for part in parts if isinstance(part, ToolCallContent))
        rest = [part for part in parts if not isinstance(part, ToolReturnContent | ToolCallContent)]
        _check_role(given.role, rest, calls, returns)
        content = tuple([await self._part(part) for part in rest])
        made = [self._stored(given, role="tool", tool_returns=returns)] if returns else []
        if content or calls:
            made.append(self._stored(given, role=given.role, content=content, tool_calls=calls))
        return made

    def _stored(self, given: MessageCreate, **fields: Any) -> Message:
        return Message(
            id=new_id("message"), created_at=self._now, name=given.name, otid=given.otid or new_uuid(),
            sender_id=given.sender_id, group_id=given.group_id, batch_item_id=given.batch_item_id, **fields,
        )  # fmt: skip

    async def _part(self, part: Any) -> Part:
        if isinstance(part, ImageContent):
            return await self._image(part)
        return _PARTS[type(part)](part)

    async def _image(self, part: ImageContent) -> Image:
        source = part.source
        if isinstance(source, UrlImage):
            return await self._fetch(source.url)
        if isinstance(source, LettaImage):
            return await self._letta_image(source)
        return Image(_image_type(source.media_type), _checked_base64(source.data), new_id("file"), source.detail)

    async def _letta_image(self, source: LettaImage) -> Image:
        """An image by file id: with its data, or one that this server has stored (★S18)."""
        if source.data:
            media_type = _image_type(source.media_type or "image/png")
            return Image(media_type, _checked_base64(source.data), source.file_id, source.detail)
        found = await self._find(source.file_id)
        if found is None:
            raise Invalid(f"No stored image has the file_id {source.file_id!r}. Send the image with its data.")
        return msgspec.structs.replace(found, detail=source.detail or found.detail)


def _plain(place: int, message: InputMessage) -> MessageCreate:
    """Approvals and client returns come first, and need a pending call; none can be pending in this version."""
    if isinstance(message, MessageCreate):
        return message
    if place:
        raise Invalid(f"messages[{place}]: an approval or tool return must be the first message of a request.")
    raise Invalid(NOTHING_PENDING)


def _as_parts(content: Content) -> Sequence[Any]:
    return [TextContent(text=content)] if isinstance(content, str) else content


def _check_role(role: str, rest: Sequence[Any], calls: Sequence[ToolCall], returns: Sequence[ToolReturn]) -> None:
    """User and system messages carry text and images; thoughts and calls are the assistant's (spec §2, ★S80)."""
    if role == "assistant":
        return
    strange = [part.type for part in rest if not isinstance(part, TextContent | ImageContent)]
    strange += ["tool_call"] if calls else []
    if strange:
        raise Invalid(f"A {role} message cannot contain {', '.join(strange)}; put such parts in an assistant message.")


def _call(part: ToolCallContent) -> ToolCall:
    return ToolCall(part.id, part.name, json.dumps(part.input, ensure_ascii=False))


def _return(part: ToolReturnContent) -> ToolReturn:
    return ToolReturn(part.tool_call_id, part.content, "error" if part.is_error else "success", executed=False)


def _image_type(media_type: str) -> str:
    if not media_type.lower().startswith("image/"):
        raise Invalid(f"The media type {media_type[:80]!r} is not that of an image. Send one such as image/png.")
    return media_type


def _checked_base64(data: str) -> str:
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "Send the encoded bytes without a data: prefix."
        raise Invalid(f"The image's data is not base64 ({error}). {hint}") from error
    if not data:
        raise Invalid("The image has no data. Send its bytes in base64.")
    return data


def _text(part: TextContent) -> Part:
    return Text(part.text, part.signature)


def _reasoning(part: ReasoningContent) -> Part:
    return Reasoning(part.reasoning, part.is_native, part.signature)


def _redacted(part: RedactedReasoningContent) -> Part:
    return RedactedReasoning(part.data)


def _omitted(part: OmittedReasoningContent) -> Part:
    return OmittedReasoning(part.signature)


def _summarized(part: SummarizedReasoningContent) -> Part:
    summary = tuple(SummaryText(piece.index, piece.text) for piece in part.summary)
    return SummarizedReasoning(part.id, summary, part.encrypted_content)


_PARTS: dict[type, Callable[[Any], Part]] = {
    TextContent: _text,
    ReasoningContent: _reasoning,
    RedactedReasoningContent: _redacted,
    OmittedReasoningContent: _omitted,
    SummarizedReasoningContent: _summarized,
}


def pair_replayed_calls(messages: Sequence[Message]) -> list[Message]:
    """Each replayed call's return, directly after the message that calls (★S80), as every provider wants it.

    Raises Invalid for a call without a return, a return without a call before it, or an id used twice.
    """
    returns: dict[str, tuple[int, Message, ToolReturn]] = {}
    for place, message in enumerate(messages):
        for ret in message.tool_returns:
            if ret.tool_call_id in returns:
                raise Invalid(f"The tool call {ret.tool_call_id!r} has two returns in this request. Send one.")
            returns[ret.tool_call_id] = (place, message, ret)
    paired: list[Message] = []
    for place, message in enumerate(messages):
        if message.role == "tool":
            continue
        paired.append(message)
        if message.tool_calls:
            paired.append(_answered(place, message, returns))
    if returns:
        raise Invalid(f"The tool returns {sorted(returns)} have no tool call before them in this request. Add it.")
    return paired


def _answered(place: int, asked: Message, returns: dict[str, tuple[int, Message, ToolReturn]]) -> Message:
    """The tool message that answers `asked`, taking its returns out of `returns`."""
    answers: list[ToolReturn] = []
    source = asked
    for call in asked.tool_calls:
        found = returns.pop(call.id, None)
        if found is None or found[0] < place:
            raise Invalid(f"The tool call {call.id!r} has no tool return after it in this request. Add it.")
        _, source, ret = found
        answers.append(msgspec.structs.replace(ret, name=call.name))
    return msgspec.structs.replace(source, id=new_id("message"), tool_returns=tuple(answers))
