"""Stored messages as wire messages: spec §3.2 and §0.4 as a table of literal cases."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from perdure.api.wire import listed, wire_messages
from perdure.domain.messages import (
    Approval,
    Image,
    Message,
    OmittedReasoning,
    Reasoning,
    RedactedReasoning,
    SummarizedReasoning,
    SummaryText,
    Text,
    ToolCall,
    ToolReturn,
)

ID = "message-11111111-1111-4111-8111-1111111111ff"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def message(role: str, **fields: Any) -> Message:
    return Message(id=ID, role=role, created_at=NOW, run_id="run-1", step_id="step-1", **fields)  # type: ignore[arg-type]


def test_every_common_field_is_present_and_null_where_empty() -> None:
    """Null fields are present on the wire (spec §0.2); dates have whole seconds and an offset."""
    (wire,) = wire_messages(message("user", content=(Text("hi"),), otid="o-1"))
    assert wire == {
        "id": ID, "date": "2026-01-02T03:04:05+00:00", "name": None, "message_type": "user_message", "otid": "o-1",
        "sender_id": None, "step_id": "step-1", "is_err": None, "seq_id": None, "run_id": "run-1", "content": "hi",
    }


def test_dates_are_shown_in_utc() -> None:
    """Whatever offset a moment carries, the wire shows +00:00."""
    there = Message(id=ID, role="user", created_at=NOW.astimezone(timezone(timedelta(hours=5))), content=(Text("x"),))
    assert wire_messages(there)[0]["date"] == "2026-01-02T03:04:05+00:00"


def test_parts_of_one_answer_share_the_id_and_count_their_otids() -> None:
    """Reasoning 0, text 1, calls 2: the UUID with its low seven bits replaced (spec §0.4)."""
    content = (Reasoning("why", signature="s"), Text("so"))
    wires = wire_messages(message("assistant", content=content, tool_calls=(ToolCall("c", "t", "{}"),)))
    assert [(w["message_type"], w["otid"]) for w in wires] == [
        ("reasoning_message", "11111111-1111-4111-8111-111111111180"),
        ("assistant_message", "11111111-1111-4111-8111-111111111181"),
        ("tool_call_message", "11111111-1111-4111-8111-111111111182"),
    ]
    assert {w["id"] for w in wires} == {ID}
    assert wires[0]["signature"] == "s"
    assert wires[2]["tool_call"] == {"name": "t", "arguments": "{}", "tool_call_id": "c"}
    assert wires[2]["tool_calls"] == [wires[2]["tool_call"]]


def test_all_forms_of_thought() -> None:
    """Clear, told by an older loop, sealed, omitted, summarized (spec §2, content parts)."""
    parts = (
        Reasoning("a", is_native=False), RedactedReasoning("ZGF0YQ=="), OmittedReasoning(),
        SummarizedReasoning("rs", (SummaryText(0, "one"), SummaryText(1, "two")), "sealed"),
    )
    shown = [
        {k: w.get(k) for k in ("source", "reasoning", "signature", "state", "hidden_reasoning") if k in w}
        for w in wire_messages(message("assistant", content=parts))
    ]
    assert shown == [
        {"source": "non_reasoner_model", "reasoning": "a", "signature": None},
        {"state": "redacted", "hidden_reasoning": "ZGF0YQ=="},
        {"state": "omitted", "hidden_reasoning": None},
        {"source": "reasoner_model", "reasoning": "one\n\ntwo", "signature": "sealed"},
    ]


def test_neighbouring_parts_of_one_kind_are_one_message() -> None:
    """Several texts are listed as one string, several thoughts as one."""
    parts = (Reasoning("a"), Reasoning("b"), Text("c"), Text("d"))
    wires = wire_messages(message("assistant", content=parts))
    assert [w.get("reasoning") or w.get("content") for w in wires] == ["ab", "cd"]


def test_user_content_is_a_string_only_if_it_is_one_text() -> None:
    """Otherwise it is the list of parts; images show their file id and their data (spec §2)."""
    (wire,) = wire_messages(message("user", content=(Text("see"), Image("image/png", "aGk=", "file-1", "low"))))
    assert wire["content"] == [
        {"type": "text", "text": "see", "signature": None},
        {
            "type": "image",
            "source": {
                "type": "letta", "file_id": "file-1", "media_type": "image/png", "data": "aGk=", "detail": "low",
            },
        },
    ]


def test_the_old_envelope_around_user_text_is_taken_off() -> None:
    """`user_message` JSON is unwrapped; other JSON is the user's own (spec §9.3)."""
    texts = ['{"type":"user_message","message":"hi"}', '{"type":"heartbeat","reason":"x"}', '{"a":1}', "{oops"]
    shown = [wire_messages(message("user", content=(Text(t),)))[0]["content"] for t in texts]
    assert shown == ["hi", *texts[1:]]


def test_returns_of_a_step_are_one_message_named_after_the_first_tool_that_ran() -> None:
    """A denial names no tool; the deprecated fields repeat the first return (spec §3.2)."""
    (wire,) = wire_messages(
        message("tool", tool_returns=(
            ToolReturn("c1", "denied", "error", "a", executed=False),
            ToolReturn("c2", "4", name="b", stdout=("out",), stderr=()),
        ))
    )  # fmt: skip
    assert (wire["name"], wire["status"], wire["tool_return"], wire["tool_call_id"]) == ("b", "error", "denied", "c1")
    assert (wire["stdout"], wire["stderr"]) == (None, None)
    assert wire["tool_returns"][1] == {
        "type": "tool", "tool_return": "4", "status": "success", "tool_call_id": "c2", "stdout": ["out"], "stderr": [],
    }


def test_an_approval_request_has_its_own_id_as_otid() -> None:
    """Spec §0.4."""
    (wire,) = wire_messages(message("approval", tool_calls=(ToolCall("c", "t", "{}"),)))
    assert (wire["message_type"], wire["otid"]) == ("approval_request_message", ID)


def test_an_approval_response_repeats_its_first_decision() -> None:
    """The deprecated fields are null if the first entry is a client's return."""
    decided = Approval("c", approve=False, reason="no")
    given = Approval("d", returned=ToolReturn("d", "done", executed=False))
    first, second = (wire_messages(message("approval", approvals=a))[0] for a in ((decided, given), (given, decided)))
    assert (first["approve"], first["approval_request_id"], first["reason"]) == (False, "c", "no")
    assert (second["approve"], second["approval_request_id"], second["reason"]) == (None, None, None)
    assert [a["type"] for a in first["approvals"]] == ["approval", "tool"]


def test_a_summary_is_a_user_message_unless_summaries_are_asked_for() -> None:
    """★S60."""
    envelope = '{"type":"system_alert","message":"short","compaction_stats":{"trigger":"t"}}'
    stored = message("summary", content=(Text(envelope),))
    assert [w["message_type"] for w in listed([stored])] == ["user_message"]
    (wire,) = listed([stored], include_return_message_types=["summary_message"])
    assert (wire["summary"], wire["compaction_stats"]) == ("short", {"trigger": "t"})


def test_types_restrict_and_an_empty_list_does_not() -> None:
    """★S16."""
    stored = [message("assistant", content=(Reasoning("a"), Text("b")))]
    assert [w["message_type"] for w in listed(stored, include_return_message_types=["assistant_message"])] == [
        "assistant_message"
    ]
    assert len(listed(stored, include_return_message_types=[])) == 2
