"""The lock itself: what a forgotten fake would do must fail loudly, and this machine must stay reachable."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import network_lock
import pytest

TEST_NET = "192.0.2.1"
"""An address reserved for documentation: nobody is there, even if the lock were open."""


@pytest.fixture
def caught() -> Iterator[list[str]]:
    """The attempts of this test, which then do not fail it."""
    yield network_lock.attempts
    network_lock.attempts.clear()


def test_a_connection_to_the_outside_is_refused_and_remembered(caught: list[str]) -> None:
    """Code that hides the error cannot hide the attempt."""
    with socket.socket() as outward, contextlib.suppress(network_lock.OutsideNetwork):
        outward.settimeout(0.1)
        outward.connect((TEST_NET, 80))
    assert caught == ["connect to 192.0.2.1"]


def test_a_datagram_to_the_outside_is_refused(caught: list[str]) -> None:
    """Also without a connection."""
    with socket.socket(type=socket.SOCK_DGRAM) as outward, pytest.raises(network_lock.OutsideNetwork):
        outward.sendto(b"?", (TEST_NET, 53))
    assert caught == ["connect to 192.0.2.1"]


@pytest.mark.anyio
async def test_asyncio_is_locked_in_as_well(caught: list[str]) -> None:
    """The event loop's own way to connect, and its look-up in a thread."""
    with pytest.raises(network_lock.OutsideNetwork):
        await asyncio.open_connection(TEST_NET, 80)
    with pytest.raises(network_lock.OutsideNetwork):
        await asyncio.open_connection("example.com", 80)
    assert caught == ["connect to 192.0.2.1", "look up example.com"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "::ffff:127.0.0.1"])
def test_this_machine_is_reachable(host: str, caught: list[str]) -> None:
    """A closed port of loopback answers with a refusal, not with ours."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, 9), timeout=1)
    assert caught == []


def test_a_name_that_never_exists_is_not_looked_up(caught: list[str]) -> None:
    """Names under .invalid are for testing failed look-ups; the answer comes without asking anyone."""
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("nothing.invalid", 80)
    assert caught == []
