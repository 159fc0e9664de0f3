"""Identifiers: how they look and how they are made (behaviour spec §0.2, §0.4; api-surface §5.1).

An id is `<prefix>-<uuid4 in lower case>`. Clients treat ids as opaque, but the paths check their shape.
"""

import os
import re
import uuid

DEFAULT_TENANT = "org-00000000-0000-4000-8000-000000000000"
DEFAULT_USER = "user-00000000-0000-4000-8000-000000000000"

UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_LOW_BITS = (1 << 7) - 1


class Entropy:
    """Random bytes from the system, fetched some hundred ids at a time: a system call per id shows in profiles."""

    def __init__(self, size: int = 4096):
        self._size, self._bytes, self._at = size, b"", 0
        os.register_at_fork(after_in_child=self.forget)  # a child must not repeat its parent's ids

    def forget(self) -> None:
        """Fetch anew at the next call."""
        self._bytes, self._at = b"", 0

    def uuid4(self) -> str:
        """A random UUID in its usual form."""
        if self._at >= len(self._bytes):
            self._bytes, self._at = os.urandom(self._size), 0
        digits = self._bytes[self._at : self._at + 16].hex()
        self._at += 16
        variant = "89ab"[int(digits[16], 16) & 3]
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


new_uuid = Entropy().uuid4
"""A fresh random UUID."""


def new_id(prefix: str) -> str:
    """A fresh id such as `message-0b5f…`."""
    return f"{prefix}-{new_uuid()}"


def pattern(*prefixes: str) -> re.Pattern[str]:
    """The expression a whole id with one of these prefixes matches."""
    return re.compile(rf"^(?:{'|'.join(map(re.escape, prefixes))})-{UUID4}$")


def otid(message_id: str, index: int) -> str:
    """The otid of part `index` (0..127) of a stored message: its UUID with the low 7 bits replaced (spec §0.4)."""
    number = uuid.UUID(message_id.partition("-")[2]).int
    return str(uuid.UUID(int=(number & ~_LOW_BITS) | (index & _LOW_BITS)))
