"""Stored messages as the wire shows them: one conversion for answers, streams and lists (behaviour spec §3.2, §9.3).

A stored message fans out into wire messages that share its id and differ in otid. Pure functions to plain dicts.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from perdure.domain.ids import otid
from perdure.domain.messages import (
    Approval,
    Image,
    Message,
    OmittedReasoning,
    Part,
    Reasoning,
    RedactedReasoning,
    SummarizedReasoning,
    Text,
    ToolCall,
    ToolReturn,
)
from perdure.memory.compact import summary_of

Wire = dict[str, Any]

MESSAGE_TYPES = (
    "system_message", "user_message", "assistant_message", "reasoning_message", "hidden_reasoning_message",
    "tool_call_message", "tool_return_message", "approval_request_message", "approval_response_message",
    "summary_message", "event_message",
)  # fmt: skip
IMAGE_PLACEHOLDER = "[image]"


def listed(messages: Iterable[Message], *, include_return_message_types: Sequence[str] | None = None) -> list[Wire]:
    """The wire messages of stored ones, in order, of these types only (empty or None: all, ★S16)."""
    types = include_return_message_types
    shown = (wire for message in messages for wire in wire_messages(message, types))
    return [wire for wire in shown if not types or wire["message_type"] in types]


def wire_messages(message: Message, types: Sequence[str] | None = None) -> list[Wire]:
    """What one stored message looks like on the wire."""
    if message.role == "summary" and types and "summary_message" in types:
        return [_base(message, "summary_message", otid(message.id, 0)) | _summary(message)]
    return _BY_ROLE[message.role](message)


def wire_date(moment: datetime) -> str:
    """ISO 8601, UTC, whole seconds (spec §0.2)."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _base(message: Message, message_type: str, message_otid: str | None) -> Wire:
    return {
        "id": message.id, "date": wire_date(message.created_at), "name": message.name, "message_type": message_type,
        "otid": message_otid, "sender_id": message.sender_id, "step_id": message.step_id,
        "is_err": message.is_err or None, "seq_id": None, "run_id": message.run_id,
    }  # fmt: skip


def _system(message: Message) -> list[Wire]:
    return [_base(message, "system_message", message.otid) | {"content": _words(message.content)}]


def _user(message: Message) -> list[Wire]:
    """A single text is a string, with the old envelope taken off; anything else is a list of parts (spec §9.3)."""
    parts = message.content
    if len(parts) == 1 and isinstance(parts[0], Text):
        content: Any = _unwrapped(parts[0].text)
    else:
        content = [_user_part(part) for part in parts if isinstance(part, Text | Image)]
    return [_base(message, "user_message", message.otid) | {"content": content}]


def _unwrapped(text: str) -> str:
    if not text.startswith("{"):
        return text
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(envelope, dict) and envelope.get("type") == "user_message":
        inner = envelope.get("message")
        return inner if isinstance(inner, str) else text
    return text


def _user_part(part: Text | Image) -> Wire:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text, "signature": part.signature}
    source = {
        "type": "letta", "file_id": part.file_id, "media_type": part.media_type, "data": part.data,
        "detail": part.detail,
    }  # fmt: skip
    return {"type": "image", "source": source}


def _assistant(message: Message) -> list[Wire]:
    """Parts in the model's order, then one message with all calls; each takes the next otid (spec §0.4, §3.1)."""
    bodies = list(_spoken(message.content))
    if message.tool_calls:
        bodies.append(("tool_call_message", _calls(message.tool_calls)))
    return [
        _base(message, message_type, otid(message.id, index)) | body
        for index, (message_type, body) in enumerate(bodies)
    ]


def _spoken(parts: Sequence[Part]) -> Iterator[tuple[str, Wire]]:
    """The message types and bodies of content parts; neighbours of one type are one message."""
    at = 0
    while at < len(parts):
        kind = _kind(parts[at])
        end = at + 1
        while end < len(parts) and _kind(parts[end]) == kind and kind != "hidden_reasoning_message":
            end += 1
        yield kind, _SPOKEN[kind](parts[at:end])
        at = end


def _kind(part: Part) -> str:
    if isinstance(part, Reasoning | SummarizedReasoning):
        return "reasoning_message"
    if isinstance(part, RedactedReasoning | OmittedReasoning):
        return "hidden_reasoning_message"
    return "assistant_message"


def _reasoning(parts: Sequence[Part]) -> Wire:
    texts, signature, native = [], None, True
    for part in parts:
        if isinstance(part, Reasoning):
            texts.append(part.reasoning)
            signature, native = part.signature or signature, native and part.is_native
        elif isinstance(part, SummarizedReasoning):
            texts.append("\n\n".join(piece.text for piece in part.summary))
            signature = part.encrypted_content or signature
    source = "reasoner_model" if native else "non_reasoner_model"
    return {"source": source, "reasoning": "".join(texts), "signature": signature}


def _hidden(parts: Sequence[Part]) -> Wire:
    part = parts[0]
    data = part.data if isinstance(part, RedactedReasoning) else None
    return {"state": "omitted" if data is None else "redacted", "hidden_reasoning": data}


def _words(parts: Sequence[Part]) -> str:
    return "".join(p.text if isinstance(p, Text) else IMAGE_PLACEHOLDER for p in parts if isinstance(p, Text | Image))


_SPOKEN: dict[str, Callable[[Sequence[Part]], Wire]] = {
    "reasoning_message": _reasoning,
    "hidden_reasoning_message": _hidden,
    "assistant_message": lambda parts: {"content": _words(parts)},
}


def _calls(calls: Sequence[ToolCall]) -> Wire:
    """All calls, and the first one again under its deprecated name (api-surface §6, trap 9)."""
    shown = [{"name": c.name, "arguments": c.arguments, "tool_call_id": c.id} for c in calls]
    return {"tool_call": shown[0], "tool_calls": shown}


def _tool(message: Message) -> list[Wire]:
    """All returns of a step in one message, named after the first tool the server ran (spec §3.2)."""
    returns = message.tool_returns
    if not returns:
        return []
    first = returns[0]
    body = _base(message, "tool_return_message", otid(message.id, 0)) | {
        "name": next((r.name for r in returns if r.executed), None),
        "tool_return": _return_text(first), "status": first.status, "tool_call_id": first.tool_call_id,
        "stdout": _lines(first.stdout), "stderr": _lines(first.stderr),
        "tool_returns": [_tool_return(r) for r in returns],
    }  # fmt: skip
    return [body]


def _tool_return(ret: ToolReturn) -> Wire:
    content: Any = ret.content if isinstance(ret.content, str) else [_user_part(part) for part in ret.content]
    return {
        "type": "tool", "tool_return": content, "status": ret.status, "tool_call_id": ret.tool_call_id,
        "stdout": _lines(ret.stdout), "stderr": _lines(ret.stderr),
    }  # fmt: skip


def _return_text(ret: ToolReturn) -> str:
    return ret.content if isinstance(ret.content, str) else _words(ret.content)


def _lines(stream: tuple[str, ...] | None) -> list[str] | None:
    return None if stream is None else list(stream)


def _approval(message: Message) -> list[Wire]:
    if message.tool_calls:
        return [_base(message, "approval_request_message", message.id) | _calls(message.tool_calls)]
    return [_base(message, "approval_response_message", message.otid) | _answers(message.approvals)]


def _answers(approvals: Sequence[Approval]) -> Wire:
    """The answers, and the first one again under the deprecated names unless it is a client's return."""
    first = approvals[0] if approvals and approvals[0].returned is None else None
    return {
        "approvals": [_answer(approval) for approval in approvals],
        "approve": first.approve if first else None,
        "approval_request_id": first.tool_call_id if first else None,
        "reason": first.reason if first else None,
    }


def _answer(approval: Approval) -> Wire:
    if approval.returned:
        return _tool_return(approval.returned)
    return {
        "type": "approval", "tool_call_id": approval.tool_call_id, "approve": approval.approve,
        "reason": approval.reason,
    }  # fmt: skip


def _summary(message: Message) -> Wire:
    """The summary's own words and figures, out of the envelope it is stored in (spec §1.7)."""
    summary, stats = summary_of(_words(message.content))
    return {"summary": summary, "compaction_stats": stats}


_BY_ROLE: dict[str, Callable[[Message], list[Wire]]] = {
    "system": _system,
    "user": _user,
    "summary": _user,
    "assistant": _assistant,
    "tool": _tool,
    "approval": _approval,
}
