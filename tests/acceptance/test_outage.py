"""The database goes away in the middle of a run: readers are told, and the agent is free once it is back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from perdure.agent.profile import new_agent
from perdure.api.sse import renderings
from perdure.domain.clock import SystemClock
from perdure.domain.errors import Unavailable
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text
from perdure.domain.ports import Page, RunQuery, Store
from perdure.models.catalog import Catalog
from perdure.runs.executor import Executor
from perdure.runs.order import Order
from perdure.store import SqlStore, open_store
from perdure.testing import Say, ScriptedModel, ScriptedProvider, record
from perdure.tools.box import ServerToolbox

pytestmark = pytest.mark.anyio

AWAY = Unavailable("The database is away.")


@dataclass
class Shaky:
    """Runs of a real store, some of whose writes fail so many times."""

    runs: Any
    failing: dict[str, int] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.runs, name)
        if name not in self.failing:
            return real

        async def shaky(*arguments: Any) -> Any:
            if self.failing[name] > 0:
                self.failing[name] -= 1
                raise AWAY
            return await real(*arguments)

        return shaky


class Shaken:
    """A real store with shaky runs."""

    def __init__(self, store: SqlStore, failing: dict[str, int]):
        self._store, self.runs = store, Shaky(store.runs, failing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    """A real store."""
    opened = await open_store(f"sqlite:///{tmp_path / 'perdure.db'}", synchronous="NORMAL")
    yield opened
    await opened.close()


async def ran(store: SqlStore, failing: dict[str, int], *turns: Say) -> tuple[Executor, str, Any]:
    """A run on a new agent while some writes fail; its executor, its agent's id and its closing event."""
    provider = ScriptedProvider(ScriptedModel(turns))
    clock = SystemClock()
    made = new_agent({}, provider.model.info, now=clock.now())
    agent = made.agent.id
    await store.agents.create(made.agent, blocks=(), block_ids=(), tool_ids=(), messages=made.messages)
    shaken = cast(Store, Shaken(store, failing))
    again = timedelta(milliseconds=20)
    executor = Executor(shaken, Catalog([provider]), ServerToolbox(), clock, renderings(clock), again=again)
    async with asyncio.timeout(5):
        return executor, agent, (await record(executor, order(agent, "hi"))).ended


def order(agent: str, text: str) -> Order:
    """A message to an agent."""
    said = Message(id=new_id("message"), role="user", created_at=SystemClock().now(), content=(Text(text),))
    return Order(agent, [said], b"{}")


async def free(store: SqlStore, agent: str) -> Any:
    """The agent's last run, once it no longer holds the context."""
    query = RunQuery(agent_ids=(agent,))
    async with asyncio.timeout(5):
        while (run := (await store.runs.find(query, Page(limit=1)))[0]).completed_at is None:
            await asyncio.sleep(0.005)
    return run


async def test_a_step_that_cannot_be_saved(store: SqlStore) -> None:
    """The run fails with the database's words; nothing is stored but what was asked."""
    executor, agent, ended = await ran(store, {"commit": 1}, Say("Hello."), Say("Hello again."))
    assert (ended.stop_reason, ended.error) == ("error", AWAY)
    run = await free(store, agent)
    assert (run.status, run.metadata["rejected_input"]) == ("failed", ["hi"])
    assert (await record(executor, order(agent, "hi"))).ended.stop_reason == "end_turn"
    await executor.drain(1)


async def test_an_end_that_cannot_be_recorded(store: SqlStore) -> None:
    """Readers are told at once; the end is recorded as soon as the database is back, and the agent is free again."""
    executor, agent, ended = await ran(store, {"commit": 1, "end": 2}, Say("Hello."), Say("Hello again."))
    assert (ended.stop_reason, ended.error) == ("error", AWAY)
    run = await free(store, agent)
    assert (run.status, run.stop_reason) == ("failed", "error")
    assert (await record(executor, order(agent, "hi"))).ended.stop_reason == "end_turn"
    await executor.drain(1)
