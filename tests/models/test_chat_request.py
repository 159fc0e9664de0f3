"""Histories as Chat Completions messages: literal bodies, and no history that has none."""

import gc
import json
import weakref
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hearing import asking, message
from hypothesis import given
from hypothesis import strategies as st

from perdure.domain.messages import (
    Approval,
    Image,
    Message,
    OmittedReasoning,
    Reasoning,
    RedactedReasoning,
    SummarizedReasoning,
    Text,
    ToolCall,
    ToolReturn,
)
from perdure.models.chat_request import Dialect, Encoder

CAT = Image("image/png", "AAAA", "file-1")
CAT_IN_DETAIL = Image("image/png", "AAAA", "file-1", "high")
CAT_URL = "data:image/png;base64,AAAA"
TIME = "2026-01-02 03:04:05 AM UTC+0000"
ROLL = ToolCall("call_1", "roll", '{"n": 6}')
LOOK = ToolCall("call_2", "look", "{}")


def messages_of(*messages: Message, **fields: Any) -> Any:
    """The messages of the body, decoded."""
    return json.loads(Encoder().body(asking(*messages, **fields), Dialect()))["messages"]


def wire(call: ToolCall, id: str | None = None) -> Any:
    return {"id": id or call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def packaged(shown: Any, status: str = "OK", id: str = "call_1", time: str = TIME) -> Any:
    content = json.dumps({"status": status, "message": shown, "time": time}, ensure_ascii=False)
    return {"role": "tool", "tool_call_id": id, "content": content}


def returning(content: Any, **fields: Any) -> Message:
    return message("tool", tool_returns=(ToolReturn("call_1", content, **fields),))


HISTORIES: dict[str, tuple[list[Message], list[Any]]] = {
    "words": ([message(text="Hi")], [{"role": "user", "content": "Hi"}]),
    "no words": ([message()], [{"role": "user", "content": ""}]),
    "several parts": (
        [message(content=(Text("a"), Text("b")))],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    ),
    "an image": (
        [message(content=(Text("See:"), CAT, CAT_IN_DETAIL))],
        [{"role": "user", "content": [
            {"type": "text", "text": "See:"},
            {"type": "image_url", "image_url": {"url": CAT_URL, "detail": "auto"}},
            {"type": "image_url", "image_url": {"url": CAT_URL, "detail": "high"}}]}],
    ),
    "a name": ([message(text="Hi", name="Ann-1")], [{"role": "user", "content": "Hi", "name": "Ann-1"}]),
    "a name this wire refuses": ([message(text="Hi", name="Ann B.")], [{"role": "user", "content": "Hi"}]),
    "a summary": ([message("summary", '{"type":"system_alert"}')],
                  [{"role": "user", "content": '{"type":"system_alert"}'}]),
    "a system message amid": (
        [message(text="Hi"), message("system", "Be brief."), message("assistant", "Hm.")],
        [{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."},
         {"role": "assistant", "content": "Hm."}],
    ),
    "words and a call": (
        [message("assistant", "Rolling.", tool_calls=(ROLL,))],
        [{"role": "assistant", "content": "Rolling.", "tool_calls": [wire(ROLL)]}],
    ),
    "calls alone": (
        [message("assistant", tool_calls=(ROLL, LOOK))],
        [{"role": "assistant", "content": None, "tool_calls": [wire(ROLL), wire(LOOK)]}],
    ),
    "one call twice": (
        [message("assistant", tool_calls=(ROLL, ToolCall("call_1", "other", "{}"), LOOK))],
        [{"role": "assistant", "content": None, "tool_calls": [wire(ROLL), wire(LOOK)]}],
    ),
    "thoughts": (
        [message("assistant", content=(Reasoning("Hm."), RedactedReasoning("x"), OmittedReasoning(),
                                       SummarizedReasoning("r"), Text("Yes")))],
        [{"role": "assistant", "content": "Yes"}],
    ),
    "thoughts alone": ([message("assistant", content=(Reasoning("Hm."),))], []),
    "a result": ([returning("4")], [packaged("4")]),
    "a failure": ([returning("boom", status="error")], [packaged("boom", "Failed")]),
    "an object stays one": ([returning('{"a": {"b": 1}}')], [packaged({"a": {"b": 1}})]),
    "a list is a string": ([returning("[1]")], [packaged("[1]")]),
    "a broken object is a string": ([returning('{"a": ')], [packaged('{"a": ')]),
    "foreign letters": ([returning("grüße 🙂")], [packaged("grüße 🙂")]),
    "a result with an image": (
        [returning((Text("See: "), CAT))],
        [packaged("See: [image omitted: this model cannot see images in tool results]")],
    ),
    "several results, one twice": (
        [message("tool", tool_returns=(ToolReturn("call_1", "4"), ToolReturn("call_1", "5"), ToolReturn("x", "6")))],
        [packaged("4"), packaged("6", id="x")],
    ),
    "an approval request joins the turn before it": (
        [message("assistant", "Both.", tool_calls=(ROLL,)), message("approval", tool_calls=(LOOK,))],
        [{"role": "assistant", "content": "Both.", "tool_calls": [wire(ROLL), wire(LOOK)]}],
    ),
    "an approval request brings its words along": (
        [message("assistant", "First. "), message("approval", "Then.", tool_calls=(LOOK,))],
        [{"role": "assistant", "content": "First. Then.", "tool_calls": [wire(LOOK)]}],
    ),
    "an approval request alone is a turn": (
        [message(text="Hi"), message("approval", "May I?", tool_calls=(LOOK,))],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "May I?", "tool_calls": [wire(LOOK)]}],
    ),
    "approval answers are not sent": (
        [message("approval", tool_calls=(ROLL,)), message("approval", approvals=(Approval("call_1", True),)),
         returning("4")],
        [{"role": "assistant", "content": None, "tool_calls": [wire(ROLL)]}, packaged("4")],
    ),
    "nothing": ([], []),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
def test_histories(name: str) -> None:
    """Each kind of message has one form on the wire."""
    history, expected = HISTORIES[name]
    request = msgspec.structs.replace(asking(), messages=history)
    assert json.loads(Encoder().body(request, Dialect()))["messages"] == expected


def test_the_system_text_comes_first() -> None:
    """A request's own system text precedes its messages."""
    assert messages_of(message(text="Hi"), system="Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]


def test_long_results_are_cut_with_a_note() -> None:
    """The cap of the request applies to what the model sees; the stored message is as it was."""
    assert messages_of(returning("x" * 50), return_char_cap=10) == [packaged("x" * 10 + "... [truncated 40 chars]")]


def test_results_tell_the_time_of_the_agent() -> None:
    """The time in the envelope is that of the agent's zone; an unknown zone is UTC."""
    berlin = "2026-01-02 04:04:05 AM CET+0100"
    assert messages_of(returning("4"), timezone="Europe/Berlin") == [packaged("4", time=berlin)]
    assert messages_of(returning("4"), timezone="Mars/Olympus") == [packaged("4")]


def test_long_ids_are_cut_alike_in_calls_and_results() -> None:
    """Two ids that differ at their ends only stay two, each the same with the call and with its result."""
    ids = ["functions.get_weather_forecast:0", "functions.get_weather_forecast:1", "i" * 29]
    assistant, *results = messages_of(
        message("assistant", tool_calls=tuple(ToolCall(id, "f", "{}") for id in ids)),
        message("tool", tool_returns=tuple(ToolReturn(id, "4") for id in ids)),
    )
    sent = [call["id"] for call in assistant["tool_calls"]]
    assert sent == [result["tool_call_id"] for result in results]
    assert len(set(sent)) == 3
    assert [len(id) for id in sent] == [29, 29, 29]
    assert sent[0].startswith("functions.get_weathe")
    assert sent[2] == "i" * 29


def test_half_a_character_does_not_stop_an_agent() -> None:
    """A tool may return JSON with half of a surrogate pair; it is sent as a question mark."""
    (sent,) = messages_of(returning('{"a": "\\ud83d"}'))
    assert json.loads(sent["content"])["message"] == {"a": "?"}
    assert messages_of(message(text="\ud83d"), system="\ud83d")[1]["content"] == "?"


texts = st.text(max_size=20)
parts = st.one_of(
    st.builds(Text, texts), st.builds(Image, texts, texts, texts), st.builds(Reasoning, texts),
    st.builds(OmittedReasoning), st.builds(RedactedReasoning, texts),
)  # fmt: skip
odd_messages = st.builds(
    Message,
    id=texts,
    role=st.sampled_from(["system", "user", "assistant", "tool", "approval", "summary"]),
    created_at=st.datetimes(timezones=st.just(UTC), min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1)),
    content=st.lists(parts, max_size=3).map(tuple),
    tool_calls=st.lists(st.builds(ToolCall, texts, texts, texts), max_size=3).map(tuple),
    tool_returns=st.lists(st.builds(ToolReturn, texts, texts), max_size=3).map(tuple),
    approvals=st.lists(st.builds(Approval, texts), max_size=2).map(tuple),
    name=st.none() | texts,
)


@given(st.lists(odd_messages, max_size=5), st.integers(0, 50), texts)
def test_any_history_has_a_body(history: list[Message], cap: int, timezone: str) -> None:
    """Results without calls, calls without results, roles with the wrong fields: the body is JSON all the same."""
    request = msgspec.structs.replace(asking(), messages=history, return_char_cap=cap, timezone=timezone)
    encoder = Encoder()
    first = encoder.body(request, Dialect())
    assert all(isinstance(sent["role"], str) for sent in json.loads(first)["messages"])
    assert encoder.body(request, Dialect()) == first


# --- the encoded form is kept ------------------------------------------------------------------------------------


def test_a_second_body_is_equal_to_the_byte() -> None:
    """Providers cache prefixes: the same messages must be the same bytes, whoever encoded them."""
    history = [sent for messages, _ in HISTORIES.values() for sent in messages]
    encoder, request = Encoder(), asking(*history)
    assert encoder.body(request, Dialect()) == encoder.body(request, Dialect()) == Encoder().body(request, Dialect())


def test_a_kept_form_is_not_used_for_another_zone_or_cap() -> None:
    """One message may be read by agents in several zones and with windows of several sizes."""
    encoder, result = Encoder(), returning("x" * 20)
    bodies = [
        encoder.body(asking(result, timezone=timezone, return_char_cap=cap), Dialect())
        for timezone, cap in [("UTC", 100), ("Asia/Tokyo", 100), ("UTC", 10), ("UTC", 100)]
    ]
    assert [b"UTC+0000" in body for body in bodies] == [True, False, True, True]
    assert [b"[truncated 10 chars]" in body for body in bodies] == [False, False, True, False]
    assert bodies[0] == bodies[3]


def test_messages_are_not_kept_alive() -> None:
    """What was encoded is forgotten with its message, so a long-lived server does not fill up."""
    encoder, said = Encoder(), message(text="Hi")
    encoder.body(asking(said), Dialect())
    gone = weakref.ref(said)
    assert len(encoder._seen) == 1
    del said
    gc.collect()
    assert gone() is None
    assert len(encoder._seen) == 0
