"""Server-sent events as providers send them: bytes in, the data of each event out.

Tolerant of line ends (LF or CRLF), comments, data over several lines, and chunks cut anywhere. Holds one event at
most and takes a bounded number of bytes. Knows nothing of what is inside.
"""

from collections.abc import Iterator

from perdure.domain.errors import ModelError

MAX_EVENT = 16 * 2**20
MAX_STREAM = 256 * 2**20
"""Bytes of one answer on the wire. The longest answers of today (128 000 tokens, one event each) take some 50 MB."""
FIELDS = (b":", b"event:", b"id:", b"retry:")
"""How lines begin that say nothing to us."""
SHOWN = 200


class Splitter:
    """Feed it chunks; it gives the data of the events that are complete.

    `stray`: the beginning of the first line that belongs to no event, for whoever finds no answer among the events.
    """

    def __init__(self, limit: int = MAX_EVENT, total: int = MAX_STREAM):
        self._limit, self._total, self._taken = limit, total, 0
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self.stray = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of each event that ends in this chunk. Raises ModelError for an event or a stream over its limit."""
        self._taken += len(chunk)
        if self._taken > self._total:
            raise ModelError(f"The model's answer did not end within {self._total} bytes. Send again.")
        lines = chunk.split(b"\n")
        if len(lines) == 1:  # a long line comes in many chunks: only what is new is looked through
            self._line += lines.pop()
        else:
            if self._line:
                lines[0] = bytes(self._line + lines[0])
            self._line = bytearray(lines.pop())
        return self._events(lines)

    def close(self) -> Iterator[bytes]:
        """The data of a last event that no blank line ended."""
        lines, self._line = [bytes(self._line), b""], bytearray()
        return self._events(lines)

    def _events(self, lines: list[bytes]) -> Iterator[bytes]:
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if not line:
                if self._data:
                    data, self._data, self._size = self._data, [], 0
                    yield data[0] if len(data) == 1 else b"\n".join(data)
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._size += len(line)
                self._check(self._size)
            elif not self.stray and not line.startswith(FIELDS):
                self.stray = line[:SHOWN]
        self._check(self._size + len(self._line))

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise ModelError(f"The model sent an event of more than {self._limit} bytes. Send again.")
