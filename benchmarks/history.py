"""W4: the cost of one more turn, and of a page of messages, with a long history in or out of the context.

Driven through the public API, since the shared harness grows a history by writing into the retired server's tables.
"""

import statistics
import time
from typing import Any

import aiohttp
from processes import cpu_seconds
from servers import MODEL, Server

CASES = ((10, True), (1000, True), (10_000, True), (10_000, False))
"""Stored messages, and whether they are in the context."""
TIMES = 20


async def history(server: Server) -> list[dict[str, Any]]:
    rows = []
    async with aiohttp.ClientSession(server.base) as http:
        for stored, in_context in CASES:
            agent = await _agent(http)
            await _grow(http, agent, stored, in_context)
            turns = await _turns(http, agent, server.pids)
            pages = await _pages(http, agent, server.pids)
            case = f"history={stored}" + ("" if in_context else " (not in context)")
            rows.append({"target": server.label, "w": "W4", "case": case, **turns, **pages})
    return rows


async def _agent(http: aiohttp.ClientSession) -> str:
    body = {"name": "bench", "model": MODEL, "context_window_limit": 2_000_000, "memory_blocks": [
        {"label": "human", "value": "name: Bob"}, {"label": "persona", "value": "I am helpful"}]}  # fmt: skip
    async with http.post("/v1/agents/", json=body) as answer:
        return str((await answer.json())["id"])


async def _grow(http: aiohttp.ClientSession, agent: str, count: int, in_context: bool) -> None:
    """Store `count` messages in one request; take them out of the context again by a reset, if so asked."""
    filler = "message number {} about nothing in particular, just filler words"
    messages = [{"role": ("user", "assistant")[i % 2], "content": filler.format(i)} for i in range(count)]
    async with http.post(f"/v1/agents/{agent}/messages", json={"messages": [*messages, _user("ok")]}) as answer:
        assert answer.status == 200, await answer.text()
    if not in_context:
        async with http.patch(f"/v1/agents/{agent}/reset-messages", json={}) as answer:
            assert answer.status == 200, await answer.text()


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def _turns(http: aiohttp.ClientSession, agent: str, pids: dict[str, int]) -> dict[str, float]:
    async def turn(number: int) -> None:
        body = {"messages": [_user(f"ping {number}")]}
        async with http.post(f"/v1/agents/{agent}/messages", json=body) as answer:
            assert f"ping {number}" in await answer.text()

    await turn(0)
    cpu, times = await _timed(turn, pids)
    return {"turn_ms": statistics.median(times), "cpu_ms_per_turn_server": cpu}


async def _pages(http: aiohttp.ClientSession, agent: str, pids: dict[str, int]) -> dict[str, float]:
    async def page(_: int) -> None:
        async with http.get(f"/v1/agents/{agent}/messages?limit=100") as answer:
            await answer.read()

    cpu, times = await _timed(page, pids)
    return {"page_ms": statistics.median(times), "page_cpu_ms": cpu}


async def _timed(action: Any, pids: dict[str, int]) -> tuple[float, list[float]]:
    before, times = sum(map(cpu_seconds, pids.values())), []
    for number in range(1, TIMES + 1):
        started = time.perf_counter()
        await action(number)
        times.append((time.perf_counter() - started) * 1e3)
    return (sum(map(cpu_seconds, pids.values())) - before) * 1e3 / TIMES, times
