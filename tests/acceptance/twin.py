"""An HTTP twin of a Chat Completions server: says what it is told to, word by word if need be, and fails on demand.

A turn is a delta of the dialect such as {"content": "Hello."}; or `HANG`; or a `Speech`, whose words the story gives
out one by one; or a `Reply`, any bytes with any status and any end.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from models.twin import Reply, delta

HANG = None
"""A turn that begins and never ends."""


class Speech:
    """A turn that says what the story tells it to, when it tells it to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        """Set once it was asked for; nothing has been answered then, not even headers."""
        self.left = asyncio.Event()
        """Set once who asked has hung up before the end."""
        self._words: asyncio.Queue[bytes] = asyncio.Queue()

    def say(self, *words: str) -> None:
        """Say these words, a fragment each."""
        for word in words:
            self.send(delta(content=word))

    def send(self, event: dict[str, Any]) -> None:
        """Say one event of the dialect."""
        self._words.put_nowait(b"data: %b\n\n" % json.dumps(event).encode())

    def end(self) -> None:
        """Say that this was all."""
        self.send(delta("stop"))
        self._words.put_nowait(b"data: [DONE]\n\n")
        self._words.put_nowait(b"")

    async def give(self, request: web.Request) -> web.StreamResponse:
        """Answer a request with it."""
        self.begun.set()
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        try:
            words = await self._words.get()
            await answer.prepare(request)
            while words:
                await answer.write(words)
                words = await self._words.get()
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return answer


Turn = dict[str, Any] | None | Speech | Reply


class Twin:
    """What it will say, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.rung: list[str] = []
        """What was posted to `/bell`: the effects of tools on the world outside."""
        self.bell_answers = asyncio.Event()
        """Until it is set, whoever rings waits."""
        self.rings = asyncio.Event()
        """Set once somebody has rung."""
        self._turns: deque[Turn] = deque()
        self._silent = asyncio.Event()
        self._over = asyncio.Event()

    @property
    def bell_url(self) -> str:
        """Where the bell is."""
        return self.url.removesuffix("/v1") + "/bell"

    @property
    def left(self) -> int:
        """How many turns were not played."""
        return len(self._turns)

    def play(self, *turns: Turn) -> None:
        """Add turns."""
        self._turns.extend(turns)

    def clear(self) -> None:
        """Forget a story that is over."""
        for kept in (self._turns, self.asked, self.rung):
            kept.clear()
        self.rings.clear()
        self.bell_answers.clear()

    async def fell_silent(self) -> None:
        """Wait until it has begun a turn that never ends."""
        await self._silent.wait()
        self._silent.clear()

    def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A turn that calls a tool."""
        function = {"name": name, "arguments": json.dumps(arguments)}
        return {"tool_calls": [{"index": 0, "id": f"call_{len(self._turns)}", "function": function}]}

    async def models(self, _: web.Request) -> web.Response:
        """`GET /v1/models`."""
        return web.json_response({"data": [{"id": "twin", "max_model_len": 32_000}]})

    async def bell(self, request: web.Request) -> web.Response:
        """`POST /bell`."""
        self.rung.append(await request.text())
        self.rings.set()
        await self.bell_answers.wait()
        return web.Response(text="Somebody came.")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`, always as a stream."""
        self.asked.append(await request.json())
        turn = self._turns.popleft()
        if isinstance(turn, Speech):
            return await turn.give(request)
        if isinstance(turn, Reply):
            return await self._reply(turn, request)
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await self._send(answer, {"delta": turn if turn is not None else {"content": "Wait"}})
        if turn is None:
            self._silent.set()
            await self._over.wait()
            return answer
        await self._send(answer, {"delta": {}, "finish_reason": "stop"})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _reply(self, turn: Reply, request: web.Request) -> web.StreamResponse:
        """The bytes of a reply, and its end."""
        assert request.transport is not None
        if turn.end == "drop":
            request.transport.abort()
            return web.Response()
        if turn.end == "mute":
            await self._over.wait()
        answer = web.StreamResponse(status=turn.status, headers=turn.headers)
        await answer.prepare(request)
        for chunk in turn.chunks:
            await answer.write(chunk)
        if turn.end == "hang":
            await self._over.wait()
        if turn.end == "cut" and request.transport is not None:
            for _ in range(10):  # what was written shall be read first: whoever reads shares this loop
                await asyncio.sleep(0)
            request.transport.abort()
        return answer

    async def _send(self, answer: web.StreamResponse, choice: dict[str, Any]) -> None:
        await answer.write(b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode())

    def stop(self) -> None:
        """Let go of whoever waits."""
        self._over.set()
        self.bell_answers.set()


@asynccontextmanager
async def twin() -> AsyncIterator[Twin]:
    """A twin on a free port."""
    made = Twin()
    app = web.Application(client_max_size=2**28)
    app.router.add_get("/v1/models", made.models)
    app.router.add_post("/v1/chat/completions", made.completions)
    app.router.add_post("/bell", made.bell)
    runner = web.AppRunner(app, shutdown_timeout=1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield made
    finally:
        made.stop()
        await runner.cleanup()
