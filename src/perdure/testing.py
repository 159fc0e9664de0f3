"""The public test kit: a whole server in the test's own process, with a model that plays a script.

    async with server(Say("Hello.")) as running:
        client = AsyncLetta(base_url=running.base_url)
        agent = await client.agents.create(model=running.handle)
        ...

It is the real program on a real loopback socket; only the model is made up. Nothing of it outlives the block.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr

from perdure.domain.clock import Clock
from perdure.domain.events import Event, RunEnded, TextDelta
from perdure.domain.ports import Provider, Store
from perdure.models.scripted import Call, Reply, Say, ScriptedModel, ScriptedProvider
from perdure.program import Program, assembled
from perdure.runs.executor import Executor
from perdure.runs.ongoing import Ongoing
from perdure.runs.order import Order
from perdure.serving import Server, bind, url_of
from perdure.settings import Settings

__all__ = ["Call", "Recorder", "Running", "Say", "ScriptedModel", "ScriptedProvider", "record", "server"]

START_SECONDS = 20
E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class Running:
    """A server under test."""

    base_url: str
    provider: ScriptedProvider
    program: Program

    @property
    def model(self) -> ScriptedModel:
        """The scripted model: `play` adds turns, `requests` has what it was asked."""
        return self.provider.model

    @property
    def handle(self) -> str:
        """The handle to create agents with."""
        return self.model.info.handle

    @property
    def store(self) -> Store:
        """The store behind the API, to look at what was really saved."""
        return self.program.store


@contextlib.asynccontextmanager
async def server(
    *turns: Say, script: Reply | None = None, providers: Sequence[Provider] = (), database_url: str | None = None,
    password: str | None = None, clock: Clock | None = None, **settings: Any,
) -> AsyncIterator[Running]:  # fmt: skip
    """A server on a free port with the scripted model (`turns`, or a `script` function) and `providers` beside it.

    Without `database_url` it has an SQLite file of its own, less careful with the disk than a real one. `settings` are
    further fields of Settings; the environment and settings files are not read. At the end open runs are cancelled.
    """
    provider = ScriptedProvider(ScriptedModel(script or turns))
    with tempfile.TemporaryDirectory(prefix="perdure-") as home:
        usual: dict[str, Any] = {"sqlite_synchronous": "NORMAL", "postgres_pool_size": 4}
        chosen = Settings(
            data_dir=Path(home), database_url=_secret(database_url), server_password=_secret(password),
            **(usual | settings),
        )  # fmt: skip
        # Nobody else works on a test's database; looking after them would only disturb what the test measures.
        async with (
            assembled(chosen, [provider, *providers], clock, watching=False) as program,
            _listening(program) as base_url,
        ):
            yield Running(base_url, provider, program)


@contextlib.asynccontextmanager
async def _listening(program: Program) -> AsyncIterator[str]:
    with contextlib.closing(bind("127.0.0.1", 0)) as bound:
        url, http = url_of(bound), Server(program.app, program.executor.drain, drain_seconds=0)
        served = asyncio.create_task(http.serve(sockets=[bound]))
        async with asyncio.timeout(START_SECONDS):
            await http.ready.wait()
        try:
            yield url
        finally:
            http.stop()
            await served


def _secret(text: str | None) -> SecretStr | None:
    return None if text is None else SecretStr(text)


class Recorder:
    """Keeps events in order. Is itself an `emit`, so that a loop can be run without a server."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Keep one more."""
        self.events.append(event)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def of(self, kind: type[E]) -> list[E]:
        """Those of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def text(self) -> str:
        """All words of the answer, as they were streamed."""
        return "".join(delta.text for delta in self.of(TextDelta))

    @property
    def ended(self) -> RunEnded:
        """The closing event. Raises AssertionError unless there is exactly one and it is the last."""
        assert isinstance(self.events[-1], RunEnded), f"the last event is {self.events[-1]!r}"
        assert len(self.of(RunEnded)) == 1, "a run ends once"
        return self.events[-1]


async def record(executor: Executor, order: Order) -> Recorder:
    """All events of a run, once it has ended. Raises what `executor.start` does."""
    recorder = Recorder()
    ongoing = await executor.start(order, recorder)
    assert isinstance(ongoing, Ongoing), "the same order has been carried out before"
    await ongoing.over.wait()
    return recorder
