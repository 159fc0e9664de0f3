"""The one guard for every outbound request whose address comes from data: a message, a model, a page.

It looks a name up once, refuses what is not on the open internet, and connects to exactly the addresses it checked;
every redirect of a fetch goes through the same door, and a post follows none. Size, time and number of redirects are
bounded. `addresses` holds the rules, `hop` does the HTTP, `picture` knows images. Errors name the host as the caller
wrote it and nothing that was found out about the inside of the network.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address

import msgspec
from yarl import URL

from perdure.domain.errors import Invalid, PerdureError, Unavailable
from perdure.domain.messages import Image
from perdure.tools.addresses import Address, Allowed, literal
from perdure.tools.picture import LARGEST, from_data_url, picture

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""From host and port to addresses in text form. Raises OSError if the name has none."""

LONGEST_URL = 8192
_NAME = re.compile(r"[A-Za-z0-9._-]{1,254}")
_V6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_UNSAYABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_HERE = (ip_address("127.0.0.1"), ip_address("::1"))


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one fetch: bytes after unpacking, seconds for all of it, redirects."""

    max_bytes: int = LARGEST
    timeout: float = 5.0
    redirects: int = 3


class Fetched(msgspec.Struct, frozen=True):
    """What came back. `url` is where it finally was."""

    body: bytes
    content_type: str
    url: str


async def look_up(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, from the machine's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Egress:
    """Fetches and posts within limits. `allow` lists hosts, addresses and CIDR ranges inside that the operator opens.

    Raises ValueError for an entry of `allow` that is none.
    """

    def __init__(self, limits: Limits | None = None, *, allow: Iterable[str] = (), resolver: Resolver = look_up):
        self._limits = limits or Limits()
        self._allowed = Allowed(allow)
        self._resolver = resolver

    async def fetch_image(self, url: str) -> Image:
        """The picture behind a `data:`, `http:` or `https:` URL (spec §2). Raises Invalid saying why not."""
        if url[:5].lower() == "data:":
            return from_data_url(url)
        fetched = await self.fetch(url, accept="image/*", max_bytes=LARGEST)
        return picture(fetched.body, "What the image URL leads to")

    async def fetch(
        self, url: str, *, max_bytes: int | None = None, timeout: float | None = None, accept: str = "*/*"
    ) -> Fetched:
        """GET a URL. `timeout` seconds cover everything, also the one retry after no answer in the first half.

        Raises Invalid for anything but a 200 of acceptable size from an address in order.
        """
        most = self._limits.max_bytes if max_bytes is None else max_bytes
        seconds = self._limits.timeout if timeout is None else timeout
        first = target(url)
        try:
            async with asyncio.timeout(seconds):
                return await self._twice(first, most, seconds / 2, accept)
        except TimeoutError:
            raise Invalid(f"{first.host} did not answer within {seconds:g} seconds.") from None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """POST once, follow nothing, and answer the status; the rest of the answer is thrown away.

        Raises Invalid for an address that is refused, Unavailable if no answer came (in time) and another try may do.
        """
        goal, seconds = target(url), self._limits.timeout
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await self._post(goal, headers, body, lambda: deadline.reschedule(None))
        except TimeoutError:
            raise Unavailable(f"{goal.host} did not answer within {seconds:g} seconds.") from None

    async def _post(self, url: URL, headers: Mapping[str, str], body: bytes, on_answer: Callable[[], None]) -> int:
        from perdure.tools import hop  # as in `_follow`

        addresses = await self._checked(url, missing=Unavailable)
        return await hop.post(url, addresses, headers=headers, body=body, on_answer=on_answer)

    def check_url(self, url: str) -> None:
        """Refuse what could never be fetched or posted to, as far as its text tells. No name is looked up.

        Raises Invalid.
        """
        host = target(url).raw_host or ""
        name, written = host.lower().rstrip("."), literal(host)
        places = [written] if written else _HERE if name.rpartition(".")[2] == "localhost" else []
        if places and not any(self._allowed.reaches(host, place) for place in places):
            raise _inside(host)

    async def _twice(self, first: URL, max_bytes: int, patience: float, accept: str) -> Fetched:
        """Two tries; the first may go on past its half of the time once the answer has begun."""
        try:
            async with asyncio.timeout(patience) as deadline:
                return await self._follow(first, max_bytes, accept, lambda: deadline.reschedule(None))
        except TimeoutError:
            return await self._follow(first, max_bytes, accept, lambda: None)

    async def _follow(self, url: URL, max_bytes: int, accept: str, on_answer: Callable[[], None]) -> Fetched:
        from perdure.tools import hop  # aiohttp takes a while to import, and most starts never fetch

        for _ in range(self._limits.redirects + 1):
            addresses = await self._checked(url)
            answer = await hop.get(url, addresses, max_bytes=max_bytes, accept=accept, on_answer=on_answer)
            if answer.location is None:
                return Fetched(answer.body, answer.content_type, str(url))
            url = target(answer.location, base=url)
        raise Invalid(f"The address redirects more than {self._limits.redirects} times.")

    async def _checked(self, url: URL, missing: type[PerdureError] = Invalid) -> Sequence[Address]:
        """The addresses of a URL's host, all of them in order. Raises Invalid, and `missing` if it has none."""
        host, port = url.raw_host or "", url.port or 0
        written = literal(host)
        try:
            addresses = [written] if written else [ip_address(text) for text in await self._resolver(host, port)]
        except (OSError, ValueError):  # UnicodeError among the latter: labels that no name server takes
            raise missing(f"The host {host} cannot be found. Check the address.") from None
        if not addresses or not all(self._allowed.reaches(host, address) for address in addresses):
            raise _inside(host)
        return addresses


def _inside(host: str) -> Invalid:
    return Invalid(
        f"The host {host} is not on the open internet, so nothing is asked of it. "
        "The operator can allow private hosts by name or range: setting egress_allow."
    )


def target(text: str, base: URL | None = None) -> URL:
    """A URL that may be fetched, as far as its text tells. Raises Invalid."""
    text = text.strip()
    if len(text) > LONGEST_URL or _UNSAYABLE.search(text):
        raise Invalid(f"The address is longer than {LONGEST_URL} characters or holds control characters.")
    try:
        url = URL(text) if base is None else base.join(URL(text))
        host, port = url.raw_host or "", url.port
    except (ValueError, TypeError):
        raise Invalid("The address is not a URL. Use https://host/path.") from None
    if url.scheme not in ("http", "https"):
        raise Invalid(f"An address must begin with http:// or https://, not {url.scheme[:20] or text[:20]!r}.")
    if not port or not (_NAME.fullmatch(host) or _V6.fullmatch(host)):
        raise Invalid("The address names no host. Use https://host/path.")
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) and literal(host) is None:
        # Programs disagree on what 2130706433, 0x7f.1 or 0177.0.0.1 mean: what is used might not be what was checked.
        raise Invalid("The address of the host must be written as four decimal numbers.")
    if url.raw_user is not None or url.raw_password is not None:
        raise Invalid("The address holds a user name or password. Leave it out.")
    return url.with_fragment(None)
