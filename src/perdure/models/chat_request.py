"""Neutral requests as Chat Completions bodies, in bytes (behaviour spec §1.2).

A message's encoded form is kept beside the message itself, so a turn over a long history joins bytes and encodes
only what is new. Total: any history has an encoding.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from itertools import pairwise
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from perdure.domain.messages import Image, Message, Text, ToolCall, text_of
from perdure.domain.packaging import package
from perdure.domain.ports import ModelRequest, ToolSchema

MAX_CALL_ID = 29
REASONING_FAMILIES = ("o1", "o3", "o4", "gpt-5")

SHOWN_OF_ID = 20

_encoder = msgspec.json.Encoder()
Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Dialect:
    """What a server of this dialect takes."""

    stream_usage: bool = True
    """Whether `stream_options` may be sent."""
    official: bool = False
    """OpenAI's own service: its newer names for parameters, its rules for reasoning models."""


class Encoder:
    """Builds bodies. One per provider: it remembers the encoded form of every message it has seen alive."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Message, tuple[str, int, bytes]] = WeakKeyDictionary()

    def body(self, request: ModelRequest, dialect: Dialect) -> bytes:
        """The JSON of a streaming request."""
        head = _encode({"model": request.model, **_options(request, dialect)})
        messages = self._messages(request)
        return b'%b,"messages":[%b]}' % (head[:-1], b",".join(messages))

    def _messages(self, request: ModelRequest) -> list[bytes]:
        fragments = [_encode({"role": "system", "content": request.system})] if request.system else []
        seen, timezone, cap = self._seen, request.timezone, request.return_char_cap
        for message in merged(request.messages):
            known = seen.get(message)
            if known is None or known[0] != timezone or known[1] != cap:
                known = seen[message] = (timezone, cap, _fragment(message, timezone, cap))
            if known[2]:
                fragments.append(known[2])
        return fragments


def merged(messages: Sequence[Message]) -> Sequence[Message]:
    """An assistant's calls and the approval request that follows them are one turn of the model (spec §1.2)."""
    if not any(message.role == "approval" and message.tool_calls for message in messages):
        return messages
    result: list[Message] = []
    for before, message in pairwise([None, *messages]):
        assert message is not None
        joins = message.role == "approval" and message.tool_calls and before is not None and before.role == "assistant"
        if joins and result:
            turn = result[-1]
            result[-1] = msgspec.structs.replace(
                turn, content=turn.content + message.content, tool_calls=turn.tool_calls + message.tool_calls
            )
        else:
            result.append(message)
    return result


def _fragment(message: Message, timezone: str, cap: int) -> bytes:
    """The wire messages of one stored message, joined by commas; empty if it is not sent."""
    return b",".join(map(_encode, _FRAGMENTS[message.role](message, timezone, cap)))


def _system(message: Message, _timezone: str, _cap: int) -> list[Json]:
    return [{"role": "system", "content": text_of(message.content)}]


def _user(message: Message, _timezone: str, _cap: int) -> list[Json]:
    parts = [part for part in message.content if isinstance(part, Text | Image)]
    content: Any = [_user_part(part) for part in parts]
    if len(parts) == 1 and isinstance(parts[0], Text):
        content = parts[0].text
    named = {"name": message.name} if message.name and _is_safe(message.name) else {}
    return [{"role": "user", "content": content or "", **named}]


def _is_safe(name: str) -> bool:
    """Whether OpenAI takes this as a participant's name."""
    return len(name) <= 64 and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)


def _user_part(part: Text | Image) -> Json:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    url = f"data:{part.media_type};base64,{part.data}"
    return {"type": "image_url", "image_url": {"url": url, "detail": part.detail or "auto"}}


def _assistant(message: Message, _timezone: str, _cap: int) -> list[Json]:
    """Words and calls; thoughts are not sent back on this wire."""
    text = text_of(message.content)
    calls = _first_by_id(message.tool_calls, lambda call: call.id)
    if not text and not calls:
        return []
    turn: Json = {"role": "assistant", "content": text or None}
    return [turn | {"tool_calls": [_call(call) for call in calls]} if calls else turn]


def _call(call: ToolCall) -> Json:
    return {"id": _short(call.id), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _tool(message: Message, timezone: str, cap: int) -> list[Json]:
    return [
        {
            "role": "tool", "tool_call_id": _short(ret.tool_call_id),
            "content": package(ret, message.created_at, timezone, cap),
        }
        for ret in _first_by_id(message.tool_returns, lambda ret: ret.tool_call_id)
    ]  # fmt: skip


def _first_by_id(items: Sequence[T], id_of: Callable[[T], str]) -> Sequence[T]:
    """Of several with one id the first counts (spec §1.2)."""
    first: dict[str, T] = {}
    for item in items:
        first.setdefault(id_of(item), item)
    return list(first.values())


def _approval(message: Message, timezone: str, cap: int) -> list[Json]:
    """A request alone is an assistant's turn; answers are not sent, the tool message tells what came of them."""
    return _assistant(message, timezone, cap) if message.tool_calls else []


def _short(call_id: str) -> str:
    """The id as this wire takes it. Long ones often differ at their end only (`functions.get_weather_forecast:1`)."""
    if len(call_id) <= MAX_CALL_ID:
        return call_id
    mark = blake2s(call_id.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{call_id[:SHOWN_OF_ID]}_{mark}"


def _encode(value: Any) -> bytes:
    """JSON; half of a surrogate pair, as a tool's result may hold one, becomes a question mark."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


_FRAGMENTS: Mapping[str, Callable[[Message, str, int], list[Json]]] = {
    "system": _system,
    "user": _user,
    "summary": _user,
    "assistant": _assistant,
    "tool": _tool,
    "approval": _approval,
}


def _options(request: ModelRequest, dialect: Dialect) -> Json:
    """Everything of the body but the messages."""
    options: Json = {"stream": True}
    if dialect.stream_usage:
        options["stream_options"] = {"include_usage": True}
    options |= _sampling(request, dialect)
    if request.tools:
        options["tools"] = [_tool_schema(tool, request.settings) for tool in request.tools]
        options["tool_choice"] = _tool_choice(request.tool_choice)
        if request.parallel_tool_calls is not None:
            options["parallel_tool_calls"] = request.parallel_tool_calls
    return options


def _sampling(request: ModelRequest, dialect: Dialect) -> Json:
    """Limits and temperature; OpenAI's reasoning models take an effort and no temperature."""
    settings, options = request.settings, Json()
    reasoner = dialect.official and is_reasoner(request.model)
    if settings.get("max_output_tokens"):
        options["max_completion_tokens" if reasoner else "max_tokens"] = settings["max_output_tokens"]
    if settings.get("temperature") is not None and not reasoner:
        options["temperature"] = settings["temperature"]
    effort = (settings.get("reasoning") or {}).get("reasoning_effort")
    if reasoner and effort:
        options["reasoning_effort"] = effort
    response_format = settings.get("response_format")
    if response_format and response_format.get("type") != "text":
        options["response_format"] = response_format
    return options


def is_reasoner(model: str) -> bool:
    """Whether a name is that of one of OpenAI's reasoning models."""
    return model.startswith(REASONING_FAMILIES) and not model.startswith("gpt-5-chat")


def _tool_schema(tool: ToolSchema, settings: Mapping[str, Any]) -> Json:
    function: Json = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    if settings.get("strict") and not is_free(tool.parameters):
        function |= {"strict": True, "parameters": strict(tool.parameters)}
    return {"type": "function", "function": function}


def strict(schema: Any) -> Any:
    """The schema as strict mode wants it: every property required, optional ones nullable, no others (spec §8.2)."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    properties = schema.get("properties")
    if isinstance(properties, dict):
        required = schema.get("required") or []
        result["properties"] = {
            name: strict(value) if name in required else _nullable(strict(value)) for name, value in properties.items()
        }
        result |= {"required": list(properties), "additionalProperties": False}
    return result


def is_free(schema: Any) -> bool:
    """Whether a schema takes objects with properties it does not name; strict mode refuses such a tool."""
    if isinstance(schema, list):
        return any(map(is_free, schema))
    if not isinstance(schema, dict):
        return False
    free = schema.get("type") == "object" and not isinstance(schema.get("properties"), dict)
    return free or bool(schema.get("additionalProperties")) or any(map(is_free, schema.values()))


def _nullable(schema: Any) -> Any:
    """The schema, taking null as well."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    kinds = kind if isinstance(kind, list) else [kind]
    if "null" in kinds:
        return schema
    if kind is None or "const" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    nullable = schema | {"type": [*kinds, "null"]}
    return nullable | {"enum": [*schema["enum"], None]} if "enum" in schema else nullable


def _tool_choice(choice: str) -> Any:
    if choice in ("auto", "none", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}
