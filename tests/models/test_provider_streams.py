"""Answers on their way: how they end, well or badly, and what becomes of the connection."""

import asyncio
import json
import sys
from typing import Any

import pytest
from hearing import INFO, asking, fails, hear, message, pieces_of
from twin import HELLO, JSON, SSE, Reply, Twin, body, delta, events, refusal, streamed

from perdure.domain.errors import (
    ModelEmptyResponse,
    ModelError,
    ModelOverloaded,
    ModelRateLimited,
    ModelTimeout,
)
from perdure.domain.ports import TextPiece
from perdure.models.openai import OpenAIProvider

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "reply",
    [Reply(end="mute"), Reply(end="hang"), Reply(events(delta(content="Hel"), done=False), end="hang")],
    ids=["from the start", "after the headers", "amid"],
)
async def test_a_provider_that_stops_talking(reply: Reply, twin: Twin) -> None:
    """Silence longer than the idle time ends the call, before the first word or after, and is not tried again."""
    twin.play(reply)
    provider = OpenAIProvider("twin", twin.base_url, None, idle=0.1)
    error = await fails(provider)
    assert type(error) is ModelTimeout
    assert str(error) == "twin did not answer in time. Send again, or use a faster model."
    assert len(twin.asked) == 1
    await provider.close()
    async with asyncio.timeout(5):
        await twin.left.wait()


class Comments:
    """Keep-alives without end."""

    def __iter__(self) -> Any:
        while True:
            yield b": still thinking\n\n"


async def test_a_provider_that_only_keeps_the_line_open(twin: Twin) -> None:
    """Comments are no answer: after the idle time they count as silence."""
    twin.play(Reply(Comments()))
    provider = OpenAIProvider("twin", twin.base_url, None, idle=0.1)
    error = await fails(provider)
    assert type(error) is ModelTimeout
    assert str(error) == "twin keeps the line open and says nothing. Send again."
    await provider.close()


async def test_a_stream_that_breaks_is_not_begun_again(twin: Twin, provider: OpenAIProvider) -> None:
    """After the first fragment a retry would say it twice; the failure is told instead."""
    twin.play(Reply(events(delta(content="Hel"), done=False), end="cut"), HELLO)
    stream = pieces_of(provider.open(INFO))
    assert await anext(stream) == TextPiece("Hel")
    with pytest.raises(ModelError, match="connection to twin broke off"):
        await anext(stream)
    assert len(twin.asked) == 1


async def test_a_stream_that_ends_too_early(twin: Twin, provider: OpenAIProvider) -> None:
    """A proper end of the body without an end of the answer is a lost answer."""
    twin.play(streamed(delta(content="Hel"), done=False))
    assert "cut its answer off" in str(await fails(provider))
    twin.play(Reply([*events(delta(content="Hel"), done=False), b'data: {"choices": [{"del']))
    assert "cut its answer off" in str(await fails(provider))


@pytest.mark.parametrize(
    "last", [b"data: [DONE]", b'data: {"choices": [{"delta": {"content": "!"}, "finish_reason": "stop"}]}']
)
async def test_a_last_event_needs_no_blank_line(last: bytes, twin: Twin, provider: OpenAIProvider) -> None:
    """Some servers close the line right after the last event."""
    twin.play(Reply([*events(delta(content="Hello"), done=False), last]))
    assert (await hear(provider)).text in ("Hello", "Hello!")


async def test_an_error_as_the_last_words(twin: Twin, provider: OpenAIProvider) -> None:
    """An error object that nothing follows, not even a line end, is the error that is told."""
    twin.play(Reply([b'data: {"error": {"message": "boom", "code": 503}}']))
    error = await fails(provider)
    assert (type(error), error.detail) == (ModelOverloaded, "boom")


async def test_garbage_amid_a_stream(twin: Twin, provider: OpenAIProvider) -> None:
    """An event that is no JSON ends the answer, and shows itself."""
    twin.play(streamed(delta(content="Hel"), "{oops"))
    error = await fails(provider)
    assert "not its protocol" in str(error)
    assert error.detail == "{oops"


async def test_an_empty_answer(twin: Twin, provider: OpenAIProvider) -> None:
    """Neither words nor calls: an error of its own kind, so that the loop may ask once more."""
    twin.play(streamed(delta("stop")))
    assert type(await fails(provider)) is ModelEmptyResponse


async def test_large_events(twin: Twin, provider: OpenAIProvider) -> None:
    """Ten megabytes in one event are an answer; twenty are an attack."""
    twin.play(streamed(delta("stop", content="x" * 10 * 2**20)))
    assert len((await hear(provider)).text) == 10 * 2**20
    twin.play(streamed(delta("stop", content="x" * 20 * 2**20)))
    assert "an event of more than 16777216 bytes" in str(await fails(provider))
    twin.play(body({"choices": [{"message": {"content": "x" * 20 * 2**20}}]}))
    assert "more than 16777216 bytes at once" in str(await fails(provider))


# --- connections -------------------------------------------------------------------------------------------------


async def test_closing_the_stream_closes_the_connection(twin: Twin, provider: OpenAIProvider) -> None:
    """Who cancels a run stops the model: the server sees the line close, not only we."""
    twin.play(Reply(events(delta(content="Hel"), done=False), end="hang"))
    stream = pieces_of(provider.open(INFO))
    assert await anext(stream) == TextPiece("Hel")
    assert not twin.left.is_set()
    await stream.aclose()
    async with asyncio.timeout(5):
        await twin.left.wait()


async def test_closing_the_stream_leaves_nothing_to_the_collector(twin: Twin, provider: OpenAIProvider) -> None:
    """It is closed when `aclose` returns, not when the interpreter finds the time."""
    twin.play(Reply(events(delta(content="Hel"), done=False), end="hang"))
    before, abandoned = sys.get_asyncgen_hooks(), list[Any]()
    sys.set_asyncgen_hooks(finalizer=abandoned.append)
    try:
        stream = pieces_of(provider.open(INFO))
        await anext(stream)
        await stream.aclose()
    finally:
        sys.set_asyncgen_hooks(*before)
    assert abandoned == []


async def test_cancelling_closes_the_connection(twin: Twin, provider: OpenAIProvider) -> None:
    """So does cancelling whoever waits for the first word."""
    twin.play(Reply(end="hang"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await hear(provider)
    async with asyncio.timeout(5):
        await twin.left.wait()


async def test_a_line_left_open_after_the_last_word(twin: Twin, provider: OpenAIProvider) -> None:
    """`[DONE]` ends the answer even if the server forgets to end the body."""
    twin.play(Reply(HELLO.chunks, end="hang"))
    async with asyncio.timeout(0.9):  # less than the idle time
        assert (await hear(provider)).text == "Hello"


async def test_a_connection_is_used_again(twin: Twin, provider: OpenAIProvider) -> None:
    """One after another, answers and errors come over one connection: no handshake for each."""
    twin.play(Reply(HELLO.chunks, end="late"), refusal(400, "no"), HELLO)
    model = provider.open(INFO)
    await hear(model)
    await fails(provider)
    await hear(model)
    assert len({asked.port for asked in twin.asked}) == 1


async def test_many_at_once(twin: Twin, provider: OpenAIProvider) -> None:
    """A hundred streams run beside each other and each gets its own answer."""
    twin.play(HELLO)
    heard = await asyncio.gather(*(hear(provider) for _ in range(100)))
    assert {one.text for one in heard} == {"Hello"}


async def test_a_large_request(twin: Twin, provider: OpenAIProvider) -> None:
    """A conversation of many megabytes arrives whole, also the second time after a failure."""
    twin.play(refusal(500, "boom"), HELLO)
    await hear(provider, asking(message(text="x" * 5 * 2**20)))
    first, second = (json.loads(asked.body)["messages"][0]["content"] for asked in twin.asked)
    assert first == second == "x" * 5 * 2**20


# --- answers in one piece ----------------------------------------------------------------------------------------

WHOLE = {
    "id": "chatcmpl-1",
    "choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}


@pytest.mark.parametrize("headers", [JSON, SSE, {"content-type": "text/plain"}], ids=["json", "sse", "text"])
async def test_json_instead_of_a_stream(headers: dict[str, str], twin: Twin, provider: OpenAIProvider) -> None:
    """A server that cannot stream sends the whole; its bytes tell, whatever it says they are."""
    pretty = json.dumps(WHOLE, indent=2).encode()
    twin.play(Reply([b"\n\n", pretty[:20], pretty[20:]] if headers is JSON else [pretty], headers=headers))
    heard = await hear(provider)
    assert heard.text == "Hello"
    assert (heard.answer.usage.total_tokens, heard.answer.request_id) == (11, "chatcmpl-1")


@pytest.mark.parametrize("headers", [JSON, {"content-type": "text/plain"}, {}], ids=["json", "text", "none"])
async def test_a_stream_under_another_name(headers: dict[str, str], twin: Twin, provider: OpenAIProvider) -> None:
    """Nor does a stream need the right label."""
    twin.play(Reply(HELLO.chunks, headers=headers))
    assert (await hear(provider)).text == "Hello"


async def test_an_error_in_one_piece(twin: Twin, provider: OpenAIProvider) -> None:
    """An error with status 200 is an error."""
    twin.play(body({"error": {"message": "boom", "code": 429}}))
    assert type(await fails(provider)) is ModelRateLimited


async def test_a_web_page(twin: Twin, provider: OpenAIProvider) -> None:
    """A wrong address often answers, with a page for people."""
    twin.play(body(b"<!doctype html><p>Hi", 200, {"content-type": "text/html"}))
    assert "Check that its address is that of the API" in str(await fails(provider))
