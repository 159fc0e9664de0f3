"""Tool results as the model reads them: one JSON envelope, the same on every wire (behaviour spec §1.6)."""

import json
from datetime import datetime
from typing import Any

from perdure.domain.clock import local_time
from perdure.domain.messages import Text, ToolReturn

IMAGE_PLACEHOLDER = "[image omitted: this model cannot see images in tool results]"


def package(ret: ToolReturn, at: datetime, timezone: str, cap: int) -> str:
    """`{"status", "message", "time"}`; a result longer than `cap` characters is cut, with a note of how much."""
    envelope = {
        "status": "OK" if ret.status == "success" else "Failed",
        "message": _message(cut(_text(ret), cap)),
        "time": local_time(at, timezone),
    }
    return json.dumps(envelope, ensure_ascii=False)


def cut(text: str, cap: int) -> str:
    """The text, or its beginning and how much is missing."""
    return text if len(text) <= cap else f"{text[:cap]}... [truncated {len(text) - cap} chars]"


def _text(ret: ToolReturn) -> str:
    if isinstance(ret.content, str):
        return ret.content
    return "".join(part.text if isinstance(part, Text) else IMAGE_PLACEHOLDER for part in ret.content)


def _message(text: str) -> Any:
    """A JSON object stays one inside the envelope; all else is a string."""
    if not text.startswith("{"):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
