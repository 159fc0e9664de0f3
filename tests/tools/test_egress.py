"""The egress guard against real servers on the loopback, which the allow-list opens where a story needs one."""

import asyncio
import base64
import gzip
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from perdure.domain.errors import Invalid, Unavailable
from perdure.tools.egress import Egress, Limits, target

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + b"picture"
LOOPBACK = ("127.0.0.1/32",)

Reply = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request with the next reply, the last one for ever, and keeps what it was asked."""

    def __init__(self, replies: Sequence[Reply]):
        self.replies, self.asked, self.port = list(replies), [], 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            if isinstance(reply, bytes):
                writer.write(reply)
                await writer.drain()
            else:
                await reply(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the guard hung up, which is what many stories are about
        finally:
            writer.close()


@asynccontextmanager
async def serving(*replies: Reply, host: str = "127.0.0.1") -> AsyncIterator[Server]:
    server, tasks = Server(replies), set[asyncio.Task]()

    async def connected(reader, writer):
        task = asyncio.current_task()
        tasks.add(task)
        await server.serve(reader, writer)
        tasks.discard(task)

    listening = await asyncio.start_server(connected, host, 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    head = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(to: str) -> bytes:
    return answer(status="302 Found", Location=to)


async def silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drip(writer: asyncio.StreamWriter) -> None:
    """A body that never ends, a byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def flood(writer: asyncio.StreamWriter) -> None:
    """A body that never ends, as fast as it goes, with no length given."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


def resolver(**names: list[str]):
    """Names to addresses; the look-ups made are in its `asked`."""

    async def look_up(host: str, port: int) -> list[str]:
        look_up.asked.append(host)
        if host not in names:
            raise OSError("no such name")
        return names[host]

    look_up.asked = []
    return look_up


async def test_a_page_is_fetched():
    async with serving(answer(b"hello", Content_Type="text/plain")) as server:
        fetched = await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/a?b=c#d", accept="text/plain")
    assert (fetched.body, fetched.content_type) == (b"hello", "text/plain")
    assert fetched.url == f"http://127.0.0.1:{server.port}/a?b=c"
    head = server.asked[0].decode()
    assert head.startswith("GET /a?b=c HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}\r\n" in head
    assert "Accept: text/plain\r\n" in head
    assert "Cookie" not in head


async def test_without_an_exception_the_loopback_is_refused():
    async with serving(answer(b"secret")) as server:
        with pytest.raises(Invalid, match=r"The host 127\.0\.0\.1 is not on the open internet"):
            await Egress().fetch(f"http://127.0.0.1:{server.port}/")
    assert server.asked == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "[::1]", "[::ffff:169.254.169.254]", "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[fd00:ec2::254]", "①②⑦.⓪.⓪.①",
    ],
)  # fmt: skip
async def test_private_addresses_are_refused_however_they_are_written(host):
    with pytest.raises(Invalid, match="not on the open internet"):
        await Egress().fetch(f"http://{host}/latest/meta-data")


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0x7f.1", "127.1", "017700000001", "0177.0.0.1", "127.0.0.1."]
)
async def test_odd_spellings_of_addresses_are_refused_unread(host):
    """Programs read these differently, even when the loopback is allowed."""
    with pytest.raises(Invalid, match="four decimal numbers"):
        await Egress(allow=LOOPBACK).fetch(f"http://{host}/")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "must begin with http"),
        ("ftp://example.com/", "must begin with http"),
        ("gopher://example.com/", "must begin with http"),
        ("//example.com/", "must begin with http"),
        ("", "must begin with http"),
        ("http://", "names no host"),
        ("http:///x", "names no host"),
        ("http://a b/", "names no host"),
        ("http://[fe80::1%25eth0]/", "names no host"),
        ("http://me:pw@example.com/", "user name or password"),
        ("http://me@example.com/", "user name or password"),
        ("http://example.com:99999/", "not a URL"),
        ("http://example.com/\r\nHost: x", "control characters"),
        ("http://example.com/" + "x" * 9000, "longer than 8192"),
    ],
)
def test_urls_that_are_refused_unread(url, words):
    with pytest.raises(Invalid, match=words):
        target(url)


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::1"], []])
async def test_a_name_is_refused_if_any_of_its_addresses_is_inside(addresses):
    with pytest.raises(Invalid, match=r"The host inside\.example is not on the open internet"):
        await Egress(resolver=resolver(**{"inside.example": addresses})).fetch("http://inside.example/")


async def test_an_unknown_name():
    with pytest.raises(Invalid, match=r"The host nowhere\.example cannot be found"):
        await Egress(resolver=resolver()).fetch("http://nowhere.example/")


async def test_the_connection_goes_where_the_check_looked():
    """DNS rebinding: a name that changes its mind is looked up once, and its first answer is what is used."""
    answers = [["127.0.0.2"], ["127.0.0.1"]]

    async def changing(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async with serving(answer(b"right"), host="127.0.0.2") as server:
        egress = Egress(allow=["127.0.0.2"], resolver=changing)
        fetched = await egress.fetch(f"http://rebind.example:{server.port}/")
        assert fetched.body == b"right"
        assert f"Host: rebind.example:{server.port}".encode() in server.asked[0]
        assert answers == [["127.0.0.1"]]
        with pytest.raises(Invalid, match="not on the open internet"):
            await egress.fetch(f"http://rebind.example:{server.port}/")
    assert len(server.asked) == 1


async def test_tls_is_asked_for_the_name_not_the_address():
    """The first message of TLS names the host in clear."""
    heard = asyncio.get_running_loop().create_future()

    async def listen(reader, writer):
        heard.set_result(await reader.read(2048))
        writer.close()

    listening = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        with pytest.raises(Invalid, match=r"No answer came from shop\.example"):
            await Egress(allow=LOOPBACK, resolver=resolver(**{"shop.example": ["127.0.0.1"]})).fetch(
                f"https://shop.example:{port}/"
            )
        assert b"shop.example" in await heard
    finally:
        listening.close()


async def test_redirects_are_followed_up_to_three():
    async with serving(redirect("/b"), redirect("c?d"), redirect("//127.0.0.1:PORT/e"), answer(b"there")) as server:
        server.replies[2] = server.replies[2].replace(b"PORT", str(server.port).encode())
        fetched = await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/x/a")
    assert (fetched.body, fetched.url) == (b"there", f"http://127.0.0.1:{server.port}/e")
    assert [asked.split()[1] for asked in server.asked] == [b"/x/a", b"/b", b"/c?d", b"/e"]


async def test_a_circle_of_redirects_ends():
    async with serving(redirect("/")) as server:
        with pytest.raises(Invalid, match="redirects more than 3 times"):
            await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/")
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("http://127.0.0.1:PORT/", "not on the open internet"),
        ("http://[::ffff:127.0.0.1]:PORT/", "not on the open internet"),
        ("http://169.254.169.254/", "not on the open internet"),
        ("http://2130706433/", "four decimal numbers"),
        ("file:///etc/passwd", "must begin with http"),
        ("http://a:b@c/", "user name or password"),
        ("http://[", "not a URL"),
    ],
)
async def test_a_redirect_goes_through_the_same_door(to, words):
    """A host that is allowed cannot send the guard elsewhere."""
    names = resolver(**{"good.example": ["127.0.0.1"]})
    async with serving(answer()) as server:
        server.replies = [redirect(to.replace("PORT", str(server.port)))]
        with pytest.raises(Invalid, match=words):
            await Egress(allow=["good.example"], resolver=names).fetch(f"http://good.example:{server.port}/")
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "204 No Content", "301 Moved"])
async def test_only_200_is_an_answer(status):
    """Acceptance 7. A redirect to nowhere is none either."""
    async with serving(answer(status=status)) as server:
        with pytest.raises(Invalid, match=rf"127\.0\.0\.1 answered {status[:3]} instead of 200"):
            await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/")


@pytest.mark.parametrize(
    "reply",
    [answer(b"x" * 1001), answer(b"x" * 10, Content_Length="1000000000000"), flood],
    ids=["long", "said", "flood"],
)
async def test_a_body_that_is_too_large_is_not_read(reply):
    async with serving(reply) as server:
        with pytest.raises(Invalid, match="sends more than the 1000 bytes that are allowed"):
            await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/", max_bytes=1000)


async def test_a_body_of_just_the_size_is_read():
    async with serving(answer(b"x" * 1000)) as server:
        fetched = await Egress(Limits(max_bytes=1000), allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/")
    assert fetched.body == b"x" * 1000


async def test_a_packed_body_is_unpacked():
    async with serving(answer(gzip.compress(b"hello" * 100), Content_Encoding="gzip")) as server:
        fetched = await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/", max_bytes=500)
    assert fetched.body == b"hello" * 100


@pytest.mark.parametrize(
    ("body", "encoding", "words"),
    [
        (gzip.compress(bytes(50_000_000)), "gzip", "sends more than the 100000 bytes"),
        (gzip.compress(b"x") + bytes(99_999_999), "gzip", "sends more than the 100000 bytes"),
        (gzip.compress(b"hello")[:-4], "gzip", "breaks off"),
        (b"not packed", "gzip", "cannot be unpacked"),
        (b"x", "br", "packed as 'br', which was not asked for"),
    ],
    ids=["bomb", "tail", "cut", "plain", "other"],
)
async def test_packing_is_no_way_around_the_size(body, encoding, words):
    async with serving(answer(body, Content_Encoding=encoding)) as server:
        with pytest.raises(Invalid, match=words):
            await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/", max_bytes=100_000)


async def test_a_body_that_drips_ends_with_the_time():
    """Once the answer has begun there is no second try, but the time for all of it still counts."""
    started = time.monotonic()
    async with serving(drip) as server:
        with pytest.raises(Invalid, match=r"did not answer within 0\.3 seconds"):
            await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/", timeout=0.3)
    assert time.monotonic() - started < 2
    assert len(server.asked) == 1


async def test_silence_is_tried_twice_within_the_time():
    started = time.monotonic()
    async with serving(silence) as server:
        with pytest.raises(Invalid, match=r"did not answer within 0\.3 seconds"):
            await Egress(Limits(timeout=0.3), allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/")
    assert time.monotonic() - started < 2
    assert len(server.asked) == 2


async def test_the_second_try_may_succeed():
    async with serving(silence, answer(b"awake")) as server:
        fetched = await Egress(Limits(timeout=1), allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/")
    assert fetched.body == b"awake"


async def test_a_slow_name_server_counts_as_silence():
    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(Invalid, match="did not answer"):
        await Egress(Limits(timeout=0.1), resolver=slow).fetch("http://slow.example/")


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"])
async def test_a_broken_answer(reply):
    """What went wrong inside is not told."""
    async with serving(reply) as server:
        with pytest.raises(Invalid, match=r"^No answer came from 127\.0\.0\.1, or a broken one\. Check the address\.$"):
            await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/")


async def test_nobody_listens():
    async with serving(b"") as server:
        pass
    with pytest.raises(Invalid, match="No answer came from"):
        await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/")


async def test_proxies_of_the_environment_are_ignored(monkeypatch):
    """A proxy would connect to addresses that nobody checked."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving(answer(b"direct")) as server:
        assert (await Egress(allow=LOOPBACK).fetch(f"http://127.0.0.1:{server.port}/")).body == b"direct"


async def test_an_image_is_known_by_its_bytes():
    async with serving(answer(PNG, Content_Type="text/plain")) as server:
        image = await Egress(allow=LOOPBACK).fetch_image(f"http://127.0.0.1:{server.port}/a.jpg")
    assert (image.media_type, image.data) == ("image/png", base64.b64encode(PNG).decode())
    assert b"Accept: image/*" in server.asked[0]


async def test_a_page_is_no_image():
    async with serving(answer(b"<html>", Content_Type="image/png")) as server:
        with pytest.raises(Invalid, match="What the image URL leads to is no picture"):
            await Egress(allow=LOOPBACK).fetch_image(f"http://127.0.0.1:{server.port}/a.png")


async def test_an_image_in_a_data_url_needs_no_network():
    image = await Egress().fetch_image("data:image/png;base64," + base64.b64encode(PNG).decode())
    assert image.media_type == "image/png"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "blob:x", ""])
async def test_other_kinds_of_image_urls_are_refused(url):
    """Acceptance 7."""
    with pytest.raises(Invalid, match="must begin with http"):
        await Egress().fetch_image(url)


async def test_many_fetches_at_once_do_not_disturb_each_other():
    async with serving(answer(b"hello")) as server:
        egress = Egress(allow=LOOPBACK)
        fetched = await asyncio.gather(*(egress.fetch(f"http://127.0.0.1:{server.port}/{n}") for n in range(20)))
    assert [one.body for one in fetched] == [b"hello"] * 20


async def test_a_post():
    """Body and headers arrive as given, on the connection that was checked; the status is all that comes back."""
    heard = asyncio.get_running_loop().create_future()

    async def listen(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        heard.set_result((head.decode(), await reader.readexactly(5)))
        writer.write(answer(b"ignored", status="202 Accepted", Set_Cookie="a=b"))
        writer.close()

    listening = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    names = resolver(**{"hooks.example": ["127.0.0.1"]})
    try:
        egress = Egress(allow=LOOPBACK, resolver=names)
        assert await egress.post(f" http://hooks.example:{port}/a?b=c#d ", {"X-Id": "7"}, b"hello") == 202
    finally:
        listening.close()
    head, body = await heard
    assert (body, names.asked) == (b"hello", ["hooks.example"])
    assert head.startswith("POST /a?b=c HTTP/1.1\r\n")
    assert f"Host: hooks.example:{port}\r\n" in head
    assert "X-Id: 7\r\n" in head
    assert "User-Agent: perdure\r\n" in head
    assert "Cookie" not in head


@pytest.mark.parametrize("status", [100, 199, 204, 302, 404, 500, 599])
async def test_a_post_answers_any_status(status):
    """What it means is the caller's affair; a redirect is not followed."""
    replies = (answer(status=f"{status} X", Location="http://127.0.0.1:1/"),)
    if status in (100, 199):  # only announces the answer that follows
        replies = (f"HTTP/1.1 {status} Wait\r\n\r\n".encode() + answer(status="201 X"),)
    async with serving(*replies) as server:
        got = await Egress(allow=LOOPBACK).post(f"http://127.0.0.1:{server.port}/", {}, b"{}")
    assert got == (201 if status in (100, 199) else status)
    assert len(server.asked) == 1


@pytest.mark.parametrize("reply", [flood, drip, answer(b"x", Content_Encoding="gzip"), answer(Content_Length="9")])
async def test_what_comes_with_the_answer_to_a_post_does_not_count(reply):
    """It may be huge, endless, damaged or cut off: the status has been said."""
    started = time.monotonic()
    async with serving(reply) as server:
        assert await Egress(allow=LOOPBACK).post(f"http://127.0.0.1:{server.port}/", {}, b"{}") == 200
    assert time.monotonic() - started < 3


async def test_a_post_is_made_once():
    """It may have been heard although no answer came, so that there is no second try as for a fetch."""
    async with serving(silence) as server:
        with pytest.raises(Unavailable, match=r"^127\.0\.0\.1 did not answer within 0\.2 seconds\.$"):
            await Egress(Limits(timeout=0.2), allow=LOOPBACK).post(f"http://127.0.0.1:{server.port}/", {}, b"{}")
    assert len(server.asked) == 1


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 99999 OK\r\n\r\n"])
async def test_a_broken_answer_to_a_post(reply):
    async with serving(reply) as server:
        with pytest.raises(Unavailable, match=r"^No answer came from 127\.0\.0\.1, or a broken one"):
            await Egress(allow=LOOPBACK).post(f"http://127.0.0.1:{server.port}/", {}, b"{}")


async def test_a_name_server_that_fails_or_sleeps_may_do_better_next_time():
    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(Unavailable, match=r"The host nowhere\.example cannot be found"):
        await Egress(resolver=resolver()).post("http://nowhere.example/", {}, b"{}")
    with pytest.raises(Unavailable, match="did not answer within"):
        await Egress(Limits(timeout=0.1), resolver=slow).post("http://slow.example/", {}, b"{}")


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["::ffff:127.0.0.1"], []])
async def test_a_post_to_the_inside_is_refused_for_good(addresses):
    with pytest.raises(Invalid, match=r"The host inside\.example is not on the open internet"):
        await Egress(resolver=resolver(**{"inside.example": addresses})).post("http://inside.example/", {}, b"{}")


async def test_a_post_goes_where_the_check_looked():
    """DNS rebinding, as for a fetch."""
    answers = [["127.0.0.2"], ["127.0.0.1"]]

    async def changing(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async with serving(answer(), host="127.0.0.2") as server:
        egress = Egress(allow=["127.0.0.2"], resolver=changing)
        assert await egress.post(f"http://rebind.example:{server.port}/", {}, b"{}") == 200
        with pytest.raises(Invalid, match="not on the open internet"):
            await egress.post(f"http://rebind.example:{server.port}/", {}, b"{}")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "must begin with http"),
        ("hooks.example/x", "must begin with http"),
        ("javascript:alert(1)", "must begin with http"),
        ("data:,x", "must begin with http"),
        ("http://", "names no host"),
        ("http://me:pw@hooks.example/", "user name or password"),
        ("http://hooks.example:0x50/", "not a URL"),
        ("http://hooks.example/\x00", "control characters"),
        ("http://hooks.example/" + "x" * 9000, "longer than 8192"),
        ("http://\ud800.example/", "control characters"),
        ("http://hooks.example/\ud800", "control characters"),
        ("http://2130706433/", "four decimal numbers"),
        ("http://127.0.0.1:8283/v1/agents/", "not on the open internet"),
        ("http://169.254.169.254/latest/meta-data", "not on the open internet"),
        ("https://[::1]/", "not on the open internet"),
        ("https://[::ffff:10.0.0.1]/", "not on the open internet"),
        ("http://localhost:3000/hook", "not on the open internet"),
        ("http://LOCALHOST./hook", "not on the open internet"),
        ("http://app.localhost/hook", "not on the open internet"),
    ],
)
def test_addresses_that_are_refused_before_anything_is_sent(url, words):
    with pytest.raises(Invalid, match=words):
        Egress().check_url(url)


def test_addresses_that_may_be_tried():
    """Names are not looked up: that is done when something is sent."""
    names = resolver()
    for url in ("https://hooks.example/a?b=c", "http://93.184.216.34:8080", "https://[2606:4700::1111]/", "http://nothere/"):
        Egress(resolver=names).check_url(url)
    for allowed in (["127.0.0.1"], ["127.0.0.0/8"], ["::1"], ["localhost"]):
        Egress(allow=allowed, resolver=names).check_url("http://localhost:3000/hook")
    assert names.asked == []
