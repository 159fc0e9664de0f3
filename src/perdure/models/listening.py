"""One answer of a Chat Completions server, heard to its end: reads of the network in, pieces out.

One wake-up for each read and none for the clock: `Silence` has a timer per stretch of silence. Stands between the
connection (`http`), the form of the stream (`sse`) and what its events say (`chat_stream`); what to ask, and what to do
about a refusal, is in `openai`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

from aiohttp import ClientError, ClientResponse, SocketTimeoutError

from perdure.domain.errors import ModelError, ModelTimeout
from perdure.domain.ports import Answer, Piece
from perdure.models.chat_events import is_whole
from perdure.models.chat_stream import Reading
from perdure.models.http import Client
from perdure.models.sse import Splitter

EPILOGUE = 5.0
"""Seconds for what may follow an answer."""
LOOKS = 4
"""How often in a stretch of silence the clock is looked at: it is noticed late by at most this part of it."""


class Listening:
    """Hears one answer; `begun` once something has been said."""

    def __init__(self, client: Client, reading: Reading):
        self._client, self._reading, self._splitter = client, reading, Splitter()
        self._response: ClientResponse
        self._ahead: Sequence[Piece] = ()
        self._late: ModelError | None = None
        self._until: float | None = None
        self._ended = self.begun = False

    @contextlib.asynccontextmanager
    async def to(self, path: str, body: bytes) -> AsyncIterator[None]:
        """Ask. Raises a ModelError, here and within for `more` and `answer`."""
        call = self._client.post(path, body)
        del body
        async with call as self._response:
            self._ahead = await self._first()
            with silence_is_told(self._client, self._response, self._reading):
                yield

    async def more(self) -> Sequence[Piece]:
        """The next pieces, as soon as there are any; none when the answer has ended."""
        pieces, self._ahead = self._ahead, ()
        while not (pieces or self._ended):
            if self._late:
                raise self._late
            waiting = self._epilogue() if self._reading.finished else self._response.content.readany()
            pieces = self._heard(await waiting)
        self.begun = self.begun or bool(pieces)
        return pieces

    async def answer(self) -> Answer:
        """The whole answer, once there is no more of it."""
        await self._client.drain(self._response)
        return self._reading.answer(self._splitter.stray)

    def _heard(self, chunk: bytes) -> Sequence[Piece]:
        """The pieces in a chunk; an empty one is the end. An error that follows pieces is told after them."""
        pieces: list[Piece] = []
        try:
            for data in self._splitter.feed(chunk) if chunk else filter(is_whole, self._splitter.close()):
                pieces += self._reading.read(data)
            self._ended = not chunk or self._reading.over
        except ModelError as error:
            if not pieces:
                raise
            self._late = error
        if pieces:
            self._until = None
        return pieces

    async def _first(self) -> Sequence[Piece]:
        """What a stream begins with, or all of an answer that is none: the bytes tell better than the headers."""
        chunk = await self._response.content.readany()
        if is_stream(chunk) and not (chunk.isspace() and self._response.content_type.endswith("json")):
            return self._heard(chunk)
        async with asyncio.timeout(self._client.idle):
            whole = (chunk + await self._client.whole(self._response)).strip()
        pieces = self._reading.read(whole)
        self._ended = self._reading.over = True
        return pieces

    async def _epilogue(self) -> bytes:
        """More of a stream whose answer is whole: the count of its tokens, which is not worth a long wait, nor an error
        if the line drops instead.
        """
        now = asyncio.get_running_loop().time()
        self._until = self._until or now + min(EPILOGUE, self._client.idle)
        if now > self._until:  # it goes on and on with what is no answer
            return b""
        try:
            async with asyncio.timeout_at(self._until):
                return await self._response.content.readany()
        except (TimeoutError, ClientError):
            return b""


@contextlib.contextmanager
def silence_is_told(client: Client, response: ClientResponse, reading: Reading) -> Iterator[None]:
    """Within, whoever reads the response gets a ModelTimeout after `client.idle` seconds in which nothing was said."""
    silence = Silence(client, response, reading)
    try:
        yield
    finally:
        silence.end()


class Silence:
    """How long nothing has been said: a stream of comments counts as one that is silent."""

    def __init__(self, client: Client, response: ClientResponse, reading: Reading):
        self._client, self._content, self._reading = client, response.content, reading
        self._loop = asyncio.get_running_loop()
        if response.connection and response.connection.protocol:
            response.connection.protocol.read_timeout = None  # aiohttp's own takes a timer for each read
        self._begin()

    def end(self) -> None:
        """Measure it no more."""
        self._timer.cancel()

    def _begin(self) -> None:
        self._said, self._bytes, self._since = self._reading.kept, self._content.total_bytes, self._loop.time()
        self._timer = self._loop.call_later(self._client.idle / LOOKS, self._look)

    def _look(self) -> None:
        if self._reading.kept != self._said or self._reading.finished:
            self._begin()
        elif self._loop.time() - self._since < self._client.idle:
            self._timer = self._loop.call_later(self._client.idle / LOOKS, self._look)
        elif self._content.total_bytes == self._bytes:
            self._content.set_exception(SocketTimeoutError())
        else:
            words = f"{self._client.name} keeps the line open and says nothing. Send again."
            self._content.set_exception(ModelTimeout(words))


def is_stream(body: bytes) -> bool:
    """Whether this begins a stream of events, not an answer in one piece or a web page."""
    return body.lstrip()[:1] not in (b"{", b"<")
