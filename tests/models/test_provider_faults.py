"""What goes wrong on the way to a model and back: each fault has its error, its retries, and its end."""

import asyncio
from typing import Any

import pytest
from hearing import INFO, Pauses, fails, hear
from twin import HELLO, JSON, SSE, Reply, Twin, body, counted, delta, events, refusal, streamed

from perdure.domain.errors import (
    ContextOverflow,
    ModelAuthentication,
    ModelBadRequest,
    ModelError,
    ModelOutOfCredits,
    ModelOverloaded,
    ModelRateLimited,
    ModelTimeout,
)
from perdure.models.faults import fault
from perdure.models.openai import OpenAIProvider

pytestmark = pytest.mark.anyio


AT_ONCE = [
    (refusal(400, "bad field"), ModelBadRequest, "twin answered 400. It refuses the request", "bad field"),
    (refusal(401, "who?"), ModelAuthentication, "check the key", "who?"),
    (refusal(403, "no"), ModelAuthentication, "check the key", "no"),
    (refusal(402, "empty"), ModelOutOfCredits, "top it up", "empty"),
    (refusal(429, "pay", code="insufficient_quota"), ModelOutOfCredits, "top it up", "pay"),
    (refusal(404, "no such model"), ModelBadRequest, "refuses the request", "no such model"),
    (refusal(413, "large"), ContextOverflow, "shorten it", "large"),
    (refusal(400, "x", code="context_length_exceeded"), ContextOverflow, "shorten it", "x"),
    (body({"error": "the prompt is too long: 9 tokens"}, 400), ContextOverflow, "shorten it",
     "the prompt is too long: 9 tokens"),
    (refusal(500, "exceeds the available context size"), ContextOverflow, "shorten it",
     "exceeds the available context size"),
    (body(b"", 418, {}), ModelBadRequest, "twin answered 418", "HTTP 418"),
    (body({"detail": [{"loc": ["model"]}]}, 422), ModelBadRequest, "refuses", "[{'loc': ['model']}]"),
    (body({"error": None, "message": "odd"}, 400), ModelBadRequest, "refuses", "odd"),
    (body(b'{"error":' + b"[" * 9_000 + b"]" * 9_000 + b"}", 400), ModelBadRequest, "refuses", '{"error":[[['),
    (body(b"\xff" * 9_000, 400), ModelBadRequest, "refuses", "\ufffd"),
    (body(b"<html>", 302, {"location": "http://127.0.0.1:9/"}), ModelError, "set the address", "<html>"),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "kind", "advice", "detail"), AT_ONCE)
async def test_a_refusal_is_told_at_once(
    reply: Reply, kind: type[ModelError], advice: str, detail: str, twin: Twin, provider: OpenAIProvider
) -> None:
    """What asking again cannot change is not asked again; the error says what to do and why, in few words."""
    twin.play(reply)
    error = await fails(provider)
    assert type(error) is kind
    assert advice in str(error)
    assert error.detail.startswith(detail)
    assert len(error.detail) <= 2000
    assert len(twin.asked) == 1


def test_an_error_of_any_depth_is_one() -> None:
    """Words that can be decoded and yet not be written out, for their depth, are left out."""
    for depth in range(800, 1010):
        nested = b"[" * depth + b"]" * depth
        assert type(fault(400, nested, "twin")) is ModelBadRequest


async def test_an_error_told_in_pieces(twin: Twin, provider: OpenAIProvider) -> None:
    """The words of an error count wherever the network cut them."""
    twin.play(Reply([b'{"error": {"mess', b'age": "bad ', b'field"}}'], 400, JSON))
    assert (await fails(provider)).detail == "bad field"


@pytest.mark.parametrize("end", ["hang", "cut"])
async def test_an_error_that_is_not_told_to_its_end(end: str, twin: Twin) -> None:
    """The status is known, so the error is; nobody waits long for its words."""
    twin.play(Reply([b"too man"], 400, JSON, end=end))
    provider = OpenAIProvider("twin", twin.base_url, None, idle=0.1)
    error = await fails(provider)
    assert type(error) is ModelBadRequest
    assert error.detail in ("too man", "HTTP 400")
    await provider.close()


async def test_an_endless_error(twin: Twin, provider: OpenAIProvider) -> None:
    """Of an error's body only the beginning is read."""
    twin.play(Reply((b"x" * 2**16 for _ in iter(int, 1)), 400, JSON))
    async with asyncio.timeout(3):
        assert (await fails(provider)).detail == "x" * 2000


@pytest.mark.parametrize(
    ("headers", "pause"),
    [({"retry-after": "7"}, 7.0), ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5), ({"retry-after": "0"}, 0.0)],
)
async def test_a_busy_provider_is_asked_again_when_it_says(
    headers: dict[str, str], pause: float, twin: Twin, provider: OpenAIProvider, pauses: Pauses
) -> None:
    """429 with a pause it asks for, then success: the caller sees an answer that came late."""
    twin.play(refusal(429, "slow down", headers), HELLO)
    assert (await hear(provider)).text == "Hello"
    assert pauses.seconds == [pause]


@pytest.mark.parametrize("asked", ["", "nan", "-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_a_pause_that_is_none_is_replaced_by_ours(
    asked: str, twin: Twin, provider: OpenAIProvider, pauses: Pauses
) -> None:
    """Without a usable wish the pauses are short and grow."""
    twin.play(*[refusal(429, "slow down", {"retry-after": asked})] * 2, HELLO)
    assert (await hear(provider)).text == "Hello"
    first, second = pauses.seconds
    assert 0.1 <= first <= 0.3
    assert 0.2 <= second <= 0.6


@pytest.mark.parametrize("asked", ["60", "inf", "1e300"])
async def test_a_long_pause_is_not_waited_for(asked: str, twin: Twin, provider: OpenAIProvider, pauses: Pauses) -> None:
    """Asked to come back in a minute, we tell the caller now instead of asking too early."""
    twin.play(refusal(429, "slow down", {"retry-after": asked}))
    assert type(await fails(provider)) is ModelRateLimited
    assert (len(twin.asked), pauses.seconds) == (1, [])


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, ModelRateLimited), (500, ModelError), (502, ModelError), (503, ModelOverloaded), (504, ModelTimeout),
     (529, ModelOverloaded)],
)  # fmt: skip
async def test_a_failing_provider_is_asked_three_times(
    status: int, kind: type[ModelError], twin: Twin, provider: OpenAIProvider, pauses: Pauses
) -> None:
    """Two more tries, then the error of the last one."""
    twin.play(refusal(status, "boom"))
    error = await fails(provider)
    assert (type(error), error.detail) == (kind, "boom")
    assert (len(twin.asked), len(pauses.seconds)) == (3, 2)


async def test_a_provider_that_is_not_there(twin: Twin, pauses: Pauses) -> None:
    """A refused connection is tried again, then told with the address to check."""
    url = twin.base_url
    await twin.server.close()
    provider = OpenAIProvider("gone", url, None, sleep=pauses)
    error = await fails(provider)
    assert str(error) == f"gone cannot be reached at {url}. Check that it runs and that the address is right."
    assert len(pauses.seconds) == 2
    await provider.close()


async def test_a_provider_that_hangs_up(twin: Twin, provider: OpenAIProvider) -> None:
    """A line that drops before the first byte of an answer is tried again; after it, that was the answer."""
    twin.play(Reply(end="drop"), HELLO)
    assert (await hear(provider)).text == "Hello"
    assert len(twin.asked) == 2
    twin.play(Reply(end="cut"), HELLO)
    assert str(await fails(provider)) == "The connection to twin broke off. Send again."


async def test_a_compressed_answer_is_refused(twin: Twin, provider: OpenAIProvider) -> None:
    """Compression is declined; an answer that comes compressed all the same could unfold to anything."""
    twin.play(Reply([b"\x1f\x8b"], headers={**SSE, "content-encoding": "gzip"}))
    assert "Switch compression off there" in str(await fails(provider))
    assert twin.asked[0].headers["accept-encoding"] == "identity"


async def test_a_redirect_is_not_followed(twin: Twin, provider: OpenAIProvider) -> None:
    """A key goes to the address that was configured and nowhere else."""
    twin.play(Reply(status=307, headers={"location": f"{twin.base_url}/elsewhere"}), HELLO)
    assert str(await fails(provider)) == (
        "twin answered 307. It sends callers elsewhere; set the address of this provider to the right place."
    )
    assert [asked.path for asked in twin.asked] == ["/v1/chat/completions"]


async def test_stream_options_are_offered_once(twin: Twin, provider: OpenAIProvider) -> None:
    """A server that refuses to count is asked again without, at once, and never offered it again."""
    twin.play(refusal(400, "Unrecognized request argument: stream_options"), HELLO)
    model = provider.open(INFO)
    assert (await hear(model)).text == "Hello"
    assert (await hear(model)).text == "Hello"
    assert ["stream_options" in asked.json for asked in twin.asked] == [True, False, False]


async def test_stream_options_refused_in_the_middle_are_an_error(twin: Twin, provider: OpenAIProvider) -> None:
    """Once words went out the request is not sent again, whatever the error says."""
    twin.play(streamed(delta(content="Hel"), {"error": {"code": 400, "message": "stream_options"}}))
    assert type(await fails(provider)) is ModelBadRequest
    assert len(twin.asked) == 1


# --- after the finish --------------------------------------------------------------------------------------------

SAID = events(delta(content="Hello"), delta("stop"), done=False)


@pytest.mark.parametrize("end", ["cut", "hang"])
async def test_a_whole_answer_is_kept(end: str, twin: Twin) -> None:
    """After the finish only a count can follow: neither a dropped line nor silence costs the answer then."""
    twin.play(Reply(SAID, end=end))
    provider = OpenAIProvider("twin", twin.base_url, None, idle=0.1)
    assert (await hear(provider)).text == "Hello"
    await provider.close()


async def test_comments_after_a_whole_answer(twin: Twin) -> None:
    """Nor do comments without end, which are given up as silence is."""
    twin.play(Reply(chunk for chunks in (SAID, (b": still here\n\n" for _ in iter(int, 1))) for chunk in chunks))
    provider = OpenAIProvider("twin", twin.base_url, None, idle=0.1)
    async with asyncio.timeout(3):
        assert (await hear(provider)).text == "Hello"
    await provider.close()


async def test_the_count_after_the_finish(twin: Twin, provider: OpenAIProvider) -> None:
    """The count comes after the finish and is waited for."""
    twin.play(Reply([*SAID, *events(counted(7, 2))], end="late"))
    assert (await hear(provider)).answer.usage.total_tokens == 9


@pytest.mark.parametrize(
    "said",
    [
        [delta("stop", content="Hel")],
        [delta("stop", content="Hel"), delta("stop", content="lo")],
        [delta("stop"), delta(content="Hel")],
    ],
)
async def test_a_finish_that_comes_with_words_is_not_trusted(
    said: list[Any], twin: Twin, provider: OpenAIProvider
) -> None:
    """Some servers tell a finish with every fragment: if the line drops then, nobody knows what is missing."""
    twin.play(Reply(events(*said, done=False), end="cut"))
    assert str(await fails(provider)) == "The connection to twin broke off. Send again."


async def test_words_that_are_no_events(twin: Twin, provider: OpenAIProvider) -> None:
    """A gateway's own words in place of events are quoted; beside a whole answer they do not matter."""
    twin.play(body(b"upstream connect error\n", 200, {"content-type": "text/plain"}))
    error = await fails(provider)
    assert ("not its protocol" in str(error), error.detail) == (True, "upstream connect error")
    twin.play(Reply([*events(delta(content="Hel"), done=False), b"upstream gave up\n"]))
    assert (await fails(provider)).detail == "upstream gave up"
    twin.play(Reply([*SAID, b"bye\n"]))
    assert (await hear(provider)).text == "Hello"
