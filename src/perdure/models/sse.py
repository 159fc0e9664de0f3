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
        self._line += lines[0]  # a long line comes in many chunks: only what is new is looked through
        if len(lines) > 1:
            lines[0] = bytes(self._line)
            self._line = bytearray(lines.pop())
            for line in lines:
                yield from self._take(line.removesuffix(b"\r"))
        self._check(len(self._line))

    def close(self) -> Iterator[bytes]:
        """The data of a last event that no blank line ended."""
        line, self._line = bytes(self._line), bytearray()
        yield from self._take(line.removesuffix(b"\r"))
        yield from self._end()

    def _take(self, line: bytes) -> Iterator[bytes]:
        if not line:
            yield from self._end()
        elif line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._size += len(line)
            self._check(0)
        elif not self.stray and not line.startswith(FIELDS):
            self.stray = line[:SHOWN]

    def _check(self, more: int) -> None:
        if self._size + more > self._limit:
            raise ModelError(f"The model sent an event of more than {self._limit} bytes. Send again.")

    def _end(self) -> Iterator[bytes]:
        if self._data:
            data, self._data, self._size = b"\n".join(self._data), [], 0
            yield data
