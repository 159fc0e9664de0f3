"""A cancel that comes between the saving of a run and its beginning."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from acceptance.paced import INFO, Paced

from perdure.agent.profile import new_agent
from perdure.api.sse import renderings
from perdure.domain.clock import SystemClock
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text
from perdure.models.catalog import Catalog
from perdure.runs.executor import Executor
from perdure.runs.ongoing import Ongoing
from perdure.runs.order import Order
from perdure.store import open_store
from perdure.tools.box import ServerToolbox

pytestmark = pytest.mark.anyio


class Late:
    """The runs of a store, whose acceptance is told only when the story lets it."""

    def __init__(self, runs: Any):
        self._runs, self.accepted, self.may_tell = runs, asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runs, name)

    async def accept(self, *arguments: Any, **options: Any) -> Any:
        """Accept a run."""
        found = await self._runs.accept(*arguments, **options)
        self.accepted.set()
        await self.may_tell.wait()
        return found


@dataclass
class LateStore:
    """A store with such runs."""

    store: Any
    runs: Late

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


async def test_a_cancel_that_meets_the_acceptance(anyio_backend: str, tmp_path: Path) -> None:
    """A run that is cancelled as soon as it was saved does not ask the model, or is stopped at once."""
    model, clock = Paced(), SystemClock()
    store = await open_store(f"sqlite:///{tmp_path / 'perdure.db'}", synchronous="NORMAL")
    made = new_agent({}, INFO, now=clock.now())
    await store.agents.create(made.agent, blocks=(), block_ids=(), tool_ids=(), messages=made.messages)
    late = Late(store.runs)
    executor = Executor(LateStore(store, late), Catalog([model]), ServerToolbox(), clock, renderings(clock))
    said = Message(id=new_id("message"), role="user", created_at=clock.now(), content=(Text("hi"),))
    starting = asyncio.create_task(executor.start(Order(made.agent.id, [said], b"{}")))
    await late.accepted.wait()
    cancelling = asyncio.create_task(executor.cancel(made.agent.id))
    await asyncio.wait([cancelling], timeout=0.1)  # whether it answers now or waits for the beginning
    late.may_tell.set()
    started = await starting
    assert isinstance(started, Ongoing)
    async with asyncio.timeout(1):
        assert await cancelling == {started.run.id: "cancelled"}
        await started.over.wait()
    assert ((await store.runs.get(started.run.id)).status, model.speaking) == ("cancelled", 0)
    await executor.drain(0)
    await store.close()
