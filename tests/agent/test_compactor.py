"""The core of compaction with a scripted model: ways of asking, falling back, and that it always comes to an end."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory.test_compact import answered_across, calls, histories, message, returns, sizes
from memory.test_compact import talk as short_talk

from perdure.agent.compaction import NO_GAIN, Compacted, Compactor
from perdure.agent.summariser import ACKNOWLEDGED, Work
from perdure.domain.clock import SystemClock
from perdure.domain.errors import (
    ContextOverflow,
    Invalid,
    ModelBadRequest,
    ModelEmptyResponse,
    ModelRateLimited,
    NotFound,
)
from perdure.domain.messages import Message, Text, text_of
from perdure.domain.ports import ModelRequest
from perdure.domain.records import Agent, Context, ModelInfo, Tool
from perdure.memory.compact import PROMPT, SELF_PROMPT, settings_of, summary_of
from perdure.memory.tokens import Correction
from perdure.models.catalog import Catalog
from perdure.models.scripted import Reply, Say, ScriptedModel, ScriptedProvider

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SMALL = ModelInfo(
    handle="openai/gpt-4.1-mini", name="gpt-4.1-mini", provider_name="openai", provider_type="openai",
    endpoint_type="openai", context_window=2_000,
)  # fmt: skip
LARGE = ModelInfo(
    handle="openai/large", name="large", provider_name="openai", provider_type="openai", endpoint_type="openai",
)  # fmt: skip
LOOK = Tool(
    id="tool-1", name="look", json_schema={"name": "look", "description": "Look.", "parameters": {"type": "object"}},
    created_at=NOW, updated_at=NOW,
)  # fmt: skip


def work(
    history: Sequence[Message], given: dict[str, Any] | None = None, *, window: int = 8_000,
    model: str = "scripted/model", tools: tuple[Tool, ...] = (), **fields: Any,
) -> Work:  # fmt: skip
    agent = Agent(
        id="agent-1", name="Ada", agent_type="letta_v1_agent", system="You are.", model=model,
        llm={"model": model.partition("/")[2], "context_window": window}, created_at=NOW, updated_at=NOW,
        model_settings={"temperature": 0.2, "response_format": {"type": "json_object"}},
    )  # fmt: skip
    context = Context(
        id=agent.id, agent=agent, blocks=(), tools=tools, messages=list(history), agent_version=1, compiled_version=1,
        compiled_at=NOW, revision=1, last_sequence=9, hidden_count=4,
    )  # fmt: skip
    return Work(context, settings_of({"mode": "all"}, given), "manual", window, **fields)


def talk(turns: int) -> list[Message]:
    """A talk of messages that are longer than the envelope of a summary is."""
    system, *spoken = short_talk(turns)
    return [system, *(msgspec.structs.replace(m, content=(*m.content, Text(" and so on" * 9))) for m in spoken)]


def scripted(*turns: Say, script: Reply | None = None) -> tuple[Compactor, ScriptedModel]:
    model = ScriptedModel(script or turns)
    return Compactor(Catalog([ScriptedProvider(model)]), SystemClock()), model


def said(request: ModelRequest) -> list[tuple[str, str]]:
    return [(one.role, text_of(one.content)) for one in request.messages]


async def test_the_summary_takes_the_place_of_what_it_stands_for() -> None:
    """The new context is a recompiled system message, the summary as one message, and what is kept."""
    compactor, model = scripted(Say("They counted to twenty."))
    doing = work(talk(20), {"mode": "sliding_window"}, run_id="run-1", step_id="step-1")
    done = await compactor.compact(doing)
    assert done.kept == doing.context.messages[16:]
    assert (done.words, summary_of(text_of(done.summary.content))[0]) == ("They counted to twenty.",) * 2
    summary = done.summary
    assert (summary.role, summary.agent_id, summary.run_id, summary.step_id) == (
        "summary", "agent-1", "run-1", "step-1",
    )  # fmt: skip
    assert (done.system.id, done.hidden_count) == (doing.context.messages[0].id, 19)
    assert "- 19 previous messages are stored in recall memory" in text_of(done.system.content)
    assert (doing.calls, doing.usage.total_tokens) == (1, 15)
    [request] = model.requests
    assert (request.system, request.tools, request.settings) == (PROMPT, (), {"temperature": 0.2})
    lines = [json.loads(line)["said"][:6] for line in text_of(request.messages[0].content).split("\n")]
    assert (len(lines), lines[0], lines[-1]) == (15, "user 0", "user 7")


async def test_an_agent_that_compacts_itself_is_asked_as_always() -> None:
    """Same system text, same tools, same messages, so that the provider has them cached; then the prompt as a user."""
    compactor, model = scripted(Say("Seen."))
    history = [*talk(1), calls("c1"), returns("c1"), *talk(2)[1:]]
    await compactor.compact(work(history, {"mode": "self_compact_all"}, tools=(LOOK,), window=300))
    [request] = model.requests
    assert (request.system, [t.name for t in request.tools], request.tool_choice) == ("You are.", ["look"], "none")
    assert list(request.messages[:-1]) == history[1:]
    assert said(request)[-1] == ("user", SELF_PROMPT)


async def test_prompt_and_acknowledgement() -> None:
    """The caller's own prompt is used as it is; the acknowledgement goes before the conversation."""
    compactor, model = scripted(Say("Short."))
    await compactor.compact(work(talk(9), {"prompt": "Three words.", "prompt_acknowledgement": True}))
    [request] = model.requests
    assert request.system == "Three words."
    assert [role for role, _ in said(request)] == ["user", "assistant", "user"]
    assert said(request)[1][1] == ACKNOWLEDGED


async def test_a_light_model_of_the_same_provider_is_asked_if_it_has_one() -> None:
    """Without a name in the settings; the agent's own settings are not meant for it."""
    small = ScriptedModel([Say("Light.")], SMALL)
    large = ScriptedModel([Say("Heavy.")], LARGE)
    models = Catalog([ScriptedProvider(large, small, name="openai")])
    doing = work(talk(9), {"model_settings": {"max_output_tokens": 99, "effort": None}}, model="openai/large")
    done = await Compactor(models, SystemClock()).compact(doing)
    assert (done.words, doing.info) == ("Light.", SMALL)
    assert small.requests[0].settings == {"max_output_tokens": 99}
    named = work(talk(9), {"model": "openai/large"}, model="openai/large")
    assert (await Compactor(models, SystemClock()).compact(named)).words == "Heavy."


async def test_a_named_summariser_must_exist() -> None:
    """An unknown model is told, not replaced."""
    compactor, _ = scripted()
    with pytest.raises(NotFound, match="has no model"):
        await compactor.compact(work(talk(9), {"model": "scripted/none"}))


async def test_a_summariser_with_a_smaller_window_gets_less() -> None:
    """The transcript is offered as long as the summariser may take it, and shorter each time it says no."""
    small = ScriptedModel([Say(fail=ContextOverflow("Too long."))] * 2 + [Say("Enough.")], SMALL)
    models = Catalog([ScriptedProvider(ScriptedModel([], LARGE), small, name="openai")])
    history = [*talk(1), *(message("user", "word " * 500) for _ in range(20))]
    done = await Compactor(models, SystemClock()).compact(work(history, model="openai/large", window=20_000))
    sent = [len(said(request)[-1][1]) for request in small.requests]
    assert (done.words, sent == sorted(sent, reverse=True), max(sent) < 5 * 2_000) == ("Enough.", True, True)


async def test_a_window_that_is_too_small_for_anything_is_told() -> None:
    """After the last try the provider's own refusal is passed on, and not the chain gone through again."""
    compactor, model = scripted(script=lambda _: Say(fail=ContextOverflow("Too long.")))
    with pytest.raises(ContextOverflow):
        await compactor.compact(work(talk(20), {"mode": "sliding_window"}))
    assert len(model.requests) == 4


async def test_a_request_that_is_refused_is_made_in_another_way() -> None:
    """self_compact_all → self_compact_sliding_window → all."""
    refused, empty = Say(fail=ModelBadRequest("No.")), Say(fail=ModelEmptyResponse("Nothing."))
    compactor, model = scripted(refused, empty, empty, Say("At last."))
    done = await compactor.compact(work(talk(20), {"mode": "self_compact_all"}))
    assert (done.words, [request.system == PROMPT for request in model.requests]) == (
        "At last.", [False, False, False, True],
    )  # fmt: skip


async def test_a_provider_that_is_busy_is_not_asked_again() -> None:
    """Its error is the answer, as for a message."""
    compactor, model = scripted(Say(fail=ModelRateLimited("Slow down.")))
    with pytest.raises(ModelRateLimited):
        await compactor.compact(work(talk(20), {"mode": "self_compact_all"}))
    assert len(model.requests) == 1


async def test_an_answer_of_calls_alone_is_no_summary() -> None:
    """It is asked for once more, and then refused."""
    compactor, model = scripted(script=lambda _: Say(think="Hm."))
    with pytest.raises(ModelEmptyResponse):
        await compactor.compact(work(talk(20)))
    assert len(model.requests) == 2


async def test_a_summary_longer_than_what_it_stands_for_is_refused() -> None:
    """One error, and no endless asking; `clip_chars` makes it short enough."""
    compactor, _ = scripted(Say("word " * 5_000), Say("word " * 5_000))
    with pytest.raises(Invalid) as refusal:
        await compactor.compact(work(talk(30)))
    assert str(refusal.value) == NO_GAIN
    assert (await compactor.compact(work(talk(30), {"clip_chars": 10}))).words == "word word…"


async def test_a_context_that_is_still_too_long_is_compacted_once_more() -> None:
    """What a sliding window leaves above the threshold is summarised as a whole, the first summary with it."""
    compactor, model = scripted(Say("word " * 700), Say("Short."))
    history = [*(message(r, "word " * 60) for _ in range(20) for r in ("user", "assistant"))]
    done = await compactor.compact(work([talk(0)[0], *history], {"mode": "sliding_window"}, window=1_100))
    assert (done.words, done.kept, done.hidden_count) == ("Short.", [], 44)
    [(_, again)] = said(model.requests[1])
    assert again.startswith('{"from": "summary of what was before", "said": "word word')


async def test_a_context_that_cannot_get_fewer_messages_is_refused_before_a_model_is_paid() -> None:
    """A summary of one message is no gain for somebody who counts messages."""
    compactor, model = scripted()
    for history in (talk(0), talk(1)[:2]):
        with pytest.raises(Invalid, match="nothing to compact"):
            await compactor.compact(work(history, fewer=True))
    assert model.requests == []


async def test_a_correction_changes_when_a_context_is_too_long() -> None:
    """A model that counts twice as many tokens as estimated keeps half as many messages."""
    compactor, _ = scripted(script=lambda _: Say("Ok."))
    settled = work(talk(300), {"mode": "sliding_window"}, window=3_000)
    doubled = work(talk(300), {"mode": "sliding_window"}, window=3_000, correction=Correction(2.0, 1))
    kept = [len((await compactor.compact(doing)).kept) for doing in (settled, doubled)]
    assert kept[1] < kept[0]


@settings(max_examples=60, deadline=None)
@given(histories, st.sampled_from(["all", "sliding_window", "self_compact_all"]), st.integers(0, 400), st.booleans())
async def test_compacting_again_and_again_comes_to_an_end(
    history: list[Message], mode: str, length: int, fewer: bool
) -> None:
    """Whatever was said and whatever the model answers: strictly less and a valid context, or one error.

    Less is counted in tokens behind the system message, or in messages where that is the aim.
    """
    compactor, model = scripted(script=lambda _: Say("x y " * length or "z"))
    doing = work(history, {"mode": mode}, window=400, fewer=fewer)
    rounds, before = 0, sum(sizes(history))
    while True:
        try:
            done = await compactor.compact(doing)
        except Invalid:
            break
        check(doing, done)
        doing = work([done.system, done.summary, *done.kept], {"mode": mode}, window=400, fewer=fewer)
        rounds += 1
    assert rounds <= before
    assert len(model.requests) <= 6 * (rounds + 1)


def check(doing: Work, done: Compacted) -> None:
    """It is less, no pair is parted, and the request that waits stays."""
    before = doing.context.messages
    assert list(done.kept) == before[len(before) - len(done.kept) :]
    assert not answered_across(before, len(before) - len(done.kept))
    if before[-1].role == "approval" and before[-1].tool_calls:
        assert done.kept[-1] is before[-1]
    if doing.fewer:
        assert 2 + len(done.kept) < len(before)
    else:
        assert sum(sizes([done.summary, *done.kept])) < sum(sizes(before[1:]))
