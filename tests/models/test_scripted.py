"""The scripted model, which other tests rely on: it plays what it is told and keeps what it was asked."""

import asyncio
from contextlib import aclosing

import pytest
from hearing import asking, fails, hear, message, pieces_of

from perdure.domain.errors import ModelEmptyResponse, ModelError, ModelRateLimited
from perdure.domain.messages import OmittedReasoning, Reasoning, RedactedReasoning, Text, ToolCall, Usage
from perdure.domain.ports import CallPiece, HiddenPiece, ReasoningPiece, TextPiece
from perdure.models.scripted import Call, Say, ScriptedModel, ScriptedProvider

pytestmark = pytest.mark.anyio


async def test_plays_turns_in_order() -> None:
    """One turn for each call; words come in the chunks that were given."""
    model = ScriptedModel([Say("One."), Say(["Tw", "o."])])
    assert (await hear(model)).fragments == [TextPiece("One.")]
    assert (await hear(model)).fragments == [TextPiece("Tw"), TextPiece("o.")]
    model.assert_done()


async def test_everything_a_turn_can_say() -> None:
    """Hidden thoughts, thoughts, words, calls: in this order, in fragments and in the answer."""
    calls = [Call("roll", {"n": 6}), Call("look", raw="{oops", id="mine")]
    heard = await hear(ScriptedModel([Say("Hi.", think=["H", "m."], calls=calls, sealed="x", usage=Usage(1, 2, 3))]))
    assert heard.fragments == [
        HiddenPiece("x"), ReasoningPiece("H"), ReasoningPiece("m."), TextPiece("Hi."),
        CallPiece("call_1", "roll", None), CallPiece("call_1", None, '{"n":6}'),
        CallPiece("mine", "look", None), CallPiece("mine", None, "{oops"),
    ]  # fmt: skip
    assert heard.answer.content == (RedactedReasoning("x"), Reasoning("Hm."), Text("Hi."))
    assert heard.answer.tool_calls == (ToolCall("call_1", "roll", '{"n":6}'), ToolCall("mine", "look", "{oops"))
    assert (heard.answer.finish, heard.answer.usage) == ("tool_calls", Usage(1, 2, 3))


async def test_omitted_thoughts_and_a_reason_to_end() -> None:
    """A turn can end for another reason than being over."""
    heard = await hear(ScriptedModel([Say("Once upon", omitted=True, finish="length")]))
    assert heard.fragments[0] == HiddenPiece(None)
    assert heard.answer.content == (OmittedReasoning(), Text("Once upon"))
    assert heard.answer.finish == "length"


async def test_keeps_what_it_was_asked() -> None:
    """Requests are kept in order, also those that failed."""
    model = ScriptedModel([Say(fail=ModelRateLimited("slow down")), Say("Hi.")])
    first, second = asking(message(text="a")), asking(message(text="b"))
    await fails(model, first)
    await hear(model, second)
    assert model.requests == [first, second]


async def test_unplayed_turns_are_an_error() -> None:
    """A test that expected more calls fails, and so does one that expected fewer."""
    model = ScriptedModel()
    model.play(Say("One."), Say("Two."))
    await hear(model)
    with pytest.raises(AssertionError, match="1 turns of the script were not played"):
        model.assert_done()
    await hear(model)
    with pytest.raises(AssertionError, match="the script has no turn for request 3"):
        await hear(model)


async def test_a_function_answers_as_it_likes() -> None:
    """The function form sees each request."""
    model = ScriptedModel(lambda request: Say(f"You are {request.system}"))
    assert (await hear(model, asking(system="kind."))).text == "You are kind."
    model.assert_done()


async def test_failures_before_and_after_the_words() -> None:
    """`fail` comes before the first piece, `break_off` after the last fragment instead of the answer."""
    model = ScriptedModel([Say("Hi.", fail=ModelError("before")), Say("Hi.", break_off=ModelError("after"))])
    assert str(await fails(model)) == "before"
    stream = pieces_of(model)
    assert await anext(stream) == TextPiece("Hi.")
    with pytest.raises(ModelError, match="after"):
        await anext(stream)


async def test_an_empty_turn_is_an_empty_answer() -> None:
    """As with a real model."""
    assert type(await fails(ScriptedModel([Say()]))) is ModelEmptyResponse


async def test_a_gate_holds_the_turn() -> None:
    """Nothing is said until the test opens the gate."""
    gate = asyncio.Event()
    model = ScriptedModel([Say("Hi.", gate=gate)])
    answering = asyncio.create_task(hear(model))
    await asyncio.sleep(0)
    assert model.requests
    assert not answering.done()
    gate.set()
    assert (await answering).text == "Hi."


async def test_a_hanging_turn_can_be_cancelled() -> None:
    """A model that never answers goes away when its caller does."""
    model = ScriptedModel([Say("never", hang=True)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), aclosing(pieces_of(model)) as stream:
            await anext(stream)
    model.assert_done()


async def test_the_provider_offers_its_models() -> None:
    """`scripted/model` unless others are given; an opened one has the agent's window."""
    provider = ScriptedProvider()
    (info,) = await provider.list_models()
    assert info.handle == "scripted/model"
    assert provider.open(info) is provider.model
