"""A server process that is killed with runs at every stage, and started again on the same database.

One story for each database: many agents are brought to different stages of a run, then the process gets SIGKILL, and
another begins. Within five seconds every run has ended with a reason; whatever a reader has seen is replayed byte for
byte, then comes the end; no tool has worked twice; every agent answers again.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from acceptance.stage import Frames, types_of
from acceptance.twin import Speech, Twin, twin
from models.twin import delta
from postgres import TestServer

import perdure

pytestmark = pytest.mark.anyio

SOON = 5.0
"""Seconds after the restart within which every run must have ended (issue B)."""
TESTS = Path(__file__).parents[1]
ENVIRONMENT = {
    "PATH": os.environ["PATH"], "PYTHONPATH": f"{Path(perdure.__file__).parents[1]}:{TESTS}", "NO_PROXY": "127.0.0.1",
}  # fmt: skip
REASON = "The server stopped while this run was under way. Send the message again."
BACKGROUND = {"streaming": True, "stream_tokens": True, "background": True}
FOREGROUND = {"streaming": True, "stream_tokens": True}
CUT_SHORT = ["stop_reason", "error_message"]
WHOLE = ["stop_reason", "usage_statistics"]


class Process:
    """A server process, and a client of it."""

    def __init__(self, process: asyncio.subprocess.Process, http: aiohttp.ClientSession):
        self._process, self.http = process, http
        self.since = time.monotonic()
        """When it began to listen."""

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer to a request that succeeds."""
        async with self.http.request(method, path, json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def status(self, method: str, path: str) -> int:
        """The status of an answer."""
        async with self.http.request(method, path) as answer:
            return answer.status

    async def read(self, method: str, run_id: str, after: int) -> bytes:
        """A run's stream from a number on, to its end."""
        path, timeout = f"/v1/runs/{run_id}/stream", aiohttp.ClientTimeout(total=20)
        if method == "GET":
            request = self.http.get(path, params={"starting_after": after}, timeout=timeout)
        else:
            request = self.http.post(path, json={"starting_after": after}, timeout=timeout)
        async with request as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()

    async def history(self, agent: str) -> list[Any]:
        """The agent's messages but the system message."""
        return list(await self.call("GET", f"/v1/agents/{agent}/messages"))[1:]

    async def kill(self) -> None:
        """End the process as a power failure would."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


@contextlib.asynccontextmanager
async def started(database: str, model: Twin) -> AsyncIterator[Process]:
    """A server on this database with the twin as its model."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "acceptance.bell", database, model.url, model.bell_url,
        env=ENVIRONMENT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    try:
        async with asyncio.timeout(20):
            url = (await process.stdout.readline()).decode().strip()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, connector=connector) as http:
            running = Process(process, http)
            yield running
            await running.kill()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Reader:
    """Reads an answer for as long as the server lives."""

    def __init__(self, process: Process, path: str, body: Any):
        self.seen = b""
        """What came, byte for byte; the last frame may be in pieces."""
        self._more = asyncio.Event()
        self.task = asyncio.create_task(self._read(process, path, body))

    async def _read(self, process: Process, path: str, body: Any) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            async with process.http.post(path, json=body) as answer:
                async for chunk in answer.content.iter_any():
                    self.seen += chunk
                    self._more.set()

    async def until(self, words: bytes) -> None:
        """Wait until these bytes came."""
        async with asyncio.timeout(10):
            while words not in self.seen:
                self._more.clear()
                await self._more.wait()

    @property
    def count(self) -> int:
        """How many whole frames were seen: the number of the last."""
        return self.seen.count(b"\n\n")


@dataclass
class Part:
    """One agent's part in the story, and how its run stood when the server was killed."""

    agent: str
    said: str
    reader: Reader
    run_id: str = ""
    resumed: dict[tuple[str, int], "asyncio.Task[bytes]"] = field(default_factory=dict)
    """Streams that were resumed at once after the restart, by method and number."""


class Story:
    """Brings agents to stages, one after another: the twin's turns are played in the order of the requests."""

    def __init__(self, process: Process, model: Twin):
        self.process, self.model = process, model
        self.parts: dict[str, Part] = {}
        self._feeding: set[asyncio.Task[None]] = set()

    async def send(self, stage: str, *turns: Any, agent: str = "", said: str = "hi", **options: Any) -> Part:
        """A new agent, or this one, that is sent a message; its model will say these turns."""
        if not agent:
            made = await self.process.call("POST", "/v1/agents/", {"model": "openai/twin", "tools": ["ring"]})
            agent = made["id"]
        self.model.play(*turns)
        path = f"/v1/agents/{agent}/messages{options.pop('form', '')}"
        part = Part(agent, said, Reader(self.process, path, {"input": said, **options}))
        self.parts[stage] = part
        return part

    async def before_the_first_token(self) -> None:
        """The model has been asked and says nothing."""
        speech = Speech()
        part = await self.send("before the first token", speech, **BACKGROUND)
        await part.reader.until(b"\n\n")
        await speech.begun.wait()

    async def between_tokens(self) -> None:
        """Two words have been said, and read."""
        speech = Speech()
        speech.say("Hel", "lo")
        part = await self.send("between tokens", speech, **BACKGROUND)
        await part.reader.until(b'"content":"lo"}\n\n')

    async def during_a_tool(self) -> None:
        """The tool has had its effect, and its result is still to come."""
        part = await self.send("during a tool", self.model.call("ring", {"word": "ding"}), **BACKGROUND)
        await part.reader.until(b"tool_call_message")
        await self.model.rings.wait()

    async def between_two_model_calls(self) -> None:
        """The step with the tool is saved; the model has been asked again."""
        speech = Speech()
        self.model.bell_answers.set()
        part = await self.send(
            "between two model calls", self.model.call("ring", {"word": "dong"}), speech, **BACKGROUND
        )
        await part.reader.until(b"tool_return_message")
        await speech.begun.wait()
        self.model.bell_answers.clear()
        self.model.rings.clear()

    async def in_the_foreground(self) -> None:
        """A stream that cannot be resumed."""
        speech = Speech()
        speech.say("Hel", "lo")
        part = await self.send("in the foreground", speech, **FOREGROUND)
        await part.reader.until(b'"content":"lo"}\n\n')

    async def without_a_stream(self) -> None:
        """A request that waits for its answer."""
        speech = Speech()
        await self.send("without a stream", speech)
        await speech.begun.wait()

    async def sent_and_left(self) -> None:
        """A run that nobody reads (messages/async)."""
        speech = Speech()
        part = await self.send("sent and left", speech, form="/async")
        await part.reader.task
        await speech.begun.wait()

    async def in_line(self) -> None:
        """A run that waits for one that is killed in the middle."""
        first = self.parts["between tokens"].agent
        part = await self.send("in line", agent=first, said="me too", on_busy="enqueue", **BACKGROUND)
        await part.reader.until(b"\n\n")
        part.run_id = json.loads(part.reader.seen[6 : part.reader.seen.index(b"\n\n")])["run_id"]

    async def in_full_flow(self) -> None:
        """Words come as fast as they can be written until the very end."""
        speech = Speech()
        part = await self.send("in full flow", speech, **BACKGROUND)

        async def flow() -> None:
            for number in range(100_000):
                speech.send(delta(content=f"{number} "))
                await asyncio.sleep(0)

        task = asyncio.create_task(flow())
        self._feeding.add(task)
        task.add_done_callback(self._feeding.discard)
        await part.reader.until(b'"content":"50 "}\n\n')

    async def just_ended(self) -> None:
        """The last frame has just been read."""
        part = await self.send("just ended", {"content": "Hello."}, **BACKGROUND)
        await part.reader.until(b"data: [DONE]\n\n")

    async def about_to_end(self) -> None:
        """The model says its last word at the moment of the kill: nobody knows how far that comes."""
        speech = Speech()
        speech.say("Hello.")
        part = await self.send("about to end", speech, **BACKGROUND)
        await part.reader.until(b'"content":"Hello."}\n\n')
        speech.end()

    async def tell(self) -> None:
        """All stages, and the kill."""
        await self.before_the_first_token()
        await self.between_tokens()
        await self.between_two_model_calls()
        await self.during_a_tool()
        await self.in_the_foreground()
        await self.without_a_stream()
        await self.sent_and_left()
        for part in self.parts.values():
            part.run_id = await self.only_run(part)
        await self.in_line()
        await self.in_full_flow()
        await self.about_to_end()
        await self.just_ended()
        await self.process.kill()
        for task in list(self._feeding):
            task.cancel()
        for part in self.parts.values():
            await part.reader.task

    async def only_run(self, part: Part) -> str:
        """The id of the agent's run."""
        (run,) = await self.process.call("GET", f"/v1/runs/?agent_id={part.agent}")
        run_id: str = run["id"]
        return run_id


@dataclass
class After:
    """The server after the restart, and what is known from before."""

    process: Process
    model: Twin
    parts: dict[str, Part]
    ended_after: dict[str, float]
    """Seconds from the restart until the run of a stage was seen to have ended."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database of this file's own."""
    if request.param == "sqlite":
        path: Path = tmp_path_factory.mktemp("killed") / "perdure.db"
        yield f"sqlite:///{path}"
        return
    server: TestServer = request.getfixturevalue("postgres")
    made = server.create()
    yield made
    server.drop(made)


@pytest.fixture(scope="module")
async def after(anyio_backend: str, database: str) -> AsyncIterator[After]:
    """The story up to the restart; readers come back at once, before the runs have been looked after."""
    async with twin() as model:
        async with started(database, model) as first:
            story = Story(first, model)
            await story.tell()
        model.play({"content": "Now you."})  # of the runs that were open, only the one in line asks the model again
        async with started(database, model) as second:
            for part in story.parts.values():
                part.run_id = part.run_id or await Story(second, model).only_run(part)
            resume(second, story.parts)
            yield After(second, model, story.parts, await endings(second, story.parts))
            await asyncio.gather(*(task for part in story.parts.values() for task in part.resumed.values()))


def resume(process: Process, parts: dict[str, Part]) -> None:
    """Have all readers come back, by POST and by GET, from the beginning and from where they were."""
    for part in parts.values():
        if b'"seq_id":1,' in part.reader.seen:
            for method in ("POST", "GET"):
                for number in {0, part.reader.count}:
                    reading = asyncio.create_task(process.read(method, part.run_id, number))
                    part.resumed[method, number] = reading


async def endings(process: Process, parts: dict[str, Part]) -> dict[str, float]:
    """When each run was seen to have ended."""
    found: dict[str, float] = {}
    while len(found) < len(parts) and time.monotonic() < process.since + 2 * SOON:
        for stage in parts.keys() - found.keys():
            if (await process.call("GET", f"/v1/runs/{parts[stage].run_id}"))["completed_at"]:
                found[stage] = time.monotonic() - process.since
        await asyncio.sleep(0.05)
    return found


INTERRUPTED = [
    "before the first token", "between tokens", "during a tool", "between two model calls", "in the foreground",
    "without a stream", "sent and left", "in full flow",
]  # fmt: skip
RESUMED = ["before the first token", "between tokens", "during a tool", "between two model calls", "in full flow"]
TOUCHED = ["just ended", "about to end"]
HISTORY = {
    "between tokens": ["user_message", "assistant_message"],  # of the run that stood behind it in line
    "between two model calls": ["user_message", "tool_call_message", "tool_return_message"],
}
"""What is stored of an interrupted run: the steps before, otherwise nothing."""
FRAMES = {
    "before the first token": ["ping"],
    "between tokens": ["ping", "assistant_message", "assistant_message"],
    "during a tool": ["ping", "tool_call_message"],
    "between two model calls": ["ping", "tool_call_message", "tool_return_message"],
}


@pytest.mark.parametrize("stage", [*INTERRUPTED, *TOUCHED, "in line"])
async def test_every_run_ends_soon(after: After, stage: str) -> None:
    """Within five seconds of the restart no run is open any more."""
    assert after.ended_after[stage] < SOON


@pytest.mark.parametrize("stage", INTERRUPTED)
async def test_with_a_reason(after: After, stage: str) -> None:
    """The run has failed, says why, and what was asked of it."""
    part = after.parts[stage]
    run = await after.process.call("GET", f"/v1/runs/{part.run_id}")
    assert (run["status"], run["stop_reason"]) == ("failed", "error")
    assert run["metadata"]["error"]["message"] == REASON
    assert run["metadata"]["input"] == ["hi"]


@pytest.mark.parametrize("stage", RESUMED)
async def test_readers_come_back(after: After, stage: str) -> None:
    """By POST and GET, from the beginning and from the last frame seen: all that was seen, then exactly one end."""
    part = after.parts[stage]
    whole = await part.resumed["POST", 0]
    assert part.reader.count > 0
    assert whole.startswith(part.reader.seen)
    seen_frames = part.reader.seen[: part.reader.seen.rindex(b"\n\n") + 2]
    for (_, number), task in part.resumed.items():
        assert await task == (whole if number == 0 else whole[len(seen_frames) :])
    frames = Frames(whole.decode())
    assert len(frames.of("stop_reason")) == 1
    assert (frames.types[-2:], frames.names, frames.done) == (CUT_SHORT, ["error"], True)
    assert frames.data[-2] == {"message_type": "stop_reason", "stop_reason": "error"}
    assert (frames.data[-1]["error_type"], frames.data[-1]["message"]) == ("internal_error", REASON)
    assert frames.types[:-2] == FRAMES.get(stage, frames.types[:-2])
    numbers = [frame["seq_id"] for frame in frames.data[:-2]]
    assert numbers == [*range(1, len(frames.data) - 1)]
    assert frames.data[-1]["seq_id"] == len(frames.data)


@pytest.mark.parametrize("stage", [stage for stage in RESUMED if stage in FRAMES])
async def test_from_any_number_on(after: After, stage: str) -> None:
    """The end of a killed run was never written, and yet can be resumed in its middle: nobody sees a frame twice."""
    part = after.parts[stage]
    frames = [frame + b"\n\n" for frame in (await part.resumed["POST", 0]).split(b"\n\n")[:-1]]
    for number in range(len(frames) + 2):
        rest = await after.process.read("GET", part.run_id, number)
        assert rest == b"".join(frames[number:]), number


async def test_the_flow_has_no_gaps(after: After) -> None:
    """Of words that came as fast as possible none is missing, none is twice."""
    frames = Frames((await after.parts["in full flow"].resumed["POST", 0]).decode())
    words = [frame["content"] for frame in frames.of("assistant_message")]
    assert words == [f"{number} " for number in range(len(words))]
    assert len(words) > 50


@pytest.mark.parametrize("stage", TOUCHED)
async def test_a_run_at_its_end(after: After, stage: str) -> None:
    """Killed around its last frame: the run has completed with its answer stored, or failed without; both are told."""
    part = after.parts[stage]
    run = await after.process.call("GET", f"/v1/runs/{part.run_id}")
    whole = await part.resumed["GET", 0]
    assert whole.startswith(part.reader.seen)
    assert await part.resumed["POST", part.reader.count] == whole[len(part.reader.seen) :]
    frames = Frames(whole.decode())
    assert (len(frames.of("stop_reason")), frames.done) == (1, True)
    stored = [message["content"] for message in await after.process.history(part.agent)]
    if stage == "just ended" or run["status"] == "completed":
        assert (run["status"], run["stop_reason"], stored) == ("completed", "end_turn", ["hi", "Hello."])
        assert (frames.types, frames.data[-2]["stop_reason"]) == (["ping", "assistant_message", *WHOLE], "end_turn")
    else:
        assert (run["status"], run["stop_reason"], stored) == ("failed", "error", [])
        assert (frames.types, frames.data[-2]["stop_reason"]) == (["ping", "assistant_message", *CUT_SHORT], "error")


async def test_a_run_in_line(after: After) -> None:
    """A run that had not begun is not lost: it is carried out after the restart, and its stream goes on."""
    part = after.parts["in line"]
    run = await after.process.call("GET", f"/v1/runs/{part.run_id}")
    assert (run["status"], run["stop_reason"]) == ("completed", "end_turn")
    whole = await part.resumed["POST", 0]
    assert whole.startswith(part.reader.seen)
    assert await part.resumed["GET", 1] == whole[len(part.reader.seen) :]
    frames = Frames(whole.decode())
    assert (frames.types, frames.done) == (["ping", "assistant_message", *WHOLE], True)
    assert [frame["seq_id"] for frame in frames.data[:2]] == [1, 2]
    stored = [message["content"] for message in (await after.process.history(part.agent))[:2]]
    assert stored == ["me too", "Now you."]


@pytest.mark.parametrize("stage", ["in the foreground", "without a stream"])
async def test_what_cannot_be_resumed(after: After, stage: str) -> None:
    """A foreground run is refused with words, not with a hanging stream."""
    path = f"/v1/runs/{after.parts[stage].run_id}/stream"
    assert [await after.process.status(method, path) for method in ("POST", "GET")] == [400, 400]


async def test_following_what_was_sent_and_left(after: After) -> None:
    """A run of messages/async can be followed, too: its end is there."""
    whole = await after.process.read("GET", after.parts["sent and left"].run_id, 0)
    frames = Frames(whole.decode())
    assert (frames.types[-2:], len(frames.of("stop_reason")), frames.done) == (CUT_SHORT, 1, True)


@pytest.mark.parametrize("stage", [*INTERRUPTED, *TOUCHED])
async def test_the_next_message(after: After, stage: str) -> None:
    """The agent answers; the history and the prompt are whole: what was saved before, and what was sent now."""
    part, process = after.parts[stage], after.process
    before = await process.history(part.agent)
    if stage in INTERRUPTED:
        assert types_of(before) == HISTORY.get(stage, [])
    after.model.play({"content": "Again."})
    answer = await process.call("POST", f"/v1/agents/{part.agent}/messages", {"input": "again"})
    assert [message["content"] for message in answer["messages"]] == ["Again."]
    history = await process.history(part.agent)
    assert history[: len(before)] == before
    assert types_of(history[len(before) :]) == ["user_message", "assistant_message"]
    roles = [message["role"] for message in after.model.asked[-1]["messages"]]
    expected = {"between two model calls": ["user", "assistant", "tool"]}.get(stage, ["user", "assistant"])
    assert roles == ["system", *(expected if before else []), "user"]
    assert after.model.left == 0


async def test_no_tool_works_twice(after: After) -> None:
    """The bell was rung once by each run that rang it, before the kill, and never again."""
    assert after.model.rung == ["dong", "ding"]


async def test_a_neighbour_takes_over(anyio_backend: str, postgres_url: str) -> None:
    """Two servers on one PostgreSQL: when one is killed the other one ends its runs, and a reader goes on there."""
    async with twin() as model, started(postgres_url, model) as one, started(postgres_url, model) as two:
        story = Story(one, model)
        await story.between_tokens()
        part = story.parts["between tokens"]
        run_id = await story.only_run(part)
        reading = asyncio.create_task(two.read("POST", run_id, part.reader.count))
        killed = time.monotonic()
        await one.kill()
        await part.reader.task
        async with asyncio.timeout(10):
            end = Frames((await reading).decode())
        assert time.monotonic() - killed < SOON
        assert (end.types, end.data[0]["stop_reason"], end.done) == (CUT_SHORT, "error", True)
        assert (await two.read("GET", run_id, 0)).startswith(part.reader.seen)
        model.play({"content": "Again."})
        answer = await two.call("POST", f"/v1/agents/{part.agent}/messages", {"input": "again"})
        assert answer["messages"][0]["content"] == "Again."
