"""A server that has a tool with an effect on the world outside: `ring` rings a bell elsewhere and waits for somebody.

The tools of this version change nothing but the database, within the step's transaction; what becomes of a call that
reaches outside, and of the time it takes, shows only with such a tool. All else is the real program, joined as
`perdure.program` does. As a program of its own it is told the database, the model's URL and the bell's:

    python -m acceptance.bell sqlite:///x.db http://127.0.0.1:1234/v1 http://127.0.0.1:1234/bell

and prints its URL once it listens.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import structlog

from perdure.api.app import create_app
from perdure.api.deps import Deps
from perdure.api.sse import renderings
from perdure.domain.clock import SystemClock
from perdure.domain.messages import ToolCall, ToolReturn
from perdure.domain.ports import Outcome, Provider, Scene
from perdure.domain.records import Tool
from perdure.models.catalog import Catalog
from perdure.models.openai import OpenAIProvider
from perdure.program import offer
from perdure.runs.executor import Executor
from perdure.serving import Server, bind, url_of
from perdure.store import open_store
from perdure.tools.box import ServerToolbox
from perdure.tools.egress import Egress

HANDLE = "openai/twin"
TOOL_ID = "tool-00000000-0000-4000-8000-000000000be1"


class Bell(ServerToolbox):
    """The server's toolbox, and `ring`."""

    def __init__(self, url: str):
        self._url = url

    def builtin(self) -> Sequence[Tool]:
        """All tools that are offered."""
        known = super().builtin()
        arguments = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
        schema = {"name": "ring", "description": "Ring.", "parameters": arguments}
        ring = msgspec.structs.replace(known[0], id=TOOL_ID, name="ring", json_schema=schema, description="Ring.")
        return [*known, ring]

    async def call(self, tool: Tool, call: ToolCall, arguments: dict[str, Any], scene: Scene) -> Outcome:
        """Run one call."""
        if tool.name != "ring":
            return await super().call(tool, call, arguments, scene)
        async with aiohttp.request("POST", self._url, data=arguments["word"]) as answer:
            return Outcome(result=ToolReturn(call.id, await answer.text(), "success", tool.name))


@dataclass(frozen=True)
class Rung:
    """A server with a bell: what a `Stage` needs of it."""

    base_url: str
    executor: Executor
    handle: str = HANDLE


@contextlib.asynccontextmanager
async def served(
    database_url: str, providers: Sequence[Provider], bell: str, *, watching: bool, synchronous: str = "FULL"
) -> AsyncIterator[Rung]:
    """The server on a free port. `watching`: look after the leases of other processes' runs."""
    clock, toolbox = SystemClock(), Bell(bell)
    async with contextlib.AsyncExitStack() as at_end:
        models = Catalog(providers)
        at_end.push_async_callback(models.close)
        store = await open_store(database_url, synchronous=synchronous, pool_size=4, clock=clock)
        at_end.push_async_callback(store.close)
        await offer(store.tools, toolbox.builtin())
        executor = Executor(store, models, toolbox, clock, renderings(clock))
        at_end.push_async_callback(executor.drain, 0)
        await executor.recover()
        if watching and not store.exclusive:
            at_end.callback(asyncio.create_task(executor.watch.run()).cancel)
        deps = Deps(
            store=store, models=models, toolbox=toolbox, executor=executor, clock=clock,
            fetch_image=Egress().fetch_image, check_callback=lambda _: None,
        )  # fmt: skip
        bound = at_end.enter_context(contextlib.closing(bind("127.0.0.1", 0)))
        server = Server(create_app(deps), executor.drain, drain_seconds=0)
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        await server.ready.wait()
        try:
            yield Rung(url_of(bound), executor)
        finally:
            server.stop()
            await serving


async def main(database_url: str, model_url: str, bell: str) -> None:
    """Serve until somebody ends the process. Nothing is logged: who started it reads the URL only."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    async with served(database_url, [OpenAIProvider("openai", model_url, None)], bell, watching=True) as rung:
        sys.stdout.write(f"{rung.base_url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
