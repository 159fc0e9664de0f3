"""The public test kit: what it promises to those who test their own agents with it."""

import time

import pytest
from letta_client import AsyncLetta

from perdure.testing import Running, Say, server

pytestmark = pytest.mark.anyio


async def test_time() -> None:
    for _ in range(5):
        t = time.perf_counter()
        async with server(Say("Hello.")) as running:
            t1 = time.perf_counter()
            async with AsyncLetta(base_url=running.base_url) as client:
                agent = await client.agents.create(model=running.handle)
                reply = await client.agents.messages.create(agent.id, input="Hi")
                assert reply.messages[-1].content == "Hello."
            t2 = time.perf_counter()
        print(t1 - t, t2 - t1, time.perf_counter() - t2)
