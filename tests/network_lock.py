"""No test leaves this machine: every connection and every look-up of a foreign name is refused, loudly.

The lock is an audit hook, which sees all sockets of the interpreter however they were made. Code that does its own
networking in C (libpq, uvloop) is not seen; tests use neither to go anywhere but loopback.
"""

import ipaddress
import socket
import sys
from typing import Any

attempts: list[str] = []
"""What the running test tried to reach outside; an entry here fails it, whatever the code made of the error."""


class OutsideNetwork(RuntimeError):
    """Raised in place of a connection that would leave this machine. No OSError, so that no retry swallows it."""


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: sees every socket of the interpreter, however it was made, and lets only loopback pass."""
    if event in ("socket.connect", "socket.sendto"):
        _refuse_unless_local(arguments[1][0] if isinstance(arguments[1], tuple) else None)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        _refuse_look_up(arguments[0])


def _refuse_unless_local(host: str | None) -> None:
    """`None` stands for a Unix socket."""
    if host not in (None, "", "localhost") and not _literal_is_loopback(str(host)):
        _refuse(f"connect to {host}")


def _refuse_look_up(host: str | bytes | None) -> None:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name is None or name in ("", "localhost", socket.gethostname()) or _is_literal(name):
        return
    if name.endswith(".invalid"):  # never exists (RFC 6761): answered here, since a resolver would ask the network
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    _refuse(f"look up {name}")


def _refuse(what: str) -> None:
    attempts.append(what)
    raise OutsideNetwork(f"The test tried to {what}. Tests reach 127.0.0.1 only: use a fake at the seam.")


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _literal_is_loopback(host: str) -> bool:
    if not _is_literal(host):
        return False
    address = ipaddress.ip_address(host.partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def close() -> None:
    """Turn the key; it cannot be turned back in this process."""
    sys.addaudithook(guard)
