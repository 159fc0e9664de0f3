"""The pure-ASGI shell around the routes: what holds for every request, whatever it asks for.

Paths (both slash forms, `/latest`), the server's password, the acting user, the bounds and the form of bodies, and the
last answer when something unforeseen breaks (api-surface §5.2, §5.4). It knows no route and no resource.
"""

import hmac
from collections.abc import Collection

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.api import body
from perdure.api.errors import response_for
from perdure.domain.errors import Invalid, PerdureError, Unauthorized, Unprocessable
from perdure.domain.ids import pattern

log = structlog.get_logger()

MAX_BODY = 32 * 1024 * 1024
OPEN_PATHS = ("/v1/health", "/v1/ready")
OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")
WITH_BODY = ("POST", "PUT", "PATCH")
CHANGING = (*WITH_BODY, "DELETE")
EXPECTED = (PerdureError, HTTPException, RequestValidationError)
_USER = pattern("user")


class Shell:
    """Wraps the application. `roots`: paths whose own form ends in a slash; `hosts`: names beside those of loopback."""

    def __init__(
        self, app: ASGIApp, roots: Collection[str], password: str | None, max_body: int = MAX_BODY,
        hosts: Collection[str] = (),
    ):
        self._app, self._roots, self._max_body = app, frozenset(roots), max_body
        self._hosts = frozenset(name.lower() for name in hosts)
        self._password = password.encode() if password else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answered = Answered(send)
        try:
            await self._serve(scope, receive, answered)
        except Exception as error:  # the last resort: whatever breaks, the client gets an answer and we a traceback
            if not isinstance(error, EXPECTED):
                log.error("request failed", method=scope["method"], path=scope["path"], exc_info=error)
            if answered.begun and not answered.ended:
                raise  # only a cut connection tells the client that the rest is missing
            if not answered.begun:
                await response_for(error)(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        path = self._canonical(scope)
        self._check_host(path, headers)
        self._authorize(path, headers)
        self._check_origin(scope["method"], headers)
        _check_user(headers)
        scope = {**scope, "path": path, "raw_path": path.encode()}
        if scope["method"] in WITH_BODY:
            given = await self._read(headers, receive)
            if given:
                body.check_type(headers)
                scope["headers"] = _as_json(scope)
                given = body.clean(given)
            receive = Replay(given, receive)
        await self._app(scope, receive, send)

    def _canonical(self, scope: Scope) -> str:
        """The path as the routes know it."""
        path: str = scope["path"]
        if "\0" in path or b"%00" in scope.get("query_string", b""):
            raise Unprocessable("The address holds a NUL character. Leave it out.")
        if path == "/latest" or path.startswith("/latest/"):
            path = "/v1" + path.removeprefix("/latest")
        bare = path.rstrip("/") or "/"
        return f"{bare}/" if f"{bare}/" in self._roots else bare

    def _check_host(self, path: str, headers: Headers) -> None:
        """Without a password, answer only under names that are ours.

        A page of another site can point a name of its own at this machine (DNS rebinding) and would then read the
        answers; what it cannot do is send another name than its own.
        """
        if self._password is not None or path.rstrip("/") in OPEN_PATHS:
            return
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name and name not in self._hosts and name not in OWN_NAMES:
            raise HTTPException(
                403,
                f"This server is not known as {name!r}. Add that name to the setting `allowed_hosts`, or set a "
                "password (`server_password`).",
            )

    def _check_origin(self, method: str, headers: Headers) -> None:
        """Without a password, take changes from no page of another site: browsers say where a request comes from."""
        if self._password is None and method in CHANGING and headers.get("sec-fetch-site") == "cross-site":
            raise HTTPException(
                403,
                "A page of another site may not change anything here. Set a password (`server_password`) if it shall.",
            )

    def _authorize(self, path: str, headers: Headers) -> None:
        """Raises Unauthorized unless the request shows the password, where there is one."""
        if self._password is None or path.rstrip("/") in OPEN_PATHS:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        shown = bearer if scheme.lower() == "bearer" else ""
        bare = headers.get("x-bare-password", "").removeprefix("password ")
        right = [hmac.compare_digest(word.encode("latin-1"), self._password) for word in (shown.strip(), bare)]
        if not any(right):
            raise Unauthorized("Unauthorized")

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. Raises 413 once it is, or says it is, longer than the limit."""
        stated = headers.get("content-length", "")
        if stated.isdigit() and int(stated) > self._max_body:
            raise self._too_large()
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HTTPException(499, "The client went away before its request was complete.")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body:
                raise self._too_large()
            chunks.append(chunk)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _too_large(self) -> HTTPException:
        limit = f"{self._max_body / 1024 / 1024:g} MiB"
        return HTTPException(413, f"The body is larger than {limit}. Send less at once.", {"connection": "close"})


class Answered:
    """A `send` that remembers how far the answer is."""

    def __init__(self, send: Send):
        self._send, self.begun, self.ended = send, False, False

    async def __call__(self, message: Message) -> None:
        """Pass the message on."""
        self.begun = True
        self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)


class Replay:
    """A `receive` that gives the body once, then whatever else the connection says."""

    def __init__(self, given: bytes, receive: Receive):
        self._given: bytes | None = given
        self._receive = receive

    async def __call__(self) -> Message:
        """The next message."""
        if self._given is None:
            return await self._receive()
        given, self._given = self._given, None
        return {"type": "http.request", "body": given, "more_body": False}


def _check_user(headers: Headers) -> None:
    user = headers.get("user_id")
    if user and not _USER.match(user):
        raise Invalid("The header user_id is no user id. Send 'user-' and a UUID, or leave it out.")


def _as_json(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers with the body's type stated, for a client that left it out."""
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    if not any(name == b"content-type" for name, _ in headers):
        headers.append((b"content-type", b"application/json"))
    return headers
