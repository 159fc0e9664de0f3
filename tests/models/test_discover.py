"""Local model servers: found if they are there, and no time is lost if they are not."""

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
from hearing import hear
from twin import HELLO, Reply, Twin, body

from perdure.models.discover import probe_local
from perdure.models.openai import OpenAIProvider

pytestmark = pytest.mark.anyio


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port of this machine that is taken and where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def probe(*ports: int, taken: tuple[str, ...] = (), except_port: int | None = None) -> list[OpenAIProvider]:
    """What is found among these ports, as servers called s0, s1, …; within half a second."""
    began = time.monotonic()
    rows = [(f"s{n}", port, "vllm") for n, port in enumerate(ports)]
    found = await probe_local(taken, except_port=except_port, servers=rows)
    assert time.monotonic() - began < 0.5
    return found


async def test_finds_a_server_among_others(twin: Twin, dead_port: int, mute_port: int) -> None:
    """A port without a listener and a listener without a word cost neither the server nor the time."""
    twin.play(body({"data": [{"id": "m"}]}), HELLO)
    assert twin.server.port is not None
    (found,) = await probe(dead_port, twin.server.port, mute_port)
    assert (found.name, found.provider_type) == ("s1", "vllm")
    assert (await hear(found)).text == "Hello"
    await found.close()


@pytest.mark.parametrize(
    "reply",
    [
        body(b"<html>Hi</html>", 200, {"content-type": "text/html"}), body({"hello": "world"}), body({"data": []}),
        body({"detail": "Not Found"}, 404), body(b"", 500), Reply(end="hang"), Reply(end="drop"), body(b"[" * 10**5),
        Reply(status=302, headers={"location": "http://example.com/"}),
    ],
    ids=["page", "other json", "no models", "404", "500", "hangs", "drops", "deep", "redirect"],
)  # fmt: skip
async def test_what_is_no_model_server_is_ignored(reply: Reply, twin: Twin) -> None:
    """Many things listen on these ports; none of them is an error, and nothing is left open."""
    twin.play(reply)
    assert twin.server.port is not None
    assert await probe(twin.server.port) == []


async def test_names_and_ports_to_leave_alone(twin: Twin) -> None:
    """A configured provider is not looked for, and our own server does not find itself."""
    twin.play(body({"data": [{"id": "m"}]}))
    port = twin.server.port
    assert port is not None
    assert await probe(port, taken=("s0",)) == []
    assert await probe(port, except_port=port) == []
    assert twin.asked == []


async def test_nothing_to_look_for() -> None:
    """No servers, no time."""
    assert await probe() == []


async def test_cancelling_leaves_nothing_open(mute_port: int) -> None:
    """A start that is broken off while it looks gives everything back."""
    looking = asyncio.create_task(probe_local(servers=[("s", mute_port, "vllm")]))
    await asyncio.sleep(0.05)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
