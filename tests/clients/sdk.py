"""One door to both SDKs, so that each story is told once: the Python package here, the npm package in `node.py`.

Everything that comes back is plain JSON. A story names a method as Python does, `agents.messages.create_async`, its
ids, and its fields.
"""

import asyncio
import operator
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import letta_client

Json = Any
SECONDS = 10


class Refused(Exception):
    """What an SDK raised: the name of the class, the HTTP status if it has one, and the decoded body."""

    def __init__(self, kind: str, status: int | None, body: Json, text: str):
        super().__init__(f"{kind}: {text}")
        self.kind, self.status, self.body = kind, status, body


@dataclass(frozen=True)
class Options:
    """How a client is made; the rest is the SDK's default: 60 s and 2 retries."""

    base_url: str
    timeout: float | None = None
    max_retries: int | None = None


class Attempts:
    """The HTTP requests of a client: how often each had been tried before, and with what it ended."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.ended: list[int | str] = []
        self._changed = asyncio.Event()

    def begin(self, retry_count: str) -> None:
        """A request goes out."""
        self.sent.append(retry_count)
        self._changed.set()

    def end(self, how: int | str) -> None:
        """A request was answered with this status, or failed with an error of this name."""
        self.ended.append(how)
        self._changed.set()

    async def until(self, *, sent: int = 0, ended: int = 0) -> None:
        """Wait until so many went out and so many have ended."""
        async with asyncio.timeout(SECONDS):
            while len(self.sent) < sent or len(self.ended) < ended:
                self._changed.clear()
                await self._changed.wait()


class Sdk(ABC):
    """An SDK and its settings; every call is made by a client of its own."""

    def __init__(self, options: Options):
        self.options = options
        self.attempts = Attempts()

    @abstractmethod
    def another(self, **options: Any) -> "Sdk":
        """The same SDK with other options."""

    @abstractmethod
    async def call(self, method: str, *ids: str, **fields: Json) -> Json:
        """One answer. `extra` has body fields that the SDK does not know. Raises Refused."""

    @abstractmethod
    async def all(self, method: str, *ids: str, **fields: Json) -> list[Json]:
        """All elements of a list, page after page. Raises Refused."""

    @abstractmethod
    def stream(self, method: str, *ids: str, take: int | None = None, **fields: Json) -> AsyncIterator[Json]:
        """The chunks of a stream; after `take` of them the client hangs up. Raises Refused."""

    async def read(self, method: str, *ids: str, take: int | None = None, **fields: Json) -> list[Json]:
        """All chunks of a stream, or the first few. Raises Refused."""
        return [chunk async for chunk in self.stream(method, *ids, take=take, **fields)]

    async def broken(self, method: str, *ids: str, **fields: Json) -> tuple[list[Json], Refused]:
        """The chunks of a stream that ends with an error, and the error. Raises AssertionError if it ends well."""
        chunks: list[Json] = []
        try:
            async for chunk in self.stream(method, *ids, **fields):
                chunks.append(chunk)
        except Refused as error:
            return chunks, error
        raise AssertionError(f"no error after {chunks!r}")


class Watched(httpx.AsyncHTTPTransport):
    """Tells of each request."""

    def __init__(self, attempts: Attempts):
        super().__init__(verify=False)
        self._attempts = attempts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request."""
        self._attempts.begin(request.headers["x-stainless-retry-count"])
        try:
            response = await super().handle_async_request(request)
        except Exception as error:
            self._attempts.end(type(error).__name__)
            raise
        self._attempts.end(response.status_code)
        return response


class PythonSdk(Sdk):
    """`letta-client` of PyPI."""

    def another(self, **options: Any) -> "PythonSdk":
        """The same with other options."""
        return PythonSdk(replace(self.options, **options))

    async def call(self, method: str, *ids: str, **fields: Json) -> Json:
        """One answer."""
        async with self._client() as client:
            try:
                return plain(await bound(client, method, ids, fields))
            except letta_client.APIError as error:
                raise refused(error) from error

    async def all(self, method: str, *ids: str, **fields: Json) -> list[Json]:
        """All elements."""
        async with self._client() as client:
            try:
                return [plain(element) async for element in bound(client, method, ids, fields)]
            except letta_client.APIError as error:
                raise refused(error) from error

    async def stream(self, method: str, *ids: str, take: int | None = None, **fields: Json) -> AsyncIterator[Json]:
        """The chunks of a stream."""
        async with self._client() as client:
            try:
                async with await bound(client, method, ids, fields) as chunks:
                    left = take
                    async for chunk in chunks:
                        yield plain(chunk)
                        left = left and left - 1
                        if left == 0:
                            return
            except (letta_client.APIError, httpx.HTTPError) as error:
                raise refused(error) from error

    def _client(self) -> letta_client.AsyncLetta:
        chosen: dict[str, Any] = {"timeout": self.options.timeout, "max_retries": self.options.max_retries}
        return letta_client.AsyncLetta(
            base_url=self.options.base_url, api_key="unused",
            http_client=httpx.AsyncClient(transport=Watched(self.attempts), trust_env=False),
            **{name: value for name, value in chosen.items() if value is not None},
        )  # fmt: skip


def bound(client: letta_client.AsyncLetta, method: str, ids: tuple[str, ...], fields: dict[str, Json]) -> Any:
    """The call, begun."""
    known = dict(fields)
    extra = known.pop("extra", None)
    return operator.attrgetter(method)(client)(*ids, **known, **({"extra_body": extra} if extra else {}))


def plain(value: Any) -> Json:
    """What the SDK decoded, as the JSON it was decoded from; only dates may be written in another way."""
    if isinstance(value, list):
        return [plain(element) for element in value]
    return value.to_dict(mode="json", warnings=False) if hasattr(value, "to_dict") else value


def refused(error: letta_client.APIError | httpx.HTTPError) -> Refused:
    """The error as stories look at it."""
    status = getattr(error, "status_code", None)
    return Refused(type(error).__name__, status, getattr(error, "body", None), str(error))
