"""One request to addresses that were checked before, with everything about the answer bounded (see `egress`).

The only module of `tools` that imports aiohttp, and `egress` imports this one only when something is fetched. It
follows no redirect, keeps no connection or cookie, reads no proxy or netrc settings, and resolves no name.
"""

import asyncio
import contextlib
import socket
import zlib
from collections.abc import Callable, Mapping, Sequence

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from perdure.domain.errors import Invalid, Unavailable
from perdure.tools.addresses import Address

CHUNK = 64 * 1024
REDIRECTS = (301, 302, 303, 307, 308)
USER_AGENT = "perdure"
COURTESY_BYTES, COURTESY_SECONDS = 64 * 1024, 0.5
"""How much of an answer that is not wanted is heard, so that whoever sends it sees no broken connection."""


class Answer(msgspec.Struct, frozen=True):
    """What one server said. `location` is where it redirects to, as it says so; `body` is then empty."""

    body: bytes
    content_type: str
    location: str | None = None


class Pinned(AbstractResolver):
    """Knows one host and answers with the checked addresses, so that a second look-up cannot change them."""

    def __init__(self, host: str, addresses: Sequence[Address]):
        self._host, self._addresses = host, addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The checked addresses; OSError for any other host."""
        if host != self._host:
            raise OSError(f"{host} was not checked")
        return [
            ResolveResult(
                hostname=host, host=str(address), port=port, proto=0, flags=socket.AI_NUMERICHOST,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
            )
            for address in self._addresses
        ]  # fmt: skip

    async def close(self) -> None:
        """There is nothing to give back."""


async def get(
    url: URL, addresses: Sequence[Address], *, max_bytes: int, accept: str, on_answer: Callable[[], None]
) -> Answer:
    """Ask once; `on_answer` is called when the answer begins. Raises Invalid, or TimeoutError from around it."""
    try:
        return await _get(url, addresses, max_bytes, accept, on_answer)
    except TimeoutError:
        raise
    except (aiohttp.ClientError, OSError, ValueError):
        # The cause may tell about the inside of a network that the operator opened; the caller learns only this.
        raise Invalid(f"No answer came from {url.host}, or a broken one. Check the address.") from None


async def _get(
    url: URL, addresses: Sequence[Address], max_bytes: int, accept: str, on_answer: Callable[[], None]
) -> Answer:
    headers = {"Accept": accept, "Accept-Encoding": "gzip", "User-Agent": USER_AGENT}
    async with (
        _session(url, addresses) as session,
        session.get(url, headers=headers, allow_redirects=False) as response,
    ):
        on_answer()
        if response.status in REDIRECTS and "Location" in response.headers:
            return Answer(b"", "", response.headers["Location"])
        if response.status != 200:
            raise Invalid(f"{url.host} answered {response.status} instead of 200.")
        return Answer(await _body(response, max_bytes), response.headers.get("Content-Type", ""))


async def post(
    url: URL, addresses: Sequence[Address], *, headers: Mapping[str, str], body: bytes, on_answer: Callable[[], None]
) -> int:
    """Send once and answer the status; what else comes back is thrown away. `on_answer` is called when it begins.

    Raises Unavailable, or TimeoutError from around it.
    """
    sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
    try:
        async with (
            _session(url, addresses) as session,
            session.post(url, data=body, headers=sent, allow_redirects=False) as response,
        ):
            on_answer()
            await _hear_out(response)
            return response.status
    except TimeoutError:
        raise
    except (aiohttp.ClientError, OSError, ValueError) as error:  # the cause is for the operator's log (see `get`)
        raise Unavailable(f"No answer came from {url.host}, or a broken one. Check that it listens there.") from error


def _session(url: URL, addresses: Sequence[Address]) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=Pinned(url.raw_host or "", addresses), use_dns_cache=False, limit=1)
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None),
    )  # fmt: skip


async def _hear_out(response: aiohttp.ClientResponse) -> None:
    """Read a little of the body for the sender's sake. The status is what counts, so nothing here is an error."""
    left = COURTESY_BYTES
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(COURTESY_SECONDS):
            while left > 0 and (chunk := await response.content.readany()):
                left -= len(chunk)


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body, unpacked. Raises Invalid as soon as it is larger than allowed, packed or not."""
    too_large = Invalid(f"{response.url.host} sends more than the {max_bytes} bytes that are allowed.")
    if (response.content_length or 0) > max_bytes:
        raise too_large
    packing, body, received = Packing(response.headers.get("Content-Encoding", "")), bytearray(), 0
    async for chunk in response.content.iter_chunked(CHUNK):
        received += len(chunk)
        body += packing.undo(chunk, max_bytes + 1 - len(body))
        if max(received, len(body)) > max_bytes:
            raise too_large
    packing.check_end()
    return bytes(body)


class Packing:
    """A Content-Encoding, undone piece by piece without ever making more than is asked for. Raises Invalid."""

    def __init__(self, encoding: str):
        name = encoding.strip().lower()
        if name not in ("", "identity", "gzip", "x-gzip"):
            raise Invalid(f"The answer is packed as {name[:40]!r}, which was not asked for.")
        self._unzip = zlib.decompressobj(wbits=31) if "gzip" in name else None

    def undo(self, chunk: bytes, most: int) -> bytes:
        """Up to `most` (> 0) more bytes of the content; whoever gets that many must not go on."""
        if self._unzip is None:
            return chunk
        try:
            return self._unzip.decompress(chunk, most)
        except zlib.error:
            raise Invalid("The answer is packed wrongly: it cannot be unpacked.") from None

    def check_end(self) -> None:
        """The content must not break off in the middle."""
        if self._unzip is not None and not self._unzip.eof:
            raise Invalid("The answer is packed wrongly: it breaks off.")
