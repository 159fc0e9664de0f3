"""What a provider can do wrong, and what comes of it: one table, carried out in every rendering (docs/faults.md).

Whatever happens, the run ends `failed` with a reason, the history is as before, and the next message works. The
provider is an HTTP twin; the server asks it as it would ask a real one, only that its pauses take no time.
"""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from acceptance.faults import BY_NAME, FAULTS, GONE, HEL, MOMENT, ODDITIES, STOP, TWIN, Fault
from acceptance.stage import Cast, Frames, Stage, types_of
from acceptance.stage import Reply as Answer
from acceptance.twin import Twin, twin
from models.twin import call, delta, streamed

from perdure import testing
from perdure.domain.records import ModelInfo
from perdure.models.openai import OpenAIProvider
from perdure.testing import Running

pytestmark = pytest.mark.anyio

HELLO = {"content": "Hello."}
PAGE = (Path(__file__).parents[2] / "docs" / "faults.md").read_text(encoding="utf-8")
BLOCKS = [{"label": "human", "value": ""}]
INSERT = [
    streamed(delta(tool_calls=[call(0, "call_a", "memory_insert", '{"label": "human", "new_string": "Bo"}')]), STOP)
]  # fmt: skip
RENDERINGS: dict[str, dict[str, Any]] = {
    "json": {},
    "steps": {"streaming": True},
    "tokens": {"streaming": True, "stream_tokens": True},
    "background": {"streaming": True, "stream_tokens": True, "background": True},
}


class Gone(OpenAIProvider):
    """A provider that has gone away since it listed its models."""

    async def list_models(self) -> list[ModelInfo]:
        """What it once had."""
        return [ModelInfo(handle=GONE, name="twin", provider_name="gone", provider_type="openai",
                          endpoint_type="openai")]  # fmt: skip


async def at_once(_: float) -> None:
    """A pause that takes no time."""


@pytest.fixture(scope="module")
async def model(anyio_backend: str) -> AsyncIterator[Twin]:
    """The provider of all stories here."""
    async with twin() as made:
        yield made


@pytest.fixture(scope="module")
async def faulty(model: Twin, database_url: str | None) -> AsyncIterator[Running]:
    """A server whose providers can be told to fail."""
    providers = [
        OpenAIProvider("twin", model.url, None, sleep=at_once),
        OpenAIProvider("hasty", model.url, None, idle=MOMENT, sleep=at_once),
        Gone("gone", "http://127.0.0.1:1/v1", None, sleep=at_once),
    ]
    async with testing.server(providers=providers, database_url=database_url) as running:
        yield running


@pytest.fixture
async def stage(faulty: Running, model: Twin) -> AsyncIterator[Stage]:
    """The stage of one story; the provider must have been asked for everything it was to say."""
    model.clear()
    async with aiohttp.ClientSession() as http:
        yield Stage(faulty, http, Cast())
    assert model.left == 0


def words(frames: Frames) -> list[str]:
    """Every fragment that was shown: words, thoughts, names and arguments of calls."""
    told: list[str | None] = []
    for frame in frames.data:
        called = frame.get("tool_call", {})
        told += [frame.get("content"), frame.get("reasoning"), called.get("name"), called.get("arguments")]
    return [text for text in told if text]


def check_answer(fault: Fault, answer: Answer) -> None:
    """Without streaming: the status, the body, and whether to try again."""
    assert answer.status == fault.told.status
    assert answer.headers.get("x-should-retry") == ("false" if fault.told.final else None)
    if fault.told.body == "detail":
        prefix = "CONTEXT_WINDOW_EXCEEDED: " if fault.told.stop == "error" else ""
        assert answer.json == {"detail": prefix + fault.message}
        return
    error = answer["error"]
    assert (set(answer.json), set(error)) == ({"error"}, {"type", "message", "detail"})
    assert (error["type"], error["message"]) == (fault.told.body, fault.message)
    assert error["detail"].startswith(fault.detail)


def check_stream(fault: Fault, frames: Frames, rendering: str) -> None:
    """As a stream: what was shown, one stop reason, one error, [DONE]; numbered without gaps in the background."""
    shown = [] if rendering == "steps" else list(fault.shown)
    content = [frame for frame in frames.data if frame["message_type"] not in ("ping", "stop_reason", "error_message")]
    assert (words(frames), len(content)) == (shown, len(shown))
    assert frames.types == ["ping", *types_of(content), "stop_reason", "error_message"]
    assert (frames.names, frames.done) == (["error"], True)
    numbers = [frame["seq_id"] for frame in frames.data if frame["message_type"] != "stop_reason"]
    count = len(shown) + 1
    assert numbers == ([*range(1, count + 1), count + 2] if rendering == "background" else [None] * (count + 1))
    *_, stop, error = frames.data
    assert stop == {"message_type": "stop_reason", "stop_reason": fault.told.stop}
    assert set(error) == {"message_type", "run_id", "error_type", "message", "detail", "seq_id"}
    assert (error["error_type"], error["message"]) == (fault.told.frame, fault.message)
    assert error["detail"].startswith(fault.detail)


async def check_run(stage: Stage, agent: str, fault: Fault) -> str:
    """The run has failed with a reason, and says what was asked of it; answers its id."""
    (run,) = await stage.runs(agent)
    assert (run["status"], run["stop_reason"]) == ("failed", fault.told.stop)
    assert run["completed_at"] is not None
    error = run["metadata"]["error"]
    assert (error["error_type"], error["message"]) == (fault.told.kind, fault.message)
    assert error["detail"].startswith(fault.detail)
    assert run["metadata"]["rejected_input"] == ["hi"]
    run_id: str = run["id"]
    (step,) = (await stage.get(f"/v1/runs/{run_id}/steps")).json
    assert (step["status"], step["stop_reason"], step["error_type"]) == ("failed", fault.told.stop, fault.told.kind)
    return run_id


async def check_the_next_message(stage: Stage, model: Twin, agent: str, rendering: str) -> None:
    """Nothing of the failure is in the history or in the next prompt, and the next message is answered."""
    assert await stage.history(agent) == []
    assert len(await stage.context(agent)) == 1
    if await is_gone(stage, agent):
        return
    model.play(HELLO)
    answer = await stage.send(agent, "again", **RENDERINGS[rendering])
    assert answer.status == 200
    assert (answer.types if rendering == "json" else Frames(answer.json).types[1:-2]) == ["assistant_message"]
    assert [message["content"] for message in await stage.history(agent)] == ["again", "Hello."]
    assert [(m["role"], m["content"]) for m in model.asked[-1]["messages"][1:]] == [("user", "again")]


async def is_gone(stage: Stage, agent: str) -> bool:
    """Whether the agent's provider cannot be reached at all."""
    return bool((await stage.get(f"/v1/agents/{agent}"))["model"] == GONE)


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", BY_NAME)
async def test_a_fault(stage: Stage, model: Twin, name: str, rendering: str) -> None:
    """One line of the table in one rendering."""
    fault = BY_NAME[name]
    agent = await stage.agent(model=fault.model)
    model.play(*fault.turns)
    answer = await stage.send(agent, "hi", **RENDERINGS[rendering])
    assert (len(model.asked), model.left) == (fault.asked, 0)
    if rendering == "json":
        check_answer(fault, answer)
    else:
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        check_stream(fault, Frames(answer.json), rendering)
    run_id = await check_run(stage, agent, fault)
    if rendering == "background":
        for method in ("POST", "GET"):
            assert (await stage.call(method, f"/v1/runs/{run_id}/stream")).json == answer.json
    await check_the_next_message(stage, model, agent, rendering)


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", ODDITIES)
async def test_an_oddity(stage: Stage, model: Twin, name: str, rendering: str) -> None:
    """One answer that is odd and whole: it is told in full, stored once, and replayed as it was."""
    odd = ODDITIES[name]
    agent = await stage.agent(model=odd.model)
    model.play(*odd.turns)
    answer = await stage.send(agent, "hi", **RENDERINGS[rendering])
    assert (len(model.asked), answer.status) == (odd.asked, 200)
    if rendering == "json":
        told = "".join(message["content"] for message in answer["messages"])
    else:
        frames = Frames(answer.json)
        told = "".join(words(frames))
        assert (frames.types[-2:], frames.names, frames.done) == (["stop_reason", "usage_statistics"], [], True)
    (run,) = await stage.runs(agent)
    assert (run["status"], run["stop_reason"]) == ("completed", "end_turn")
    stored = [message["content"] for message in await stage.history(agent)]
    # Compared as booleans: pytest would spend a minute on showing how two texts of 10 MB differ.
    assert [told == odd.text, stored == ["hi", odd.text]] == [True, True]
    if rendering == "background":
        assert (await stage.call("POST", f"/v1/runs/{run['id']}/stream")).json == answer.json
    model.play(HELLO)
    assert (await stage.send(agent, "again")).stop == "end_turn"


@pytest.mark.parametrize("rendering", RENDERINGS)
async def test_an_answer_cut_at_its_limit(stage: Stage, model: Twin, rendering: str) -> None:
    """What was said up to the limit is kept and told; the run has failed, since the answer is not whole (26)."""
    agent = await stage.agent(model=TWIN)
    model.play(streamed(HEL, delta("length")))
    answer = await stage.send(agent, "hi", **RENDERINGS[rendering])
    if rendering == "json":
        assert (answer.status, answer.types, answer.stop) == (200, ["assistant_message"], "max_tokens_exceeded")
    else:
        frames = Frames(answer.json)
        assert frames.types == ["ping", "assistant_message", "stop_reason", "usage_statistics"]
        assert (frames.data[2]["stop_reason"], frames.done) == ("max_tokens_exceeded", True)
    (run,) = await stage.runs(agent)
    assert (run["status"], run["stop_reason"]) == ("failed", "max_tokens_exceeded")
    assert [message["content"] for message in await stage.history(agent)] == ["hi", "Hel"]
    model.play(HELLO)
    assert (await stage.send(agent, "go on")).stop == "end_turn"


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", [fault.name for fault in FAULTS if fault.model != GONE])
async def test_a_fault_after_a_step(stage: Stage, model: Twin, name: str, rendering: str) -> None:
    """The step before is told, stored, and done once; the fault follows it; the next prompt goes on from there."""
    fault = BY_NAME[name]
    agent = await stage.agent(model=fault.model, memory_blocks=BLOCKS)
    model.play(*INSERT, *fault.turns)
    answer = await stage.send(agent, "I am Bo.", **RENDERINGS[rendering])
    assert (len(model.asked), model.left) == (fault.asked + 1, 0)
    history = await stage.history(agent)
    assert types_of(history) == ["user_message", "tool_call_message", "tool_return_message"]
    if rendering == "json":
        check_answer(fault, answer)
    else:
        frames = Frames(answer.json)
        assert frames.of("tool_return_message") == [
            history[2] | {"seq_id": frames.of("tool_return_message")[0]["seq_id"]}
        ]
        assert [frame["stop_reason"] for frame in frames.of("stop_reason")] == [fault.told.stop]
        assert (frames.types[-2:], frames.names, frames.done) == (["stop_reason", "error_message"], ["error"], True)
        assert (frames.data[-1]["error_type"], frames.data[-1]["message"]) == (fault.told.frame, fault.message)
    (run,) = await stage.runs(agent)
    assert (run["status"], run["stop_reason"]) == ("failed", fault.told.stop)
    assert (run["metadata"]["error"]["error_type"], "rejected_input" in run["metadata"]) == (fault.told.kind, False)
    assert await stage.block(agent, "human") == "Bo"
    model.play(HELLO)
    await stage.send(agent, "Who am I?")
    told = [message["role"] for message in model.asked[-1]["messages"]]
    assert told == ["system", "user", "assistant", "tool", "user"]


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS if fault.model != GONE])
async def test_a_retry_is_told_the_same(stage: Stage, model: Twin, name: str) -> None:
    """An SDK that tries a request again which failed after a step gets the first one's answer, and nothing runs."""
    fault = BY_NAME[name]
    agent = await stage.agent(model=fault.model, memory_blocks=BLOCKS)
    model.play(*INSERT, *fault.turns)
    path, request = f"/v1/agents/{agent}/messages", {"input": "I am Bo."}
    first = await stage.call("POST", path, request)
    second = await stage.call("POST", path, request, headers={"x-stainless-retry-count": "1"})
    assert (second.status, second.json) == (first.status, first.json)
    assert second.headers.get("x-should-retry") == first.headers.get("x-should-retry")
    assert len(model.asked) == fault.asked + 1
    assert len(await stage.runs(agent)) == 1


async def test_thoughts_and_then_nothing(stage: Stage, model: Twin) -> None:
    """Once thoughts were shown an empty answer is not asked for again: its reader would see two answers in one."""
    agent = await stage.agent(model=TWIN)
    model.play(streamed(delta(reasoning_content="Hm."), STOP))
    frames = await stage.stream(agent, "hi", stream_tokens=True)
    assert frames.types == ["ping", "reasoning_message", "stop_reason", "error_message"]
    assert frames.data[-1]["error_type"] == "llm_empty_response"
    assert await stage.history(agent) == []


def test_the_page_tells_the_table() -> None:
    """docs/faults.md and what is tested are the same, line by line."""
    lines = re.findall(r"^\| (.*) \| (\d{3}) \| (.*) \| (.*) \| (.*) \| (\d) \|$", PAGE, re.M)
    told = [(fault.name, fault.told, fault.asked) for fault in FAULTS]
    assert lines == [
        (name, str(told.status), "–" if told.body == "detail" else f"`{told.body}`", f"`{told.stop}`",
         f"`{told.frame}`", str(asked))
        for name, told, asked in told
    ]  # fmt: skip
    harmless = PAGE.partition("## What costs nothing")[2].partition("##")[0]
    assert re.findall(r"^- (.*)$", harmless, re.M) == list(ODDITIES)
