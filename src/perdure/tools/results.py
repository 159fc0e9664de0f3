"""What a tool gave, as text for the model: coercion, the cut to the tool's limit, failures (spec §1.6, ★S11, ★S12).

Pure functions for every kind of tool. Knows nothing of particular tools; `box` is above.
"""

import json
from typing import Any

ERROR_LIMIT = 1000
"""Characters of an error that the model is shown."""


def as_text(value: Any) -> str:
    """A result as text: a string as it is, None as `None`, dict and list as JSON, all else in Python's words."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict | list | tuple):
        return storable(_json(value))
    return storable(str(value))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # keys that JSON does not have, or a structure that contains itself
        return str(value)


def clip(text: str, limit: int) -> str:
    """The text cut to `limit` characters, with a note that states both sizes; as it is when it fits."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[Cut here: the result has {len(text)} characters, {limit} are allowed. Ask for less.]"


def failure(name: str, error: BaseException) -> str:
    """What the model is told of a tool that raised, at most 1000 characters."""
    return storable(f"Error executing function {name}: {type(error).__name__}: {error}")[:ERROR_LIMIT]


def storable(text: str) -> str:
    """The text without what no database or wire takes: NUL goes, half surrogate pairs become U+FFFD."""
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\0", "")
