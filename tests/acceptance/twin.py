"""An HTTP twin of a Chat Completions server: says what it is told to, and can fall silent in the middle."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

HANG = None
"""A turn that begins and never ends."""


class Twin:
    """What it will say, and what it was asked. A turn is a delta of the dialect, such as {"content": "Hello."}."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self._turns: deque[dict[str, Any] | None] = deque()
        self._silent = asyncio.Event()
        self._over = asyncio.Event()

    def play(self, *turns: dict[str, Any] | None) -> None:
        """Add turns."""
        self._turns.extend(turns)

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

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`, always as a stream."""
        self.asked.append(await request.json())
        turn = self._turns.popleft()
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

    async def _send(self, answer: web.StreamResponse, choice: dict[str, Any]) -> None:
        await answer.write(b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode())

    def stop(self) -> None:
        """Let go of whoever waits."""
        self._over.set()


@asynccontextmanager
async def twin() -> AsyncIterator[Twin]:
    """A twin on a free port."""
    made = Twin()
    app = web.Application()
    app.router.add_get("/v1/models", made.models)
    app.router.add_post("/v1/chat/completions", made.completions)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield made
    finally:
        made.stop()
        await runner.cleanup()
