"""What the run log costs: the same streams as they are, without the log, and resumable (`background`).

In two forms: 300 tokens without delay, 16 streams at a time; and 300 streams at 20 tokens/s. The client counts a marker
in a bare protocol, so that it is not what is measured.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from processes import cpu_seconds
from servers import MODEL, NO_LOG, Server

MARKER = b'"assistant_message"'
AT_ONCE, LONG = 16, 300
HELD, PACED = 300, 120


class Stream(asyncio.Protocol):
    """One stream read to its end; `stamps` has the time of each read with tokens in it."""

    def __init__(self, request: bytes):
        self._request, self._tail, self.tokens = request, b"", 0
        self.stamps: list[float] = []
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.began = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        data = self._tail + data
        self._tail = data[-(len(MARKER) - 1) :]
        if found := data.count(MARKER):
            self.tokens += found
            self.stamps.append(time.perf_counter())

    def connection_lost(self, _: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def log_cost(server: Server, seconds: float) -> list[dict[str, Any]]:
    """Rows of both forms, in the foreground and, where there is a log, in the background."""
    rows = []
    agents = await _agents(server, HELD)
    for background in (False, True)[: 1 if server.variant == NO_LOG else 2]:
        label = server.label + (", background" if background else "")
        for case, work in (("no delay", _flat_out), ("20 tokens/s", _held)):
            before = {name: cpu_seconds(pid) for name, pid in server.pids.items()}
            streams, wanted = await work(server, agents, seconds, background)
            row = {f"cpu_us_per_token_{name}": (cpu_seconds(server.pids[name]) - before[name]) * 1e6 / _sum(streams)
                   for name in before}  # fmt: skip
            rows.append({"target": label, "w": "log", "case": case, **row, **_told(streams, wanted)})
    return rows


async def _agents(server: Server, number: int) -> list[str]:
    async with aiohttp.ClientSession(server.base) as http:
        async def new(_: int) -> str:
            async with http.post("/v1/agents/", json={"name": "bench", "model": MODEL}) as answer:
                return str((await answer.json())["id"])

        agents = [agent for _ in range(0, number, 10) for agent in await asyncio.gather(*map(new, range(10)))]
    for at in range(0, number, 10):  # a first turn reads the context; what is compared shall not differ in that
        await asyncio.gather(*(_stream(server, agent, {"n": 1}, False) for agent in agents[at : at + 10]))
    return agents


async def _flat_out(
    server: Server, agents: Sequence[str], seconds: float, background: bool
) -> tuple[list[Stream], int]:
    streams, numbers, until = list[Stream](), count(), time.perf_counter() + seconds

    async def worker() -> None:
        while time.perf_counter() < until:
            agent = agents[next(numbers) % len(agents)]
            streams.append(await _stream(server, agent, {"n": LONG}, background))

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return streams, LONG


async def _held(server: Server, agents: Sequence[str], _: float, background: bool) -> tuple[list[Stream], int]:
    async def one(number: int) -> Stream:
        await asyncio.sleep(number / HELD)
        return await _stream(server, agents[number], {"n": PACED, "token_ms": 50}, background)

    return list(await asyncio.gather(*map(one, range(HELD)))), PACED


async def _stream(server: Server, agent: str, script: dict[str, Any], background: bool) -> Stream:
    at = urlsplit(server.base)
    body = json.dumps({"messages": [{"role": "user", "content": f"@@{json.dumps([script])}"}], "streaming": True,
                       "stream_tokens": True, "background": background}).encode()  # fmt: skip
    head = (f"POST /v1/agents/{agent}/messages HTTP/1.1\r\nhost: {at.netloc}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n")  # fmt: skip
    loop = asyncio.get_running_loop()
    transport, stream = await loop.create_connection(lambda: Stream(head.encode() + body), at.hostname, at.port)
    try:
        async with asyncio.timeout(60):
            await stream.over
    except TimeoutError:
        pass  # it counts as failed: its tokens are not all there
    finally:
        transport.abort()
    return stream


def _sum(streams: Sequence[Stream]) -> int:
    return sum(stream.tokens for stream in streams) or 1


def _told(streams: Sequence[Stream], wanted: int) -> dict[str, Any]:
    first = [(stream.stamps[0] - stream.began) * 1e3 for stream in streams if stream.stamps]
    gaps = [(b - a) * 1e3 for stream in streams for a, b in zip(stream.stamps, stream.stamps[1:], strict=False)]
    return {
        "tokens": _sum(streams), "failed": sum(stream.tokens != wanted for stream in streams),
        "ttft_p50_ms": statistics.median(first or [0.0]), "ttft_p99_ms": _percentile(first, 99),
        "gap_p50_ms": statistics.median(gaps or [0.0]), "gap_p99_ms": _percentile(gaps, 99),
    }  # fmt: skip


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)] if values else 0.0
