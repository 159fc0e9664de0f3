"""Server-sent events as providers send them: bytes in, the data of each event out.

Tolerant of line ends, comments, data over several lines, and chunks cut anywhere. Knows nothing of what is inside.
"""

from collections.abc import Iterator

from perdure.domain.errors import ModelError

MAX_EVENT = 16 * 2**20


class Splitter:
    """Feed it chunks; it gives the data of the events that are complete."""

    def __init__(self, limit: int = MAX_EVENT):
        self._limit, self._rest = limit, b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of each event that ends in this chunk. Raises ModelError for an event over the limit."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) + self._size > self._limit:
            raise ModelError(f"The model's stream holds an event of more than {self._limit} bytes.")
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                yield from self._end()
            elif line.startswith(b"data:"):
                self._add(line[5:].removeprefix(b" "))

    def close(self) -> Iterator[bytes]:
        """The data of a last event that no blank line ended."""
        line, self._rest = self._rest.removesuffix(b"\r"), b""
        if line.startswith(b"data:"):
            self._add(line[5:].removeprefix(b" "))
        yield from self._end()

    def _add(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            raise ModelError(f"The model's stream holds an event of more than {self._limit} bytes.")
        self._data.append(data)

    def _end(self) -> Iterator[bytes]:
        if self._data:
            data, self._data, self._size = b"\n".join(self._data), [], 0
            yield data
