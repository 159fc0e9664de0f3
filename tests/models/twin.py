"""A model server's twin: a real HTTP server on a free port of this machine that plays replies written by hand.

It knows nothing of models; it sends the bytes it was given and keeps what it was asked.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

SSE = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """Bytes to send, and how it ends: `end` (properly), `hang` (nothing more, line open), `cut` (the line drops)."""

    chunks: Iterable[bytes] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: SSE)
    end: str = "end"
    """Or `late` (properly, a moment after the last chunk), or before anything was sent: `drop`, `mute` (line open)."""


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    port: int
    """Where it came from: requests over one connection have the same."""

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)


class Twin:
    """Plays its replies in order, the last one for ever."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.left = asyncio.Event()
        """Set once a client has closed its connection in the middle of an answer."""
        self._replies: list[Reply] = []
        app = web.Application(client_max_size=2**28)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.server = TestServer(app, host="127.0.0.1")

    @property
    def base_url(self) -> str:
        """Where the API begins."""
        return f"http://127.0.0.1:{self.server.port}/v1"

    def play(self, *replies: Reply) -> None:
        """Play these from now on."""
        self._replies = list(replies)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        port = request.transport.get_extra_info("peername")[1]
        self.asked.append(Asked(request.method, request.path, request.headers, await request.read(), port))
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if reply.end == "drop":
            request.transport.abort()
            return web.Response()
        try:
            return await self._send(reply, request)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise

    async def _send(self, reply: Reply, request: web.Request) -> web.StreamResponse:
        if reply.end == "mute":
            await asyncio.Event().wait()
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        await response.prepare(request)
        for chunk in reply.chunks:
            await response.write(chunk)
            await asyncio.sleep(0)
        if reply.end == "hang":
            await asyncio.Event().wait()
        if reply.end == "late":
            await asyncio.sleep(0.01)
        if reply.end == "cut" and request.transport is not None:
            request.transport.abort()
        return response


def events(*data: Any, done: bool = True) -> list[bytes]:
    """Server-sent events, one chunk each: of text as it is, of anything else as JSON; `[DONE]` at the end."""
    shown = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in data]
    return [f"data: {text}\n\n".encode() for text in [*shown, *(["[DONE]"] if done else [])]]


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk of an answer as OpenAI sends it."""
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish}],
    }  # fmt: skip


def counted(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    """The chunk with the usage, which has no choices."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [],
        "usage": usage,
    }  # fmt: skip


def call(index: int | None = 0, id: str | None = None, name: str | None = None, arguments: Any = None) -> Any:
    """A fragment of a tool call; what is None is left out."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    known = {key: value for key, value in (("index", index), ("id", id)) if value is not None}
    return known | ({"type": "function"} if id else {}) | ({"function": function} if function else {})


HELLO = Reply(events(delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"), delta("stop")))


def streamed(*data: Any, done: bool = True) -> Reply:
    """A proper stream of these events."""
    return Reply(events(*data, done=done))


def body(value: Any, status: int = 200, headers: Mapping[str, str] = JSON) -> Reply:
    """An answer in one piece: JSON, or bytes as they are."""
    return Reply([value if isinstance(value, bytes) else json.dumps(value).encode()], status, headers)


def refusal(status: int, message: str = "no", headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
    """An error as OpenAI words it."""
    return body({"error": {"message": message, **fields}}, status, {**JSON, **(headers or {})})
