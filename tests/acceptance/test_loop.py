"""The loop: tool calls, how a turn ends, what a failing model does to it (behaviour spec §11, 13-16 and 24-31)."""

import json
from typing import Any

import pytest
from acceptance.stage import Reply, Stage, types_of

from perdure.domain.errors import (
    ContextOverflow,
    ModelAuthentication,
    ModelBadRequest,
    ModelEmptyResponse,
    ModelError,
    ModelOutOfCredits,
    ModelOverloaded,
    ModelRateLimited,
    ModelTimeout,
)
from perdure.domain.messages import Usage, text_of
from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

HUMAN = [{"label": "human", "value": ""}]


def insert(text: str, label: str = "human", **options: Any) -> Call:
    """A call that adds a line to memory."""
    return Call("memory_insert", {"label": label, "new_string": text}, **options)


async def run_of(stage: Stage, agent: str) -> Any:
    """The agent's only run."""
    (run,) = await stage.runs(agent)
    return run


def returned(answer: Reply) -> Any:
    """The only tool return message of an answer."""
    (message,) = [m for m in answer["messages"] if m["message_type"] == "tool_return_message"]
    return message


async def test_a13_a_call_then_words(stage: Stage) -> None:
    """A tool call is carried out and shown with its result; the words that follow are a step of their own."""
    agent = await stage.agent(memory_blocks=HUMAN)
    calling = Say(calls=[insert("Bo", id="call_a")], usage=Usage(100, 20, 120))
    answer = await stage.send(agent, "I am Bo", calling, Say("Noted.", usage=Usage(150, 5, 155)))
    call, ret, said = answer["messages"]
    assert answer.types == ["tool_call_message", "tool_return_message", "assistant_message"]
    assert answer.stop == "end_turn"
    shown = {"name": "memory_insert", "arguments": '{"label":"human","new_string":"Bo"}', "tool_call_id": "call_a"}
    assert (call["tool_call"], call["tool_calls"]) == (shown, [shown])
    result = {"tool_return": "Bo", "status": "success", "tool_call_id": "call_a", "stdout": None, "stderr": None}
    assert {key: ret[key] for key in result} == result
    assert (ret["name"], ret["tool_returns"]) == ("memory_insert", [{"type": "tool", **result}])
    assert call["step_id"] == ret["step_id"] != said["step_id"]
    usage = {key: answer["usage"][key] for key in ("step_count", "prompt_tokens", "total_tokens", "context_tokens")}
    assert usage == {"step_count": 2, "prompt_tokens": 250, "total_tokens": 275, "context_tokens": 155}
    returns = stage.requests[1].messages[-1].tool_returns
    assert [(r.tool_call_id, r.content) for r in returns] == [("call_a", "Bo")]


async def test_a14_a_tool_that_fails(stage: Stage) -> None:
    """A failing tool gives an error return that names it and its error; the model is asked again."""
    agent = await stage.agent(memory_blocks=HUMAN)
    answer = await stage.send(agent, "hi", Say(calls=[insert("Bo", label="nobody")]), Say("Sorry."))
    ret = returned(answer)
    assert (ret["status"], ret["name"], answer.stop) == ("error", "memory_insert", "end_turn")
    assert ret["tool_return"].startswith("Error executing function memory_insert: ToolError: ")
    assert ret["stderr"] == [ret["tool_return"]]
    assert await stage.block(agent, "human") == ""


async def test_a15_a_tool_that_is_not_there(stage: Stage) -> None:
    """A call of a tool that is not attached gets an error that lists the tools; the loop goes on."""
    agent = await stage.agent()
    answer = await stage.send(agent, "hi", Say(calls=[Call("fly")]), Say("Sorry."))
    ret = returned(answer)
    assert (ret["status"], ret["name"], answer.stop) == ("error", "fly", "end_turn")
    assert ret["tool_return"] == (
        "Tool not found: fly. Your tools are: conversation_search, memory_replace, memory_insert."
    )


async def test_a16_no_more_steps(stage: Stage) -> None:
    """The last step's tool still runs, then the turn ends with max_steps; less than one step is refused."""
    agent = await stage.agent(memory_blocks=HUMAN)
    answer = await stage.send(agent, "hi", Say(calls=[insert("Bo")]), max_steps=1)
    assert (answer.types, answer.stop) == (["tool_call_message", "tool_return_message"], "max_steps")
    assert (await stage.block(agent, "human"), (await run_of(stage, agent))["status"]) == ("Bo", "completed")
    for wrong in (0, -1, 10_001, "many", 1.5):
        assert (await stage.send(agent, "hi", max_steps=wrong)).status == 422, wrong
    assert len(await stage.runs(agent)) == 1
    ended = await stage.send(agent, "hi", Say("Hello."), max_steps=1)
    assert ended.stop == "end_turn"


async def test_a24_parallel_calls(stage: Stage) -> None:
    """Several calls of one step are one message, their returns another, in the order of the calls."""
    agent = await stage.agent(memory_blocks=HUMAN, parallel_tool_calls=True)
    calls = [
        insert("one", id="a"), Call("conversation_search", {"query": "zebra"}, id="b"), insert("two", id="c"),
        Call("fly", id="d"), Call("conversation_search", {"query": "zebra"}, id="e"),
    ]  # fmt: skip
    answer = await stage.send(agent, "hi", Say(calls=calls), Say("Done."))
    call, ret, _ = answer["messages"]
    assert answer.types == ["tool_call_message", "tool_return_message", "assistant_message"]
    assert [c["tool_call_id"] for c in call["tool_calls"]] == ["a", "b", "c", "d", "e"]
    assert call["tool_call"] == call["tool_calls"][0]
    shown = [(r["tool_call_id"], r["status"]) for r in ret["tool_returns"]]
    assert shown == [("a", "success"), ("b", "success"), ("c", "success"), ("d", "error"), ("e", "success")]
    assert [r["tool_return"] for r in ret["tool_returns"]][:3] == ["one", "No results found.", "one\ntwo"]
    assert await stage.block(agent, "human") == "one\ntwo"
    assert stage.requests[0].parallel_tool_calls is True


async def test_a25_parallel_calls_that_were_not_wanted(stage: Stage) -> None:
    """With parallel calls off, of several calls only the first exists."""
    agent = await stage.agent(memory_blocks=HUMAN)
    calls = [insert("one", id="a"), insert("two", id="b")]
    answer = await stage.send(agent, "hi", Say(calls=calls), Say("Done."))
    assert [c["tool_call_id"] for c in answer["messages"][0]["tool_calls"]] == ["a"]
    assert [c.id for c in stage.requests[1].messages[1].tool_calls] == ["a"]
    assert stage.requests[0].parallel_tool_calls is False
    assert await stage.block(agent, "human") == "one"


async def test_two_calls_of_one_id(stage: Stage) -> None:
    """Of two calls with one id the first wins, so that every call keeps exactly one return."""
    agent = await stage.agent(memory_blocks=HUMAN, parallel_tool_calls=True)
    calls = [insert("one", id="same"), insert("two", id="same")]
    answer = await stage.send(agent, "hi", Say(calls=calls), Say("Done."))
    assert [c["tool_call_id"] for c in answer["messages"][0]["tool_calls"]] == ["same"]
    assert [r["tool_return"] for r in returned(answer)["tool_returns"]] == ["one"]
    assert await stage.block(agent, "human") == "one"


async def test_a26_an_answer_cut_off(stage: Stage) -> None:
    """Words cut at the output limit are kept; the run says that it failed."""
    agent = await stage.agent()
    answer = await stage.send(agent, "hi", Say("Hello and", finish="length"))
    run = await run_of(stage, agent)
    assert (answer.status, answer.stop) == (200, "max_tokens_exceeded")
    assert (answer["messages"][0]["content"], run["status"]) == ("Hello and", "failed")
    assert len(await stage.history(agent)) == 2


async def test_a27_an_empty_answer(stage: Stage) -> None:
    """An empty answer is asked for once more; a second one ends the run and nothing is stored."""
    agent = await stage.agent()
    answer = await stage.send(agent, "Are you there?", Say(), Say())
    assert (answer.status, answer["error"]["type"]) == (500, "llm_error")
    assert await stage.history(agent) == []
    run = await run_of(stage, agent)
    assert (run["status"], run["stop_reason"]) == ("failed", "invalid_llm_response")
    assert run["metadata"]["rejected_input"] == ["Are you there?"]
    better = await stage.send(agent, "Are you there?", Say(), Say("Yes."))
    assert better.types == ["assistant_message"]


FAILURES: list[tuple[ModelError, int, str]] = [
    (ModelRateLimited("Slow down.", "429"), 429, "llm_rate_limit"),
    (ModelTimeout("Too slow."), 504, "llm_timeout"),
    (ModelAuthentication("Wrong key."), 401, "llm_authentication"),
    (ModelOutOfCredits("Pay."), 402, "llm_insufficient_credits"),
    (ModelBadRequest("No."), 400, "llm_bad_request"),
    (ModelError("Broken."), 500, "llm_error"),
]


@pytest.mark.parametrize(("failure", "status", "kind"), FAILURES)
async def test_a28_a_model_that_fails(stage: Stage, failure: ModelError, status: int, kind: str) -> None:
    """Each kind of failure has its status and its type; the run failed, the step shows why, nothing is stored."""
    agent = await stage.agent()
    answer = await stage.send(agent, "hi", Say(fail=failure))
    assert (answer.status, answer["error"]) == (
        status, {"type": kind, "message": str(failure), "detail": failure.detail}
    )  # fmt: skip
    assert answer.headers.get("x-should-retry") == ("false" if status == 401 else None)
    run = await run_of(stage, agent)
    assert (run["status"], run["stop_reason"]) == ("failed", "llm_api_error")
    assert run["metadata"]["error"] == {"error_type": kind, "message": str(failure), "detail": failure.detail}
    (step,) = (await stage.get(f"/v1/runs/{run['id']}/steps")).json
    assert (step["status"], step["error_type"], step["stop_reason"]) == ("failed", kind, "llm_api_error")
    assert await stage.history(agent) == []
    assert (await stage.send(agent, "hi", Say("Hello."))).status == 200


async def test_a28_overloaded_and_overflowing_models(stage: Stage) -> None:
    """An overloaded model is 503; a prompt that is too long is 400 and says so in a word that clients look for."""
    agent = await stage.agent()
    overloaded = await stage.send(agent, "hi", Say(fail=ModelOverloaded("Busy.")))
    overflow = await stage.send(agent, "hi", Say(fail=ContextOverflow("4097 tokens.")))
    assert (overloaded.status, overloaded.json) == (503, {"detail": "Busy."})
    assert (overflow.status, overflow.json) == (400, {"detail": "CONTEXT_WINDOW_EXCEEDED: 4097 tokens."})
    assert [run["stop_reason"] for run in await stage.runs(agent)] == ["error", "llm_api_error"]


async def test_a_failure_after_a_step(stage: Stage) -> None:
    """What was committed before the model failed stays: the request, the call and its result."""
    agent = await stage.agent(memory_blocks=HUMAN)
    answer = await stage.send(agent, "I am Bo", Say(calls=[insert("Bo")]), Say(fail=ModelTimeout("Too slow.")))
    assert answer.status == 504
    assert types_of(await stage.history(agent)) == ["user_message", "tool_call_message", "tool_return_message"]
    run = await run_of(stage, agent)
    assert (run["status"], run["stop_reason"]) == ("failed", "llm_api_error")
    assert "rejected_input" not in run["metadata"]
    steps = (await stage.get(f"/v1/runs/{run['id']}/steps", order="asc")).json
    assert [(step["status"], step["stop_reason"]) for step in steps] == [
        ("success", None), ("failed", "llm_api_error"),
    ]  # fmt: skip
    usage = (await stage.get(f"/v1/runs/{run['id']}/usage")).json
    assert usage["total_tokens"] == 15
    await stage.send(agent, "Who am I?", Say("Bo."))
    assert [message.role for message in stage.requests[-1].messages] == ["user", "assistant", "tool", "user"]


async def test_a29_a_result_that_is_too_long(stage: Stage) -> None:
    """A result above its tool's limit is cut, with a note of both sizes; the limit can be set per tool."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": "x" * 60_000}])
    answer = await stage.send(agent, "hi", Say(calls=[insert("y")]), Say("Done."))
    text = returned(answer)["tool_return"]
    assert text.startswith("x" * 50_000 + "\n[Cut here: the result has 60002 characters, 50000 are allowed.")
    assert len(text) < 50_200
    assert len(await stage.block(agent, "human")) == 60_002


@pytest.mark.parametrize("raw", ['{"label": "human"', "[1, 2]", "label=human", "null", "NaN", '"{"'])
async def test_a30_arguments_that_are_no_object(stage: Stage, raw: str) -> None:
    """Undecodable arguments run nothing; the model is told so and history shows an empty object."""
    agent = await stage.agent(memory_blocks=HUMAN)
    answer = await stage.send(agent, "hi", Say(calls=[Call("memory_insert", raw=raw)]), Say("Sorry."))
    ret = returned(answer)
    assert (ret["status"], ret["stdout"], ret["stderr"]) == ("error", None, None)
    assert ret["tool_return"] == (
        f"The arguments of memory_insert are not a JSON object: {raw!r}. Call it again with one."
    )
    assert answer["messages"][0]["tool_call"]["arguments"] == "{}"
    assert stage.requests[1].messages[1].tool_calls[0].arguments == "{}"
    assert answer.stop == "end_turn"


FORGIVEN = [
    ('"{\\"label\\": \\"human\\", \\"new_string\\": \\"Bo\\"}"', '{"label": "human", "new_string": "Bo"}'),
    ('{"label":"human","new_string":"Bo"}{"label":"x"}', '{"label": "human", "new_string": "Bo"}'),
    (
        '{"label":"human","new_string":"Bo","request_heartbeat":true,"thinking":"hm"}',
        '{"label": "human", "new_string": "Bo"}',
    ),
]


@pytest.mark.parametrize(("raw", "stored"), FORGIVEN)
async def test_arguments_that_can_be_mended(stage: Stage, raw: str, stored: str) -> None:
    """JSON within JSON, glued objects and words of older loops are put right before the tool runs and is shown."""
    agent = await stage.agent(memory_blocks=HUMAN)
    answer = await stage.send(agent, "hi", Say(calls=[Call("memory_insert", raw=raw)]), Say("Done."))
    assert returned(answer)["status"] == "success"
    assert answer["messages"][0]["tool_call"]["arguments"] == stored
    assert await stage.block(agent, "human") == "Bo"


async def test_a31_a_result_that_is_an_object(stage: Stage) -> None:
    """A tool's object is JSON on the wire."""
    agent = await stage.agent()
    await stage.send(agent, "My zebra is called Ida.", Say("A fine name."))
    search = Call("conversation_search", {"query": "zebra", "roles": ["user"]})
    answer = await stage.send(agent, "Which pet do I have?", Say(calls=[search]), Say("Ida."))
    found = json.loads(returned(answer)["tool_return"])
    assert (found["message"], found["results"][0]["content"]) == ("Showing 1 results:", "My zebra is called Ida.")


async def test_a75_words_beside_a_call(stage: Stage) -> None:
    """Words and thoughts beside a call are in the answer, in history and in the next prompt."""
    agent = await stage.agent(memory_blocks=HUMAN)
    answer = await stage.send(agent, "hi", Say("One moment.", think="Note it.", calls=[insert("Bo")]), Say("Done."))
    expected = [
        "reasoning_message", "assistant_message", "tool_call_message", "tool_return_message", "assistant_message",
    ]  # fmt: skip
    assert answer.types == expected
    assert (await stage.history(agent))[1:] == answer["messages"]
    assert text_of(stage.requests[1].messages[1].content) == "One moment."
    parts = [int(message["otid"][-2:], 16) & 0x7F for message in answer["messages"]]
    assert parts == [0, 1, 2, 0, 0]


async def test_hidden_thoughts(stage: Stage) -> None:
    """Sealed thoughts are shown as redacted with the provider's seal, thoughts left out as omitted."""
    agent = await stage.agent()
    sealed = await stage.send(agent, "hi", Say("Hello.", sealed="c2VhbA=="))
    omitted = await stage.send(agent, "hi", Say("Hello.", omitted=True))
    assert sealed.types == omitted.types == ["hidden_reasoning_message", "assistant_message"]
    assert [a["messages"][0]["state"] for a in (sealed, omitted)] == ["redacted", "omitted"]
    assert [a["messages"][0]["hidden_reasoning"] for a in (sealed, omitted)] == ["c2VhbA==", None]


async def test_an_unknown_failure_is_an_empty_answer_to_nobody(stage: Stage) -> None:
    """A model that answers nothing twice has the same type wherever it is told, but for the older JSON form."""
    agent = await stage.agent()
    await stage.send(agent, "hi", Say(fail=ModelEmptyResponse("Nothing.")), Say(fail=ModelEmptyResponse("Nothing.")))
    assert (await run_of(stage, agent))["metadata"]["error"]["error_type"] == "llm_empty_response"
