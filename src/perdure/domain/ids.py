"""Identifiers: how they look and how they are made (behaviour spec §0.2, §0.4; api-surface §5.1).

An id is `<prefix>-<uuid4 in lower case>`. Clients treat ids as opaque, but the paths check their shape.
"""

import re
import uuid

DEFAULT_TENANT = "org-00000000-0000-4000-8000-000000000000"
DEFAULT_USER = "user-00000000-0000-4000-8000-000000000000"

UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_LOW_BITS = (1 << 7) - 1


def new_id(prefix: str) -> str:
    """A fresh id such as `message-0b5f…`."""
    return f"{prefix}-{uuid.uuid4()}"


def pattern(*prefixes: str) -> re.Pattern[str]:
    """The expression a whole id with one of these prefixes matches."""
    return re.compile(rf"^(?:{'|'.join(map(re.escape, prefixes))})-{UUID4}$")


def otid(message_id: str, index: int) -> str:
    """The otid of part `index` (0..127) of a stored message: its UUID with the low 7 bits replaced (spec §0.4)."""
    number = uuid.UUID(message_id.partition("-")[2]).int
    return str(uuid.UUID(int=(number & ~_LOW_BITS) | (index & _LOW_BITS)))
