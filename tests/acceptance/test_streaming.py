"""Answers as server-sent events, by steps and by tokens (behaviour spec §4 and §11, 38-46 and 64-65)."""

import asyncio
import json
from typing import Any

import aiohttp
import letta_client
import pytest
from acceptance.stage import Cast, Frames, Stage, types_of

from perdure.domain.errors import ModelEmptyResponse, ModelRateLimited, ModelTimeout
from perdure.testing import Call, Say, server

pytestmark = pytest.mark.anyio

HUMAN = [{"label": "human", "value": ""}]
INSERT = Call("memory_insert", {"label": "human", "new_string": "Bo"}, id="call_a")
END = ["stop_reason", "usage_statistics"]


async def opened(stage: Stage, agent: str, **fields: Any) -> aiohttp.ClientResponse:
    """A stream whose frames are still to come."""
    url = f"{stage.running.base_url}/v1/agents/{agent}/messages"
    return await stage.http.post(url, json={"input": "hi", "streaming": True, **fields})


async def next_frame(response: aiohttp.ClientResponse) -> Any:
    """The next data frame of an open stream."""
    async for line in response.content:
        if line.startswith(b"data: "):
            return json.loads(line[6:])
    return None


async def test_a38_by_steps(stage: Stage) -> None:
    """A stream by steps: a ping with the run's id, whole messages as in JSON, then stop reason, usage and [DONE]."""
    agent = await stage.agent(memory_blocks=HUMAN)
    frames = await stage.stream(agent, "I am Bo", Say(think="Note.", calls=[INSERT]), Say("Noted."))
    shown = ["reasoning_message", "tool_call_message", "tool_return_message", "assistant_message"]
    assert frames.types == ["ping", *shown, *END]
    assert (frames.done, frames.names) == (True, [])
    run_id = frames.data[0]["run_id"]
    assert frames.data[1:5] == (await stage.history(agent))[1:]
    assert {frame["run_id"] for frame in frames.data[:5]} == {run_id}
    assert frames.data[5] == {"message_type": "stop_reason", "stop_reason": "end_turn"}
    assert (frames.data[6]["step_count"], frames.data[6]["total_tokens"]) == (2, 30)
    run = (await stage.get(f"/v1/runs/{run_id}")).json
    assert (run["status"], run["metadata"]["run_type"]) == ("completed", "send_message_streaming")


async def test_a39_without_pings(stage: Stage) -> None:
    """Who wants no pings gets none."""
    agent = await stage.agent()
    frames = await stage.stream(agent, "hi", Say("Hello."), include_pings=False)
    assert frames.types == ["assistant_message", *END]


async def test_a39_a_long_silence(anyio_backend: str) -> None:
    """While nothing happens a ping is sent again and again, so that nobody takes the connection for dead."""
    gate = asyncio.Event()
    async with server(Say("Hello.", gate=gate), ping_seconds=0.02) as running, aiohttp.ClientSession() as http:
        stage = Stage(running, http, Cast())
        response = await opened(stage, await stage.agent())
        silence = [await next_frame(response) for _ in range(4)]
        gate.set()
        rest = Frames((await response.read()).decode())
    assert [ping["message_type"] for ping in silence] == ["ping"] * 4
    assert len({ping["run_id"] for ping in silence}) == 1
    assert [kind for kind in rest.types if kind != "ping"] == ["assistant_message", *END]
    assert rest.done


async def test_a40_words_as_they_come(stage: Stage) -> None:
    """Fragments share the id and otid of the message that is stored, and add up to its text."""
    agent = await stage.agent()
    frames = await stage.stream(agent, "hi", Say(["Hel", "lo ", "world"]), stream_tokens=True)
    parts = frames.of("assistant_message")
    stored = (await stage.history(agent))[-1]
    assert frames.types == ["ping", *["assistant_message"] * 3, *END]
    assert [part["content"] for part in parts] == ["Hel", "lo ", "world"]
    assert {(part["id"], part["otid"], part["step_id"], part["run_id"]) for part in parts} == {
        (stored["id"], stored["otid"], stored["step_id"], stored["run_id"])
    }
    assert stored["content"] == "Hello world"


async def test_a41_a_call_as_it_comes(stage: Stage) -> None:
    """A call begins with its name and id; its fragments add up to the stored arguments; one whole return follows."""
    agent = await stage.agent(memory_blocks=HUMAN)
    frames = await stage.stream(agent, "hi", Say(think="Note.", calls=[INSERT]), Say("Noted."), stream_tokens=True)
    first, second = frames.of("tool_call_message")
    assert frames.types == [
        "ping", "reasoning_message", "tool_call_message", "tool_call_message", "tool_return_message",
        "assistant_message", *END,
    ]  # fmt: skip
    assert first["tool_call"] == first["tool_calls"] == {"name": "memory_insert", "tool_call_id": "call_a"}
    assert second["tool_call"] == second["tool_calls"] == {
        "arguments": '{"label":"human","new_string":"Bo"}', "tool_call_id": "call_a"
    }  # fmt: skip
    stored = await stage.history(agent)
    assert stored[2]["tool_call"]["arguments"] == second["tool_call"]["arguments"]
    assert (first["id"], first["otid"], second["otid"]) == (stored[2]["id"], stored[2]["otid"], stored[2]["otid"])
    assert frames.of("reasoning_message")[0]["otid"] == stored[1]["otid"]
    assert frames.of("tool_return_message") == [stored[3]]


async def test_a42_parallel_calls_as_they_come(stage: Stage) -> None:
    """Fragments of parallel calls are told apart by their id; with parallel calls off only the first is shown."""
    calls = [INSERT, Call("conversation_search", {"query": "x"}, id="call_b")]
    both = await stage.agent(memory_blocks=HUMAN, parallel_tool_calls=True)
    frames = await stage.stream(both, "hi", Say(calls=calls), Say("Done."), stream_tokens=True)
    told: dict[str, str] = {}
    for frame in frames.of("tool_call_message"):
        call = frame["tool_call"]
        told[call["tool_call_id"]] = told.get(call["tool_call_id"], "") + call.get("arguments", "")
    assert told == {"call_a": INSERT.encoded(), "call_b": '{"query":"x"}'}
    assert len(frames.of("tool_return_message")[0]["tool_returns"]) == 2
    one = await stage.agent(memory_blocks=HUMAN)
    frames = await stage.stream(one, "hi", Say(calls=calls), Say("Done."), stream_tokens=True)
    assert {frame["tool_call"]["tool_call_id"] for frame in frames.of("tool_call_message")} == {"call_a"}


async def test_a43_thoughts_out_of_sight(stage: Stage) -> None:
    """Thoughts that are not shown come first, as one hidden message: omitted, or redacted with the provider's seal."""
    agent = await stage.agent()
    omitted = await stage.stream(agent, "hi", Say("Hello.", omitted=True), stream_tokens=True)
    sealed = await stage.stream(agent, "hi", Say("Hello.", sealed="c2VhbA=="), stream_tokens=True)
    for frames, state, data in ((omitted, "omitted", None), (sealed, "redacted", "c2VhbA==")):
        assert frames.types == ["ping", "hidden_reasoning_message", "assistant_message", *END]
        assert (frames.data[1]["state"], frames.data[1]["hidden_reasoning"]) == (state, data)
        stored = (await stage.history(agent, limit=1))[0] if frames is sealed else frames.data[1]
        assert stored["id"] == frames.data[1]["id"]


async def test_a44_a_model_that_breaks_off(stage: Stage) -> None:
    """What was streamed before the model failed is followed by one stop reason, one error and [DONE]."""
    agent = await stage.agent()
    turn = Say(["Hel", "lo"], break_off=ModelTimeout("Too slow.", "60 s"))
    frames = await stage.stream(agent, "hi", turn, stream_tokens=True)
    assert frames.types == ["ping", "assistant_message", "assistant_message", "stop_reason", "error_message"]
    assert (frames.names, frames.done) == (["error"], True)
    run_id = frames.data[0]["run_id"]
    assert frames.data[3:] == [
        {"message_type": "stop_reason", "stop_reason": "llm_api_error"},
        {
            "message_type": "error_message", "run_id": run_id, "error_type": "llm_timeout", "message": "Too slow.",
            "detail": "60 s", "seq_id": None,
        },
    ]  # fmt: skip
    assert (await stage.get(f"/v1/runs/{run_id}"))["status"] == "failed"
    assert await stage.history(agent) == []


async def test_a44_as_the_sdk_sees_it(stage: Stage) -> None:
    """The Python SDK raises an APIStatusError whose body is the error frame."""
    agent = await stage.agent()
    stage.play(Say("Hello"), Say(fail=ModelRateLimited("Slow down.")))
    async with letta_client.AsyncLetta(base_url=stage.running.base_url, max_retries=0) as sdk:
        whole = await sdk.agents.messages.create(agent, input="hi", streaming=True, stream_tokens=True)
        assert [frame.message_type async for frame in whole] == ["ping", "assistant_message", *END]
        broken = await sdk.agents.messages.create(agent, input="hi", streaming=True, stream_tokens=True)
        with pytest.raises(letta_client.APIStatusError) as failure:
            _ = [frame async for frame in broken]
    assert failure.value.status_code == 200
    assert isinstance(failure.value.body, dict)
    assert failure.value.body["error_type"] == "llm_rate_limit"


@pytest.mark.parametrize("tokens", [False, True])
async def test_a27_an_empty_answer_in_a_stream(stage: Stage, tokens: bool) -> None:
    """Two empty answers end a stream with invalid_llm_response and an error frame that names it."""
    agent = await stage.agent()
    empty = Say(fail=ModelEmptyResponse("Nothing."))
    frames = await stage.stream(agent, "hi", empty, empty, stream_tokens=tokens)
    assert frames.types == ["ping", "stop_reason", "error_message"]
    assert frames.data[1]["stop_reason"] == "invalid_llm_response"
    assert (frames.data[2]["error_type"], frames.done) == ("llm_empty_response", True)
    assert await stage.history(agent) == []


async def test_a_failure_after_a_streamed_step(stage: Stage) -> None:
    """The step that was committed has been shown; the failure follows it."""
    agent = await stage.agent(memory_blocks=HUMAN)
    frames = await stage.stream(agent, "hi", Say(calls=[INSERT]), Say(fail=ModelTimeout("Too slow.")))
    assert frames.types == ["ping", "tool_call_message", "tool_return_message", "stop_reason", "error_message"]
    assert frames.data[1:3] == (await stage.history(agent))[1:]


async def test_a45_any_client_may_stream(stage: Stage) -> None:
    """A stream does not depend on who asks; the deprecated path always streams."""
    agent = await stage.agent()
    stage.play(Say("Hello."), Say("Hello."))
    curl = {"User-Agent": "curl/8.0"}
    asked = await stage.call("POST", f"/v1/agents/{agent}/messages", {"input": "hi", "streaming": True}, headers=curl)
    older = await stage.call("POST", f"/v1/agents/{agent}/messages/stream", {"input": "hi"}, headers=curl)
    for answer in (asked, older):
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert Frames(answer.json).types == ["ping", "assistant_message", *END]


async def test_refusals_come_before_the_stream(stage: Stage) -> None:
    """What can be refused is refused as JSON with its status, not as a stream that fails (S28)."""
    agent = await stage.agent()
    empty = await stage.send(agent, "", streaming=True)
    model = await stage.send(agent, "hi", streaming=True, override_model="other/none")
    nobody = await stage.send("agent-00000000-0000-4000-8000-00000000dead", "hi", streaming=True)
    approval = await stage.send(agent, {"messages": [{"type": "approval", "approvals": []}]}, streaming=True)
    assert [answer.status for answer in (empty, model, nobody, approval)] == [400, 404, 404, 400]
    assert "No tool call is currently awaiting approval" in approval["detail"]
    assert await stage.runs(agent) == []


async def test_only_the_frames_asked_for(stage: Stage) -> None:
    """The filter drops content frames and no others."""
    agent = await stage.agent(memory_blocks=HUMAN)
    for tokens in (False, True):
        turns = Say(think="Note.", calls=[INSERT]), Say("Noted.")
        wanted = ["tool_return_message"]
        frames = await stage.stream(agent, "hi", *turns, stream_tokens=tokens, include_return_message_types=wanted)
        assert frames.types == ["ping", "tool_return_message", *END]


async def test_a46_a_reader_that_goes_away(stage: Stage) -> None:
    """A run goes on without its reader: its messages are listed afterwards."""
    agent = await stage.agent()
    gate = asyncio.Event()
    stage.play(Say("Hello.", gate=gate))
    response = await opened(stage, agent)
    run_id = (await next_frame(response))["run_id"]
    response.close()
    gate.set()
    await ended(stage, run_id)
    assert types_of(await stage.history(agent)) == ["user_message", "assistant_message"]


async def ended(stage: Stage, run_id: str) -> Any:
    """The run, once it is over."""
    async with asyncio.timeout(5):
        while (run := (await stage.get(f"/v1/runs/{run_id}")).json)["completed_at"] is None:
            await asyncio.sleep(0.01)
    return run


async def test_a64_cancelled_in_the_middle(stage: Stage) -> None:
    """A cancelled stream ends with its stop reason and [DONE]; the step before stays, the unfinished one is gone."""
    agent = await stage.agent(memory_blocks=HUMAN)
    stage.play(Say(calls=[INSERT]), Say("never", hang=True))
    response = await opened(stage, agent)
    frames = [await next_frame(response) for _ in range(3)]
    cancelled = await stage.call("POST", f"/v1/agents/{agent}/messages/cancel", {})
    rest = Frames((await response.read()).decode())
    run_id = frames[0]["run_id"]
    assert (cancelled.status, cancelled.json) == (200, {run_id: "cancelled"})
    assert (rest.data, rest.done) == ([{"message_type": "stop_reason", "stop_reason": "cancelled"}], True)
    run = (await stage.get(f"/v1/runs/{run_id}")).json
    assert (run["status"], run["stop_reason"]) == ("cancelled", "cancelled")
    assert types_of(await stage.history(agent)) == ["user_message", "tool_call_message", "tool_return_message"]
    assert (await stage.send(agent, "hi", Say("Hello."))).stop == "end_turn"


async def test_a64_cancelled_by_two_at_once(stage: Stage) -> None:
    """However many cancel a run, it ends once and its reader is told."""
    agent = await stage.agent()
    stage.play(Say(hang=True))
    sending = asyncio.create_task(stage.send(agent, "hi"))
    while not (runs := await stage.runs(agent)) or not stage.requests:
        await asyncio.sleep(0.005)
    path = f"/v1/agents/{agent}/messages/cancel"
    answers = await asyncio.gather(*(stage.call("POST", path, {"run_ids": [runs[0]["id"]]}) for _ in range(8)))
    async with asyncio.timeout(5):
        answer = await sending
    assert [a.json for a in answers] == [{runs[0]["id"]: "cancelled"}] * 8
    assert (answer.status, answer.types, answer.stop) == (200, [], "cancelled")
    run = (await stage.runs(agent))[0]
    assert (run["status"], run["metadata"]["rejected_input"]) == ("cancelled", ["hi"])


async def test_a65_nothing_to_cancel(stage: Stage) -> None:
    """Without a run under way there is nothing to cancel; a finished run stays as it is."""
    agent = await stage.agent()
    path = f"/v1/agents/{agent}/messages/cancel"
    nothing = await stage.call("POST", path, {})
    assert (nothing.status, nothing.headers["x-should-retry"]) == (409, "false")
    assert nothing["detail"].startswith("No active runs to cancel")
    await stage.send(agent, "hi", Say("Hello."))
    (run,) = await stage.runs(agent)
    finished = await stage.call("POST", path, {"run_ids": [run["id"]]})
    assert (finished.json, await stage.runs(agent)) == ({run["id"]: "cancelled"}, [run])
    unknown = "run-00000000-0000-4000-8000-00000000dead"
    assert (await stage.call("POST", path, {"run_ids": [unknown]})).json == {unknown: "failed"}
