"""The HTTP client of model calls: one session per provider, bounded retries, typed errors.

A call is retried only before its first byte of answer; once a fragment has gone out, a failure is a failure.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

import aiohttp

from perdure.domain.errors import ModelError, ModelTimeout
from perdure.models.faults import RETRIABLE, fault

Sleep = Callable[[float], Awaitable[None]]

RETRIES = 2
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
MAX_ERROR_BODY = 64 * 1024


class Client:
    """Requests to one provider. `name` is how errors call it; `idle` seconds without a byte are too many."""

    def __init__(
        self, name: str, base_url: str, headers: Mapping[str, str], *, idle: float = 600.0, connect: float = 30.0,
        sleep: Sleep = asyncio.sleep,
    ):
        self.name, self.base_url = name, base_url.rstrip("/")
        self._headers, self._sleep = dict(headers), sleep
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=idle)
        self._opened: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        """Opened at the first request, since it belongs to the running event loop."""
        if self._opened is None:
            # The local limit would queue streams behind each other; how many there are is decided at admission.
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
            self._opened = aiohttp.ClientSession(
                connector=connector, headers=self._headers, timeout=self._timeout, read_bufsize=2**16,
                auto_decompress=True,
            )  # fmt: skip
        return self._opened

    @contextlib.asynccontextmanager
    async def post(self, path: str, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a POST, its status 200. Raises a ModelError, after at most `RETRIES` more tries."""
        response = await self._answer("POST", path, body)
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
                return await response.read()
        finally:
            response.release()

    async def _answer(self, method: str, path: str, body: bytes | None) -> aiohttp.ClientResponse:
        for left in range(RETRIES, -1, -1):
            try:
                with self._translated():
                    response = await self._session.request(
                        method, self.base_url + path, data=body, allow_redirects=False,
                        headers={"content-type": "application/json"} if body is not None else None,
                    )  # fmt: skip
                    if response.status == 200:
                        return response
                    told = await response.content.read(MAX_ERROR_BODY)
                    response.release()
            except ModelTimeout:
                raise
            except ModelError:
                if not left:
                    raise
                await self._sleep(_pause(left, None))
                continue
            if not left or response.status not in RETRIABLE:
                raise fault(response.status, told, self.name)
            await self._sleep(_pause(left, response.headers.get("retry-after")))
        raise AssertionError("the last try returns or raises")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (aiohttp.ServerTimeoutError, TimeoutError) as error:
            raise ModelTimeout(f"{self.name} did not answer in time. Send again, or use a faster model.") from error
        except (aiohttp.ClientConnectorError, OSError) as error:
            raise ModelError(
                f"{self.name} cannot be reached at {self.base_url}. Check that it runs and that the address is right.",
                str(error),
            ) from error
        except aiohttp.ClientError as error:
            raise ModelError(f"The connection to {self.name} broke off. Send again.", str(error)) from error

    async def close(self) -> None:
        """Give the connections back."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None


def _pause(left: int, retry_after: str | None) -> float:
    """Seconds before the next try: what the provider asks for, if that is short, else a growing jittered pause."""
    with contextlib.suppress(TypeError, ValueError):
        return min(float(retry_after or ""), LONGEST_PAUSE)
    return FIRST_PAUSE * 2.0 ** (RETRIES - left) * random.uniform(0.5, 1.5)  # noqa: S311  # spreading load, no secret
