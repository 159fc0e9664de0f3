"""Whatever is sent, cancelled, resumed and abandoned at once on one agent: the history stays valid, one run at a time.

Hypothesis chooses what happens in which order; the model speaks piece by piece, when the order of events lets it.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from acceptance.paced import HANDLE, Paced
from acceptance.rest import REQUESTS, Tasks, at_rest, tasks_of_the_server
from acceptance.stage import Frames, types_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from postgres import TestServer

from perdure import testing

pytestmark = pytest.mark.anyio

FORMS: dict[str, dict[str, Any]] = {
    "json": {},
    "steps": {"streaming": True},
    "tokens": {"streaming": True, "stream_tokens": True},
    "background": {"streaming": True, "stream_tokens": True, "background": True},
    "async": {},
}
BLOCKS = [{"label": "notes", "value": ""}]
PATIENCE = 20.0
"""Seconds until a story must have come to its end."""


# --- what happens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """A message is sent; it is not waited for."""

    form: str
    does: str
    on_busy: str


@dataclass(frozen=True)
class Cancel:
    """All runs are cancelled."""


@dataclass(frozen=True)
class Leave:
    """The reader of one of the requests hangs up."""

    which: int


@dataclass(frozen=True)
class Resume:
    """The stream of one of the background runs is read again from a number on."""

    which: int
    after: int


@dataclass(frozen=True)
class Speak:
    """The model may say so many pieces."""

    pieces: int


@dataclass(frozen=True)
class Wait:
    """The server has a moment to itself."""


Event = Send | Cancel | Leave | Resume | Speak | Wait
SENDS = st.builds(
    Send, st.sampled_from(list(FORMS)), st.sampled_from(["text", "tool", "fails"]),
    st.sampled_from(["reject", "enqueue", "enqueue", "interrupt"]),
)  # fmt: skip
RESUMES = st.builds(Resume, st.integers(0, 2), st.integers(0, 5))
EVENTS = st.lists(
    st.one_of(
        SENDS, SENDS, st.just(Cancel()), st.builds(Leave, st.integers(0, 3)),
        RESUMES, RESUMES, st.builds(Speak, st.integers(1, 3)), st.just(Wait()),
    ),
    min_size=4, max_size=16,
)  # fmt: skip


@dataclass
class Request:
    """One message that was sent, and what came back."""

    text: str
    form: str
    status: int = 0
    body: str = ""
    left: bool = False
    task: "asyncio.Task[None] | None" = None


@dataclass
class Reading:
    """One stream that was read again, and what it gave."""

    run_id: str
    after: int
    task: "asyncio.Task[tuple[int, str]]"


@dataclass
class Story:
    """One agent, and everything that is done to it."""

    doors: Sequence[aiohttp.ClientSession]
    """One for each server; requests go to one after the other."""
    model: Paced
    agent: str = ""
    requests: list[Request] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    cancels: "list[asyncio.Task[int]]" = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turns = itertools.cycle(self.doors)

    @property
    def http(self) -> aiohttp.ClientSession:
        """The next server."""
        return next(self._turns)

    @property
    def path(self) -> str:
        """Where messages go."""
        return f"/v1/agents/{self.agent}/messages"

    async def get(self, path: str) -> Any:
        """A list or a record."""
        async with self.http.get(path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def runs(self) -> list[Any]:
        """The agent's runs, oldest first. No two of them may be running."""
        found: list[Any] = await self.get(f"/v1/runs/?agent_id={self.agent}&order=asc&limit=1000")
        running = [run["id"] for run in found if run["status"] == "running"]
        assert len(running) <= 1, running
        return found

    async def happen(self, event: Event) -> None:
        """Have it happen."""
        if isinstance(event, Send):
            self.send(event)
        elif isinstance(event, Cancel):
            self.cancels.append(asyncio.create_task(self.cancel()))
        elif isinstance(event, Leave) and event.which < len(self.requests):
            self.leave(self.requests[event.which])
        elif isinstance(event, Resume):
            await self.resume(event)
        elif isinstance(event, Speak):
            for _ in range(event.pieces):
                self.model.step()
        elif isinstance(event, Wait):
            await asyncio.sleep(0.005)

    def send(self, event: Send) -> None:
        """Send a message."""
        request = Request(f"{len(self.requests)} {event.does}", event.form)
        body = {"input": request.text, "on_busy": event.on_busy, **FORMS[event.form]}
        request.task = asyncio.create_task(self.ask(request, body))
        self.requests.append(request)

    async def ask(self, request: Request, body: Any) -> None:
        """Read the whole answer."""
        path = self.path + ("/async" if request.form == "async" else "")
        async with self.http.post(path, json=body) as answer:
            request.status = answer.status
            async for chunk in answer.content.iter_any():
                request.body += chunk.decode()

    def leave(self, request: Request) -> None:
        """Hang up."""
        assert request.task
        if not request.task.done():
            request.left = True
            request.task.cancel()

    async def cancel(self) -> int:
        """Cancel all runs."""
        async with self.http.post(f"{self.path}/cancel") as answer:
            return answer.status

    async def resume(self, event: Resume) -> None:
        """Read the stream of a background run again."""
        runs = [run["id"] for run in await self.runs() if run["background"]]
        if event.which < len(runs):
            task = asyncio.create_task(self.read(runs[event.which], event.after))
            self.readings.append(Reading(runs[event.which], event.after, task))

    async def read(self, run_id: str, after: int) -> tuple[int, str]:
        """The status and the body of a resumed stream."""
        async with self.http.post(f"/v1/runs/{run_id}/stream", json={"starting_after": after}) as answer:
            return answer.status, await answer.text()

    async def come_to_an_end(self, before: Tasks) -> None:
        """Let the model finish whatever it is asked, and wait for everybody, also for requests whose sender left."""
        self.model.run_free()
        tasks = [request.task for request in self.requests if request.task]
        async with asyncio.timeout(PATIENCE):
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            assert set(await asyncio.gather(*self.cancels)) <= {200, 409}
            await asyncio.gather(*(reading.task for reading in self.readings))
            for _ in self.doors:
                await self.runs()  # whatever was sent before this has arrived by now
            await at_rest(before, REQUESTS, PATIENCE)
            while any(run["completed_at"] is None for run in await self.runs()):
                await asyncio.sleep(0.005)

    # --- what must hold ------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Everything that must hold when all is over."""
        assert self.model.faults == []
        runs = await self.runs()
        stored = (await self.get(f"{self.path}?limit=1000"))[1:]
        self.check_history(runs, stored)
        self.check_requests(runs, stored)
        await self.check_streams(runs)
        notes = (await self.get(f"/v1/agents/{self.agent}/core-memory/blocks/notes"))["value"].split("\n")
        noted = [message["content"] for message in stored if message["message_type"] == "user_message"]
        assert sorted(note for note in notes if note) == sorted(text for text in noted if text.endswith("tool"))

    def check_history(self, runs: Sequence[Any], stored: Sequence[Any]) -> None:
        """Run after run, each whole: its message, its call with its return, its answer; no half of a step."""
        expected: list[tuple[str, str]] = []
        for run_id in dict.fromkeys(message["run_id"] for message in stored):
            of_run = [message for message in stored if message["run_id"] == run_id]
            (run,) = [run for run in runs if run["id"] == run_id]
            asked = of_run[0]["content"]
            whole = ["user_message", "assistant_message"]
            if asked.endswith("tool"):
                whole[1:1] = ["tool_call_message", "tool_return_message"]
            if run["status"] != "completed":
                whole.remove("assistant_message")
            assert types_of(of_run) == whole, (asked, run["status"])
            if run["status"] == "completed":
                assert of_run[-1]["content"] == f"re: {asked}"
            expected += [(run_id, message["id"]) for message in of_run]
        assert [(message["run_id"], message["id"]) for message in stored] == expected, "runs are mixed"
        completed = {run["id"] for run in runs if run["status"] == "completed"}
        assert completed <= {run_id for run_id, _ in expected}

    def check_requests(self, runs: Sequence[Any], stored: Sequence[Any]) -> None:
        """Nothing that was refused is there, everything that was accepted is there at most once."""
        said = [message["content"] for message in stored if message["message_type"] == "user_message"]
        assert len(said) == len(set(said))
        refused = {request.text for request in self.requests if request.status == 409}
        assert refused.isdisjoint(said)
        assert len(runs) <= len(self.requests) - len(refused)
        for request in self.requests:
            failing = {504} if request.text.endswith("fails") and request.form == "json" else set()
            assert request.left or request.status in {200, 409} | failing, (request.status, request.body)

    async def check_streams(self, runs: Sequence[Any]) -> None:
        """Each stream ends once; what was read again is the same, from whatever number on."""
        whole = {run["id"]: (await self.read(run["id"], 0))[1] for run in runs if run["background"]}
        for request in self.requests:
            if request.status == 200 and "streaming" in FORMS[request.form] and not request.left:
                check_ends_once(request.body)
                if request.form == "background":
                    assert request.body in whole.values()
            elif request.form == "background" and request.status == 200:
                assert any(body.startswith(request.body) for body in whole.values())
        for body in whole.values():
            check_ends_once(body)
        for reading in self.readings:
            status, body = await reading.task
            frames = whole[reading.run_id].split("\n\n")[:-1]
            if reading.after > len(frames) and body:  # nobody has ever been there: the end, or nothing
                check_ends_once(body)
            else:
                assert (status, body) == (200, "".join(f"{frame}\n\n" for frame in frames[reading.after :]))


def check_ends_once(body: str) -> None:
    """Exactly one stop reason, and [DONE] at the end."""
    frames = Frames(body)
    assert (len(frames.of("stop_reason")), frames.done, body.count("[DONE]")) == (1, True, 1)


@dataclass(frozen=True)
class Servers:
    """Where they are, and their model."""

    urls: Sequence[str]
    model: Paced


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "two on postgresql"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[int, str | None]]:
    """How many servers, and on which database; None: an SQLite file."""
    if request.param == "sqlite":
        yield 1, None
        return
    server: TestServer = request.getfixturevalue("postgres")
    made = server.create()
    yield (2 if "two" in request.param else 1), made
    server.drop(made)


@pytest.fixture(scope="module")
async def servers(anyio_backend: str, place: tuple[int, str | None]) -> AsyncIterator[Servers]:
    """One server, or two on one database."""
    model, (count, url) = Paced(), place
    model.alone = count == 1
    async with contextlib.AsyncExitStack() as at_end:
        urls = []
        for _ in range(count):
            running = await at_end.enter_async_context(testing.server(providers=[model], database_url=url))
            urls.append(running.base_url)
            if count > 1:
                at_end.callback(asyncio.create_task(running.program.executor.watch.run()).cancel)
        yield Servers(urls, model)


@settings(
    max_examples=40, derandomize=True, database=None, deadline=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
@given(events=EVENTS)
async def test_any_interleaving(servers: Servers, events: list[Event]) -> None:
    """For any order of events everything above holds, and the next message is answered."""
    model = servers.model
    model.hold()
    async with contextlib.AsyncExitStack() as at_end:
        doors = []
        for url in servers.urls:
            session = aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0))
            doors.append(await at_end.enter_async_context(session))
        story = Story(doors, model)
        async with story.http.post("/v1/agents/", json={"model": HANDLE, "memory_blocks": BLOCKS}) as answer:
            story.agent = (await answer.json())["id"]
        before = tasks_of_the_server()
        for event in events:
            await story.happen(event)
            await asyncio.sleep(0)
        await story.come_to_an_end(before)
        await story.check()
        for _ in servers.urls:
            async with story.http.post(story.path, json={"input": "last text"}) as answer:
                assert (await answer.json())["messages"][-1]["content"] == "re: last text"
    assert model.faults == []
