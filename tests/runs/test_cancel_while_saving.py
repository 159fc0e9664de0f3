"""A cancel that arrives while a step is on its way to the database: answer, run and history say the same."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from api.served import Client, made_deps, serving

from perdure.api.app import create_app
from perdure.api.deps import Deps
from perdure.domain.ports import Committed, Page, RunQuery, StepCommit
from perdure.domain.records import Run

pytestmark = pytest.mark.anyio


class SlowRuns:
    """The runs of a real store whose commits wait at a gate."""

    def __init__(self, runs: Any):
        self._runs = runs
        self.arrived, self.gate, self.looked = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runs, name)

    async def find(self, query: RunQuery, page: Page) -> list[Run]:
        found: list[Run] = await self._runs.find(query, page)
        self.looked.set()
        return found

    async def commit(self, commit: StepCommit) -> Committed:
        self.arrived.set()
        await self.gate.wait()
        committed: Committed = await self._runs.commit(commit)
        return committed


@pytest.fixture
async def deps(tmp_path: Path) -> AsyncIterator[Deps]:
    async with made_deps(tmp_path) as made:
        made.store.runs = SlowRuns(made.store.runs)  # type: ignore[misc]
        yield made


async def test_the_last_step_was_on_its_way(deps: Deps) -> None:
    """It is saved, so the run is completed and the sender gets the answer; the cancel is a no-op."""
    slow: Any = deps.store.runs
    async with serving(create_app(deps)) as base, aiohttp.ClientSession() as session:
        client = Client(base, session)
        path = f"/v1/agents/{(await client.agent())['id']}/messages"
        sending = asyncio.create_task(client.post(path, {"input": "hi"}))
        await slow.arrived.wait()
        cancelling = asyncio.create_task(client.post(f"{path}/cancel", {}))
        await slow.looked.wait()
        slow.gate.set()
        answer, cancelled = await sending, await cancelling
        (run_id,) = cancelled.json
        run = await client.get(f"/v1/runs/{run_id}")
        listed = await client.get(path)
    assert (answer["stop_reason"]["stop_reason"], run["status"]) == ("end_turn", "completed")
    assert [m["content"] for m in answer["messages"]] == ["Hello."]
    assert [m["message_type"] for m in listed.json] == ["system_message", "user_message", "assistant_message"]
