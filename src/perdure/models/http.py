"""The HTTP client of model calls: one session per provider, bounded retries, typed errors.

A call is retried only before its first byte of answer; once a fragment has gone out, a failure is a failure. What a
provider sends is bounded in size, never decompressed, and cannot carry our own key into an error.
"""

import asyncio
import contextlib
import io
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from urllib.parse import urlsplit

import aiohttp

from perdure.domain.errors import ContextOverflow, ModelError, ModelOutOfCredits, ModelTimeout
from perdure.models.faults import RETRIABLE, fault

Sleep = Callable[[float], Awaitable[None]]

RETRIES = 2
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 20.0
"""Seconds. A provider that asks for a longer one is not asked again: who waits should know why."""
MAX_ERROR_BODY = 64 * 1024
ERROR_PATIENCE = 5.0
"""Seconds for the body of an error; its status has told the most."""
DRAIN_PATIENCE = 0.05
"""Seconds for the end of a body after its last word, so that the connection can be used again."""
MAX_BODY = 16 * 2**20
LARGE = 2**18
SHORTEST_SECRET = 8
SHORTEST_SHOWN = 3
"""Characters of a secret at the end of a text that could as well be any others."""


class Client:
    """Requests to one provider. `name` is how errors call it; `idle` seconds without a byte are too many."""

    def __init__(
        self, name: str, base_url: str, headers: Mapping[str, str], *, idle: float = 600.0, connect: float = 30.0,
        sleep: Sleep = asyncio.sleep,
    ):
        self.name, self.idle, self._root, self._sleep = name, idle, base_url.rstrip("/"), sleep
        self.base_url = without_password(self._root)
        # Answers may be taken uncompressed only: a small one could otherwise unfold to any size.
        self._headers = dict(headers) | {"accept-encoding": "identity"}
        self._secrets = secrets_in([*headers.values(), urlsplit(self._root).password or ""])
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect, sock_read=idle)
        self._opened: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        """Opened at the first request, since it belongs to the running event loop."""
        if self._opened is None:
            # The local limit would queue streams behind each other; how many there are is decided at admission.
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
            self._opened = aiohttp.ClientSession(
                connector=connector, headers=self._headers, timeout=self._timeout, read_bufsize=2**16,
                auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
            )  # fmt: skip
        return self._opened

    @contextlib.asynccontextmanager
    async def post(self, path: str, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a POST, its status 200. Raises a ModelError, after at most `RETRIES` more tries."""
        response = await self._answer("POST", path, body)
        del body  # an answer can take minutes, and a request can be megabytes
        try:
            with self._translated():
                yield response
        finally:
            response.release()  # closes the connection if the answer was not read to its end

    async def get(self, path: str) -> bytes:
        """The body of the answer to a GET. Raises a ModelError."""
        response = await self._answer("GET", path, None)
        try:
            with self._translated():
                return await self.whole(response)
        finally:
            response.release()

    async def whole(self, response: aiohttp.ClientResponse) -> bytes:
        """The body of an answer. Raises ModelError if it is larger than any honest one."""
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY:
                raise ModelError(f"{self.name} answered with more than {MAX_BODY} bytes at once.")
        return bytes(body)

    async def drain(self, response: aiohttp.ClientResponse) -> None:
        """Take the end of an answer whose last word was said, if it comes at once."""
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(DRAIN_PATIENCE):
                while not response.content.at_eof():
                    await response.content.readany()

    async def _answer(self, method: str, path: str, body: bytes | None) -> aiohttp.ClientResponse:
        for left in range(RETRIES, -1, -1):
            found = await self._try(method, path, body, left)
            if isinstance(found, aiohttp.ClientResponse):
                return found
            await self._sleep(found)
        raise AssertionError("the last try returns or raises")

    async def _try(self, method: str, path: str, body: bytes | None, left: int) -> aiohttp.ClientResponse | float:
        """The answer, or the seconds after which to ask again. Raises a ModelError if there is no use in that."""
        try:
            with self._translated():
                response = await self._request(method, path, body)
        except ModelTimeout:
            raise
        except ModelError:
            if not left:
                raise
            return _pause(left, {})
        if response.status == 200:
            return self._readable(response)
        error = self._clean(fault(response.status, await self._told(response), self.name))
        hopeless = isinstance(error, ModelOutOfCredits | ContextOverflow) or response.status not in RETRIABLE
        pause = _pause(left, response.headers)
        if hopeless or not left or pause > LONGEST_PAUSE:
            raise error
        return pause

    async def _request(self, method: str, path: str, body: bytes | None) -> aiohttp.ClientResponse:
        # A large body as it is would be written, and block everybody else, in one go.
        data = io.BytesIO(body) if body is not None and len(body) > LARGE else body
        try:
            return await self._session.request(
                method, self._root + path, data=data, allow_redirects=False,
                headers={"content-type": "application/json"} if body is not None else None,
            )  # fmt: skip
        except ValueError as error:
            raise ModelError(
                f"{self.name} cannot be asked at {self.base_url}. Check the address and the key of this provider.",
                str(error),
            ) from error

    def _readable(self, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        coding = response.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            response.release()
            advice = f"{self.name} compressed its answer, though it was asked not to. Switch compression off there."
            raise self._clean(ModelError(advice, f"content-encoding: {coding[:80]}"))
        return response

    async def _told(self, response: aiohttp.ClientResponse) -> bytes:
        """The beginning of an error's body, as far as it comes soon."""
        body = bytearray()
        try:
            async with asyncio.timeout(ERROR_PATIENCE):
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) >= MAX_ERROR_BODY:
                        break
        except (TimeoutError, aiohttp.ClientError):
            pass  # the status is known, and what came of the body will do
        finally:
            response.release()
        return bytes(body[:MAX_ERROR_BODY])

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ModelError as error:
            raise self._clean(error)  # noqa: B904  # the same error
        except (aiohttp.ClientError, OSError) as error:
            raise self._clean(self._ours(error)) from error

    def _ours(self, error: aiohttp.ClientError | OSError) -> ModelError:
        if isinstance(error, TimeoutError):
            return ModelTimeout(f"{self.name} did not answer in time. Send again, or use a faster model.")
        if isinstance(error, aiohttp.ClientConnectorError):
            advice = "Check that it runs and that the address is right."
            return ModelError(f"{self.name} cannot be reached at {self.base_url}. {advice}", str(error))
        return ModelError(f"The connection to {self.name} broke off. Send again.", str(error))

    def _clean(self, error: ModelError) -> ModelError:
        """The same error without our key, which a provider may have quoted."""
        for secret in self._secrets:
            error.detail = masked(error.detail, secret)
            error.args = tuple(masked(str(word), secret) for word in error.args)
        return error

    async def close(self) -> None:
        """Give the connections back."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None


def secrets_in(values: list[str]) -> list[str]:
    """What of header values must not be shown: each, and the word after its scheme; short ones are no secrets."""
    words = {word for value in values for word in (value, value.rpartition(" ")[2])}
    return sorted((word for word in words if len(word) >= SHORTEST_SECRET), key=len, reverse=True)


def masked(text: str, secret: str) -> str:
    """The text without the secret, nor the beginning of one at its end: what is shown was cut to a length before."""
    text = text.replace(secret, "***")
    left = next((n for n in range(len(secret) - 1, SHORTEST_SHOWN, -1) if text.endswith(secret[:n])), 0)
    return f"{text[: len(text) - left]}***" if left else text


def without_password(url: str) -> str:
    """The address as it may be shown: user, password and query may be secrets."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _pause(left: int, headers: Mapping[str, str]) -> float:
    """Seconds before the next try: what the provider asks for, else a growing jittered pause."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            if (asked := float(headers[name]) * unit) >= 0:  # NaN is not
                return asked
    return FIRST_PAUSE * 2.0 ** (RETRIES - left) * random.uniform(0.5, 1.5)  # noqa: S311  # spreading load, no secret
