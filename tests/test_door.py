"""Taking connections: many at once, and none while the system has run out of files (decision 0008)."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator

import pytest

from perdure.serving import Door, bind

pytestmark = pytest.mark.anyio


class Greeting(asyncio.Protocol):
    """Says hello and hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    """A listening socket."""
    with bind("127.0.0.1", 0) as made:
        yield made


async def heard(bound: socket.socket) -> bytes:
    """What a caller is told."""
    reader, writer = await asyncio.open_connection(*bound.getsockname())
    told = await reader.read()
    writer.close()
    await writer.wait_closed()
    return told


async def test_many_at_once(bound: socket.socket) -> None:
    """More than are taken in one round are all served."""
    door = Door(bound, Greeting)
    door.open()
    assert await asyncio.gather(*(heard(bound) for _ in range(200))) == [b"hello"] * 200
    door.close()


async def test_a_closed_door(bound: socket.socket) -> None:
    """Nobody is let in any more; callers wait in the kernel, and a door opened again serves them."""
    door = Door(bound, Greeting)
    door.open()
    door.close()
    waiting = asyncio.create_task(heard(bound))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    door.open()
    assert await waiting == b"hello"
    door.close()


class Exhausted:
    """A listening socket of a process that has run out of files, for so many calls."""

    def __init__(self, bound: socket.socket, calls: int):
        self._bound, self.calls = bound, calls

    def fileno(self) -> int:
        return self._bound.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        if self.calls:
            self.calls -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._bound.accept()


async def test_out_of_files(bound: socket.socket) -> None:
    """It takes a breather instead of spinning, and goes on."""
    short = Exhausted(bound, 1)
    door = Door(short, Greeting, breather=0.05)  # type: ignore[arg-type]
    door.open()
    assert await heard(bound) == b"hello"
    assert short.calls == 0
    door.close()
