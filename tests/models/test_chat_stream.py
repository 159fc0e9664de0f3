"""Chat Completions events as pieces and one answer: the quirks of servers, and their malice."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twin import call, counted, delta

from perdure.domain.errors import (
    ContextOverflow,
    ModelAuthentication,
    ModelEmptyResponse,
    ModelError,
    ModelOverloaded,
    ModelRateLimited,
)
from perdure.domain.messages import OmittedReasoning, Reasoning, Text, ToolCall, Usage
from perdure.domain.ports import Answer, CallPiece, HiddenPiece, Piece, ReasoningPiece, TextPiece
from perdure.models.chat_stream import Reading


def read(*data: Any, hides: bool = False, prompt_bytes: int = 40, limit: int = 10_000) -> tuple[list[Piece], Answer]:
    """The fragments and the answer of these events; text and bytes are sent as they are."""
    reading = Reading("twin", prompt_bytes, hides=hides, limit=limit)
    encoded = [
        item if isinstance(item, bytes) else (item if isinstance(item, str) else json.dumps(item)).encode()
        for item in data
    ]
    pieces = [piece for event in encoded for piece in reading.read(event)]
    return pieces, reading.answer()


def test_words_in_fragments_make_one_text() -> None:
    """Each fragment goes out at once; the answer holds them joined, with the server's id and count."""
    pieces, answer = read(
        delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"), delta("stop"), counted(9, 2)
    )
    assert pieces == [TextPiece("Hel"), TextPiece("lo")]
    assert answer == Answer(
        content=(Text("Hello"),), tool_calls=(), finish="stop", usage=Usage(9, 2, 11), request_id="chatcmpl-1"
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "reasoning_text"])
def test_thoughts_under_any_of_their_names(name: str) -> None:
    """DeepSeek, vLLM and OpenRouter, LM Studio: three names for the same."""
    pieces, answer = read(delta(**{name: "Hm."}), delta(**{name: " Yes."}), delta(content="Yes"), delta("stop"))
    assert pieces == [ReasoningPiece("Hm."), ReasoningPiece(" Yes."), TextPiece("Yes")]
    assert answer.content == (Reasoning("Hm. Yes."), Text("Yes"))


def test_thoughts_under_two_names_are_told_once() -> None:
    """Some gateways repeat the thoughts under a second name."""
    pieces, _ = read(delta(reasoning="Hm.", reasoning_content="Hm."), delta("stop", content="Yes"))
    assert pieces == [ReasoningPiece("Hm."), TextPiece("Yes")]


def test_a_model_that_thinks_unseen_says_so_once_and_first() -> None:
    """OpenAI's reasoning models do not show their thoughts; their place is marked before everything else."""
    pieces, answer = read(delta(role="assistant"), delta(content="a"), delta("stop", content="b"), hides=True)
    assert pieces == [HiddenPiece(None), TextPiece("a"), TextPiece("b")]
    assert answer.content == (OmittedReasoning(), Text("ab"))


def test_a_refusal_is_what_the_model_says() -> None:
    """A refusal has a field of its own; to a reader it is the answer."""
    assert read(delta(refusal="I will "), delta("stop", refusal="not."))[1].content == (Text("I will not."),)


def test_content_may_be_a_list_of_parts() -> None:
    """Mistral's reasoning models send parts instead of a string; those of kinds we do not know are passed over."""
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Yes"}, {"type": "text"}, 7]
    assert read(delta("stop", content=parts))[1].content == (Text("Yes"),)


@pytest.mark.parametrize(
    ("fragments", "calls"),
    [
        ([call(0, "a", "f", ""), call(0, arguments='{"n":'), call(0, arguments="1}")], [("a", "f", '{"n":1}')]),
        ([call(0, "a", "f", '{"n":1}')], [("a", "f", '{"n":1}')]),
        ([call(0, "a", "f", "{}"), call(1, "b", "g", "{}")], [("a", "f", "{}"), ("b", "g", "{}")]),
        ([call(0, "a", "f", '{"n"'), call(0, "a", "f", ":1}")], [("a", "f", '{"n":1}')]),
        ([call(None, "a", "f", '{"n"'), call(None, arguments=":1}")], [("a", "f", '{"n":1}')]),
        ([call(None, "a", "f", "{"), call(None, "b", "g", "{}"), call(None, "a", arguments="}")],
         [("a", "f", "{}"), ("b", "g", "{}")]),
        ([call(0, "a", "f", "{}"), call(0, "b", "f", "{}")], [("a", "f", "{}"), ("b", "f", "{}")]),
        ([call(0, "a", "f", {"n": 1})], [("a", "f", '{"n":1}')]),
        ([call(0, "a", "f", {})], [("a", "f", "{}")]),
        ([call(0, "a", "f")], [("a", "f", "{}")]),
        ([call(0, "a"), call(0, name="f", arguments="{}")], [("a", "f", "{}")]),
        ([call(5, "a", "f", "{"), call(2, "b", "g", "{}"), call(5, arguments="}")],
         [("a", "f", "{}"), ("b", "g", "{}")]),
    ],
    ids=[
        "in fragments", "whole in one chunk", "two", "id and name repeated", "no index", "no index, told apart by id",
        "index 0 for all (Gemini)", "arguments an object", "arguments an empty object", "no arguments",
        "name after id", "in the order of their beginnings",
    ],
)  # fmt: skip
def test_calls(fragments: Sequence[Any], calls: list[tuple[str, str, str]]) -> None:
    """Every way in which servers tell of calls gives the same calls, in fragments and in the answer."""
    pieces, answer = read(*(delta(tool_calls=[one]) for one in fragments), delta("tool_calls"))
    assert answer.tool_calls == tuple(ToolCall(*one) for one in calls)
    assert answer.finish == "tool_calls"
    told = [piece for piece in pieces if isinstance(piece, CallPiece)]
    for id, name, arguments in calls:
        mine = [piece for piece in told if piece.id == id]
        assert [piece.name for piece in mine if piece.name] == [name]
        assert ("".join(piece.arguments or "" for piece in mine) or "{}") == arguments


def test_calls_without_ids_get_some() -> None:
    """A call needs an id of its own; two without one, or two with the same one, are still two."""
    _, answer = read(delta(tool_calls=[call(0, None, "f", "{}"), call(1, None, "g", "{}")]), delta("tool_calls"))
    assert [made.name for made in answer.tool_calls] == ["f", "g"]
    assert len({made.id for made in answer.tool_calls if made.id.startswith("call_")}) == 2
    _, answer = read(delta(tool_calls=[call(0, "same", "f", "{}"), call(1, "same", "g", "{}")]), delta("tool_calls"))
    assert answer.tool_calls[0].id == "same"
    assert answer.tool_calls[1].id.startswith("call_")


def test_two_calls_without_index_or_id_in_one_chunk() -> None:
    """Ollama once sent neither; then each name begins a call."""
    _, answer = read(delta(tool_calls=[call(None, None, "f", {"n": 1}), call(None, None, "g", {})]), delta("stop"))
    assert [(made.name, made.arguments) for made in answer.tool_calls] == [("f", '{"n":1}'), ("g", "{}")]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}, Usage(9, 2, 11)),
        ({"prompt_tokens": 9, "completion_tokens": 2}, Usage(9, 2, 11)),
        ({"prompt_tokens": 9.0, "completion_tokens": "2"}, Usage(9, 2, 11)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 8},
          "completion_tokens_details": {"reasoning_tokens": 1, "audio_tokens": 0}}, Usage(9, 2, 11, 8, None, 1)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(9, 2, 11)),
        ({"prompt_tokens": 10**30, "completion_tokens": -5}, Usage(2**31 - 1, 0, 2**31 - 1)),
        ({"prompt_tokens": 10**30, "completion_tokens": 7}, Usage(2**31 - 1, 7, 2**31 - 1)),
        (None, Usage(10, 1, 11)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(10, 1, 11)),
        ("many", Usage(10, 1, 11)),
    ],
    ids=["full", "no total", "odd numbers", "details", "null details", "absurd", "absurd in sum", "null", "zeros",
         "no count at all"],
)  # fmt: skip
def test_usage(usage: Any, expected: Usage) -> None:
    """The server's count is the truth; without one the bytes are counted, four to a token (40 sent, 5 said)."""
    assert read(delta("stop", content="Hello") | {"usage": usage})[1].usage == expected


def test_the_last_usage_counts() -> None:
    """Servers that count in every chunk count up; a null at the end takes nothing back."""
    first = delta(content="Hello") | {"usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    last = delta("stop") | {"usage": {"prompt_tokens": 9, "completion_tokens": 2}}
    assert read(first, last, delta() | {"usage": None})[1].usage == Usage(9, 2, 11)


@pytest.mark.parametrize(
    ("told", "finish"), [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos", "stop")]
)
def test_finish(told: str, finish: str) -> None:
    """The reasons that mean something to a loop are passed on; others are an ordinary end."""
    assert read(delta(told, content="Hello"))[1].finish == finish


def test_an_end_without_a_reason_is_an_end() -> None:
    """`[DONE]` alone will do; what comes after it is not read."""
    assert read(delta(content="Hello"), "[DONE]", "garbage")[1].content == (Text("Hello"),)


def test_an_answer_that_stops_in_the_middle_is_none() -> None:
    """Neither a reason nor `[DONE]`: the connection was lost, though it looks closed."""
    with pytest.raises(ModelError, match="twin cut its answer off"):
        read(delta(content="Hel"))


@pytest.mark.parametrize(
    ("finish", "advice"),
    [("stop", "Send again"), ("length", "raise max_output_tokens"), ("content_filter", "change the message")],
)
def test_an_empty_answer_says_what_to_do(finish: str, advice: str) -> None:
    """Thoughts alone are no answer; the error tells why there is none."""
    with pytest.raises(ModelEmptyResponse, match=advice):
        read(delta(finish, reasoning="Hm."))


@pytest.mark.parametrize("event", [{"choices": []}, {"choices": None}, {}, {"x": 1}, " ", ""])
def test_events_without_words_say_nothing(event: Any) -> None:
    """Azure opens with an empty list of choices; keep-alives may have no data at all."""
    assert read(event, delta("stop", content="Hello"), event)[1].content == (Text("Hello"),)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "slow down", "code": 429}, ModelRateLimited),
        ({"message": "slow down", "type": "tokens", "code": "rate_limit_exceeded"}, ModelRateLimited),
        ({"message": "Overloaded", "type": "overloaded_error"}, ModelOverloaded),
        ({"message": "bad key", "type": "authentication_error"}, ModelAuthentication),
        ({"message": "maximum context length is 8192 tokens", "code": None}, ContextOverflow),
        ({"message": "boom", "type": "server_error"}, ModelError),
        ("boom", ModelError),
        (["boom"], ModelError),
        ({"code": "²" * 5000}, ModelError),
        ({"code": "9" * 5000, "status": "12345"}, ModelError),
    ],
)
def test_an_error_among_the_events(error: Any, kind: type[ModelError]) -> None:
    """An error object ends the answer with the error of its kind, whatever was said before."""
    with pytest.raises(ModelError) as raised:
        read(delta(content="Hel"), {"error": error, "choices": []})
    assert type(raised.value) is kind
    assert "twin broke off with an error" in str(raised.value)


def test_an_error_that_is_the_event() -> None:
    """vLLM used to send the bare error object."""
    with pytest.raises(ContextOverflow) as raised:
        read({"object": "error", "message": "This model's maximum context length is 8 tokens.", "code": 400})
    assert raised.value.detail == "This model's maximum context length is 8 tokens."


def test_an_end_by_error_is_no_end() -> None:
    """OpenRouter closes a broken answer with the reason `error`."""
    with pytest.raises(ModelError, match="broke its answer off with an error"):
        read(delta("error", content="Hel"))


@pytest.mark.parametrize(
    "garbage",
    [b"hello", b"[]", b"{", b'{"choices": 1}', b'{"choices": [1]}', b"\xff\xfe", b'{"a":' + b"[" * 100_000,
     b'{"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"choices": [{"finish_reason": 1}]}', b"NaN"],
)  # fmt: skip
def test_garbage_is_an_error_of_ours(garbage: bytes) -> None:
    """Whatever arrives, it raises nothing but a ModelError, which shows the beginning of it."""
    with pytest.raises(ModelError, match="twin sent something that is not its protocol") as raised:
        read(garbage)
    assert len(raised.value.detail) <= 200


@pytest.mark.parametrize(
    ("written", "shown"),
    [(b'"caf\xc3"', "caf\ufffd"), (b'"\\ud83d"', "?"), (b'"\\ud83d\\ude42"', "🙂"), (b'"\xf0\x9f\x99\x82"', "🙂")],
)
def test_bad_unicode_costs_its_characters_only(written: bytes, shown: str) -> None:
    """A character that a server cut in half does not cost the answer."""
    answer = read(b'{"choices": [{"delta": {"content": %b}, "finish_reason": "stop"}]}' % written)[1]
    assert answer.content == (Text(shown),)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["choices", "delta", "message", "content", "tool_calls", "function", "name", "id", "error",
                         "usage", "index", "arguments", "finish_reason", "object", "code", "status"]), inner),
))  # fmt: skip
def test_any_json_is_read_or_refused(value: Any) -> None:
    """No shape of JSON raises anything but a ModelError."""
    with contextlib.suppress(ModelError):
        read(value if not isinstance(value, str) else [value], delta("stop", content="Hello"))


def test_an_answer_has_a_size() -> None:
    """Characters are counted over text, thoughts and calls; and so are fragments, however small."""
    with pytest.raises(ModelError, match="answers without end: more than 1000 characters"):
        read(delta(content="x" * 1001), limit=1000)
    with pytest.raises(ModelError, match="answers without end"):
        read(*[delta(reasoning="x")] * 20, limit=1000)
    with pytest.raises(ModelError, match="answers without end"):
        read(delta(tool_calls=[call(0, "a", "f", "x" * 1001)]), limit=1000)


def test_calls_have_a_number() -> None:
    """Thousands of calls are no answer; as many as there can be tools are one."""
    many = [call(n, f"c{n}", "f", "{}") for n in range(129)]
    assert len(read(delta("tool_calls", tool_calls=many[:128]), limit=10**6)[1].tool_calls) == 128
    with pytest.raises(ModelError, match="more than 128 tool calls at once"):
        read(delta("tool_calls", tool_calls=many), limit=10**6)


def test_ids_have_a_length() -> None:
    """An id stands in every fragment and every record, so an endless one is replaced."""
    answer = read(delta("tool_calls", tool_calls=[call(0, "i" * 1000, "f", "{}")]) | {"id": "r" * 1000})[1]
    assert len(answer.tool_calls[0].id) == 29
    assert answer.request_id == "r" * 256
