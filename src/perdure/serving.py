"""The server process from socket to signal: bind, serve, stop without losing what is under way.

Knows the application only as ASGI and the runs only by their `drain`. Above is `main`, which makes both.
"""

import asyncio
import contextlib
import errno
import ipaddress
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import structlog
import uvicorn

from perdure.settings import SettingsError

Application = Callable[..., Any]
"""An ASGI application."""
Drain = Callable[[float], Awaitable[None]]
"""Lets runs finish for so many seconds, then ends the rest; returns when all are recorded."""

BACKLOG = 2048
KEEP_ALIVE = 75
"""Seconds. Longer than clients and proxies keep an idle connection, so that they close it and never lose a request."""
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
LINGER = 2
"""Seconds that the last answers have to reach their readers once every run has ended."""

AT_ONCE = 64
"""Connections taken in one round, so that those who are served need not wait long either."""
BREATHER = 1.0
"""Seconds without taking any when the system has run out of files or memory."""
OUT_OF_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
log = structlog.get_logger()


def is_loopback(host: str) -> bool:
    """Whether every address of `host` belongs to this machine alone. Raises SettingsError if it has none."""
    return all(ipaddress.ip_address(str(found[4][0])).is_loopback for found in _addresses(host, 0))


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket on `host` and `port` (0: a free one) that does not listen yet. Raises SettingsError."""
    family, kind, protocol, _, address = _addresses(host, port)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Listening at once makes a second server fail here, where there are words for it; the kernel keeps
        # connections waiting until the server is ready.
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise SettingsError(_refusal(host, port, error)) from None
    bound.setblocking(False)
    return bound


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(f"The host {host!r} cannot be found ({error}). Use 127.0.0.1, or set `host`.") from None
    return found  # type: ignore[return-value]  # addresses of IPv6 have four parts; all begin with host and port


def _refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken, perhaps by another Perdure. Stop that program, or choose another port "
            "with --port or PERDURE_PORT (0 takes a free one)."
        )
    if error.errno == errno.EACCES:
        return f"This user may not listen on port {port}. Choose a port above 1023 with --port or PERDURE_PORT."
    return f"Cannot listen on {host} port {port}: {error.strerror}. Set `host` to an address of this machine."


def url_of(bound: socket.socket) -> str:
    """Where a client on this machine reaches the socket."""
    host, port = bound.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://{f'[{address}]' if address.version == 6 else address}:{port}"


class Door:
    """Takes connections off one listening socket, all that wait at a time. `greet` makes the protocol for each.

    An event loop's own server takes one per round of the loop (libuv since 1.45, and with it uvloop). When every round
    is busy with a thousand streams, newcomers would wait for seconds (decision 0008).
    """

    def __init__(self, bound: socket.socket, greet: Callable[[], asyncio.Protocol], breather: float = BREATHER):
        self._bound, self._greet, self._breather = bound, greet, breather
        self._loop = asyncio.get_running_loop()
        self._entering: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self.is_open = False

    def open(self) -> None:
        """Take connections from now on."""
        self._pause, self.is_open = None, True
        self._loop.add_reader(self._bound.fileno(), self._take)

    def close(self) -> None:
        """Take no more; the socket stays the caller's."""
        if self._pause:
            self._pause.cancel()
        elif self.is_open:
            self._loop.remove_reader(self._bound.fileno())
        self.is_open = False

    def _take(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _address = self._bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in OUT_OF_MEANS:
                    raise
                log.error("cannot take connections for a moment", reason=error.strerror)
                self._loop.remove_reader(self._bound.fileno())
                self._pause = self._loop.call_later(self._breather, self.open)
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            entering = self._loop.create_task(self._enter(connection))
            self._entering.add(entering)
            entering.add_done_callback(self._entering.discard)

    async def _enter(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._greet, connection)
        except OSError:  # it has gone again
            connection.close()


class Server(uvicorn.Server):
    """Uvicorn, on a socket of ours, with runs drained before connections are cut. Signals are left to the caller."""

    def __init__(self, app: Application, drain: Drain, drain_seconds: float):
        super().__init__(
            uvicorn.Config(
                app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False, backlog=BACKLOG,
                server_header=False, timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(drain_seconds) + LINGER,
            )
        )  # fmt: skip
        self._drain, self._drain_seconds = drain, drain_seconds
        self.ready = asyncio.Event()
        self._doors: list[Door] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer; `ready` is set then."""
        await super().startup([])
        self._doors = [Door(bound, self._protocol) for bound in sockets or ()]
        for door in self._doors:
            door.open()
        self.ready.set()

    def _protocol(self) -> asyncio.Protocol:
        """What serves one connection; made as uvicorn makes it."""
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )  # fmt: skip
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, let runs end and their answers go out, then close."""
        for door in self._doors:
            door.close()
        draining = asyncio.ensure_future(self._drain(self._drain_seconds))
        await super().shutdown(sockets)
        if self.force_exit:
            await self._drain(0)
        await draining
        await self._drain(0)  # a request that was already being read may have begun a run meanwhile

    def stop(self) -> None:
        """Ask the server to end. A second time: without waiting."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own handlers end the process before the caller could close its database: none are set."""
        yield


@contextlib.contextmanager
def stopped_by_signals(server: Server) -> Iterator[None]:
    """Ctrl-C, `kill` and the terminal's end stop the server in order; a second signal does not wait for runs.

    A signal that whoever started us has us ignore, as `nohup` does, stays ignored.
    """

    def told(_signal: int, _frame: FrameType | None) -> None:
        server.stop()

    heeded = [name for name in STOPPING if signal.getsignal(name) is not signal.SIG_IGN]
    before = {name: signal.signal(name, told) for name in heeded}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
