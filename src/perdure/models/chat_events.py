"""Chat Completions events as servers really send them, decoded into types. Knows nothing of what they add up to.

What an answer can do without is taken loosely, so that one odd field does not cost the whole answer.
"""

import json
from typing import Any

import msgspec

DONE = b"[DONE]"


class FunctionDelta(msgspec.Struct, gc=False):
    """A fragment of a call's name and arguments; some servers give the arguments as an object."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallDelta(msgspec.Struct, gc=False):
    """A fragment of a call."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct, gc=False):
    """A fragment of a message, or the whole of it. Words are text or a list of parts; thoughts have three names."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_text: Any = None
    refusal: Any = None
    tool_calls: list[CallDelta] | None = None


class Choice(msgspec.Struct, gc=False):
    """One alternative; only the first is asked for."""

    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct):
    """Where prompt tokens came from."""

    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    """What completion tokens were spent on."""

    reasoning_tokens: int | None = None


class UsageReport(msgspec.Struct):
    """Tokens as the server counts them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


NOTHING = msgspec.Raw(b"null")


class Chunk(msgspec.Struct, gc=False):
    """One event of a stream, or a whole answer. The usage stays as it was written until the end."""

    id: Any = None
    object: Any = None
    choices: list[Choice] | None = None
    usage: msgspec.Raw = NOTHING
    error: Any = None
    message: Any = None
    code: Any = None


_decode = msgspec.json.Decoder(Chunk).decode


def decoded(data: bytes) -> Chunk:
    """One event. Text that is no good Unicode costs its bad characters only. Raises ValueError, RecursionError."""
    try:
        return _decode(data)
    except ValueError:
        mended = json.dumps(json.loads(data.decode("utf-8", "replace")), ensure_ascii=False)
        return _decode(mended.encode("utf-8", "replace"))


def is_whole(data: bytes) -> bool:
    """Whether an event that nothing ended is all there, or was cut in the middle."""
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (ValueError, RecursionError):
        return data.strip() == DONE
    return True


def words(value: Any) -> str:
    """Text, or the text of a list of parts; anything else says nothing."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


def reported(usage: msgspec.Raw) -> UsageReport:
    """The count a server wrote; an empty one if it is none."""
    try:
        return msgspec.json.decode(usage, type=UsageReport | None, strict=False) or UsageReport()
    except (ValueError, RecursionError):
        return UsageReport()
