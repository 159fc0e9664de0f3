"""The official SDK as the oracle: the same bytes give the same answer and the same class of error."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from hearing import INFO, KEY, hear
from twin import Reply, Twin, body, call, counted, delta, refusal, streamed

from perdure.domain.errors import (
    ContextOverflow,
    ModelAuthentication,
    ModelBadRequest,
    ModelError,
    ModelOutOfCredits,
    ModelRateLimited,
)
from perdure.domain.messages import Reasoning
from perdure.models.openai import OpenAIProvider

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Told:
    """An answer in the words that both sides know."""

    text: str
    thoughts: str
    calls: list[tuple[str, str, str]]
    finish: str
    tokens: tuple[int, int, int] | None
    details: tuple[int | None, int | None]


@pytest.fixture
async def sdk(twin: Twin) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=twin.base_url, api_key=KEY, max_retries=0) as client:
        yield client


async def by_sdk(client: openai.AsyncOpenAI) -> Told:
    """What the SDK's own accumulator makes of a stream."""
    hello: Any = [{"role": "user", "content": "Hi"}]
    async with client.chat.completions.stream(model="m", messages=hello) as stream:
        async for _ in stream:
            pass
        whole = stream.current_completion_snapshot
    choice = whole.choices[0]
    message, usage, more = choice.message, whole.usage, choice.message.model_extra or {}
    made = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    prompt, completion = (usage.prompt_tokens_details, usage.completion_tokens_details) if usage else (None, None)
    return Told(
        message.content or message.refusal or "", more.get("reasoning_content") or more.get("reasoning") or "",
        made, choice.finish_reason,
        (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) if usage else None,
        (prompt.cached_tokens if prompt else None, completion.reasoning_tokens if completion else None),
    )  # fmt: skip


async def by_us(provider: OpenAIProvider, counts: bool) -> Told:
    heard = await hear(provider)
    answer, usage = heard.answer, heard.answer.usage
    thoughts = "".join(part.reasoning for part in answer.content if isinstance(part, Reasoning))
    assert thoughts == heard.thoughts
    assert heard.calls == [(made.id, made.name, made.arguments) for made in answer.tool_calls]
    return Told(
        heard.text, thoughts, heard.calls, answer.finish,
        (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) if counts else None,
        (usage.cached_input_tokens, usage.reasoning_tokens),
    )  # fmt: skip


OPENAI = streamed(
    delta(role="assistant", content="", refusal=None), delta(content="Grüße"), delta(content=", "),
    delta(content="🙂!"), delta("stop"),
    counted(19, 10, prompt_tokens_details={"cached_tokens": 8, "audio_tokens": 0},
            completion_tokens_details={"reasoning_tokens": 4, "accepted_prediction_tokens": 0}),
)  # fmt: skip
CALLS = streamed(
    delta(role="assistant", content=None),
    delta(tool_calls=[call(0, "call_a", "roll", "")]), delta(tool_calls=[call(0, arguments='{"n"')]),
    delta(tool_calls=[call(0, arguments=": 6}")]), delta(tool_calls=[call(1, "call_b", "look", "")]),
    delta(tool_calls=[call(1, arguments="{}")]), delta("tool_calls"), counted(80, 30),
)  # fmt: skip
WORDS_AND_CALL = streamed(
    delta(role="assistant", content="I shall "), delta(content="roll."),
    delta(tool_calls=[call(0, "call_a", "roll", '{"n": 6}')]), delta("tool_calls"), counted(80, 30),
)  # fmt: skip
DEEPSEEK = streamed(
    delta(role="assistant", content=None, reasoning_content=""), delta(content=None, reasoning_content="Let me "),
    delta(content=None, reasoning_content="think."), delta(content="42", reasoning_content=None),
    delta("stop", content="") | {"usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14,
                                           "completion_tokens_details": {"reasoning_tokens": 3}}},
)  # fmt: skip
OPENROUTER = Reply([
    b": OPENROUTER PROCESSING\n\n", b": OPENROUTER PROCESSING\n\n",
    *streamed(delta(role="assistant", content="", reasoning="Hm."), delta(content="Yes"), delta("stop", content=""),
              counted(4, 3)).chunks,
])  # fmt: skip
CRLF = Reply([b"".join(OPENAI.chunks).replace(b"\n", b"\r\n")])
CUT_LENGTH = streamed(delta(role="assistant", content="Once upon"), delta("length"), counted(4, 2))
REFUSED = streamed(delta(role="assistant", refusal="I can't "), delta(refusal="do that."), delta("stop"))
SLICED = Reply([byte for whole in [b"".join(CALLS.chunks)] for byte in (whole[i : i + 7] for i in range(0, 2000, 7))])


@pytest.mark.parametrize(
    "reply", [OPENAI, CALLS, WORDS_AND_CALL, DEEPSEEK, OPENROUTER, CRLF, CUT_LENGTH, REFUSED, SLICED],
    ids=["openai", "calls", "words and call", "deepseek", "openrouter", "crlf", "length", "refusal", "in slices"],
)  # fmt: skip
async def test_same_answer(reply: Reply, twin: Twin, sdk: openai.AsyncOpenAI, provider: OpenAIProvider) -> None:
    """Text, thoughts, calls, end and count are those that the SDK reads from the same bytes."""
    twin.play(reply)
    theirs = await by_sdk(sdk)
    assert await by_us(provider, counts=theirs.tokens is not None) == theirs
    assert theirs.text or theirs.calls


ERRORS = [
    (refusal(400, "bad field"), openai.BadRequestError, ModelBadRequest),
    (refusal(400, "too long", code="context_length_exceeded"), openai.BadRequestError, ContextOverflow),
    (refusal(401, "Incorrect API key"), openai.AuthenticationError, ModelAuthentication),
    (refusal(402, "Insufficient credits"), openai.APIStatusError, ModelOutOfCredits),
    (refusal(403, "no"), openai.PermissionDeniedError, ModelAuthentication),
    (refusal(404, "no such model"), openai.NotFoundError, ModelBadRequest),
    (refusal(422, "bad"), openai.UnprocessableEntityError, ModelBadRequest),
    (refusal(429, "slow down", code="rate_limit_exceeded"), openai.RateLimitError, ModelRateLimited),
    (refusal(429, "check your plan", code="insufficient_quota"), openai.RateLimitError, ModelOutOfCredits),
    (refusal(500, "boom"), openai.InternalServerError, ModelError),
    (body(b"<html>oops</html>", 500, {"content-type": "text/html"}), openai.InternalServerError, ModelError),
    (streamed(delta(content="Hel"), {"error": {"message": "boom"}}), openai.APIError, ModelError),
]


@pytest.mark.parametrize(("reply", "theirs", "ours"), ERRORS)
async def test_same_error(
    reply: Reply, theirs: type[Exception], ours: type[ModelError], twin: Twin, sdk: openai.AsyncOpenAI,
    provider: OpenAIProvider,
) -> None:  # fmt: skip
    """Where the SDK raises one of its errors, we raise the one that stands for it in our tree, in the same words."""
    twin.play(reply)
    with pytest.raises(openai.APIError) as raised_there:
        await by_sdk(sdk)
    with pytest.raises(ModelError) as raised_here:
        await hear(provider)
    assert type(raised_there.value) is theirs
    assert type(raised_here.value) is ours
    if isinstance(raised_there.value.body, dict):
        assert raised_here.value.detail == raised_there.value.body["message"]


async def test_same_request(twin: Twin, sdk: openai.AsyncOpenAI, provider: OpenAIProvider) -> None:
    """Path, key and body are those of the SDK, but for our wish to be told the usage."""
    twin.play(OPENAI)
    await by_sdk(sdk)
    await hear(provider.open(INFO))
    theirs, ours = twin.asked
    assert (ours.method, ours.path) == (theirs.method, theirs.path) == ("POST", "/v1/chat/completions")
    assert ours.headers["authorization"] == theirs.headers["authorization"] == f"Bearer {KEY}"
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert ours.json == theirs.json | {"stream_options": {"include_usage": True}}
