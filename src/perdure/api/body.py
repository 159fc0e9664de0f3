"""Request bodies before anybody reads them: real JSON, and nothing in it that no store can keep.

The framework's parser takes NaN, lone surrogates and numbers without end; a database does not. Whatever passes here
can be stored and sent back (behaviour spec §7.1: NUL characters are stripped).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from perdure.domain.errors import Unprocessable

MAX_DEPTH = 100
_INTEGERS = range(-(2**63), 2**64)


def clean(body: bytes) -> bytes:
    """The same JSON object (or null) without NUL characters. Raises Unprocessable with what to change."""
    try:
        value = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise Unprocessable(f"The body is not UTF-8 (byte {error.start}). Encode it as UTF-8.") from error
    except RecursionError as error:
        raise _too_deep() from error
    except msgspec.MsgspecError as error:
        half = " (or holds half of a surrogate pair)" if rb"\ud" in body.lower() else ""
        raise Unprocessable(f"The body is not JSON{half}: {error}. Send one JSON object.") from error
    if value is None:
        return body
    if not isinstance(value, dict):
        raise Unprocessable("The body is JSON, but not an object. Send one JSON object.")
    _check(value)
    return msgspec.json.encode(_without_nul(value)) if rb"\u0000" in body else body


def check_type(headers: Mapping[str, str]) -> None:
    """Refuse a body that does not say it is JSON; one that says nothing passes, unless it comes from a web page.

    Pages of other sites can send forms, plain text and untyped bodies to a local server without asking it first.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    if kind or "origin" in headers:
        raise Unprocessable(
            f"The body is {kind or 'of no stated type'}. Send JSON with the header Content-Type: application/json."
        )


def _check(value: dict[str, Any]) -> None:
    """Refuse what is nested too deep and integers that no database column holds, level by level."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for container in level:
            for item in container.values() if type(container) is dict else container:
                kind = type(item)
                if kind is dict or kind is list:
                    inner.append(item)
                elif kind is int and item not in _INTEGERS:
                    raise Unprocessable("The body holds an integer of more than 64 bits. Send it as a string.")
        if not inner:
            return
        level = inner
    raise _too_deep()


def _too_deep() -> Unprocessable:
    return Unprocessable(f"The body is nested more than {MAX_DEPTH} levels deep. Flatten it.")


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    if isinstance(value, dict):
        return {key.replace("\0", ""): _without_nul(item) for key, item in value.items()}
    return value
