"""Somebody who wants to be called back: a real HTTP server on the loopback that keeps what it was told."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
KEY = b"0123456789abcdef01234567"

Answer = int | Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    def is_signed(self, key: bytes = KEY) -> bool:
        """Whether the signature is right, worked out without our own code."""
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        mac = base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
        return self.headers["webhook-signature"] == f"v1,{mac}"


class Receiver:
    """Gives one answer after another, the last one for ever."""

    def __init__(self, *answers: Answer):
        self.answers, self.calls, self.port = list(answers or (200,)), list[Call](), 0
        self._came = asyncio.Condition()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Keep a call and answer it."""
        reply = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        async with self._came:
            self.calls.append(Call(request.path_qs, dict(request.headers), await request.read()))
            self._came.notify_all()
        return web.Response(status=reply) if isinstance(reply, int) else await reply(request)

    async def heard(self, count: int = 1) -> list[Call]:
        """The calls, once there are so many."""
        async with self._came, asyncio.timeout(20):
            await self._came.wait_for(lambda: len(self.calls) >= count)
        return self.calls


@asynccontextmanager
async def receiving(*answers: Answer, port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    receiver, app = Receiver(*answers), web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()
