"""What the model sees of a history, and that any history can be put in order."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Reasoning, Text, ToolCall, ToolReturn
from perdure.memory.window import INTERRUPTED, for_model, repair, return_char_cap

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def said(text: str, *calls: str) -> Message:
    return Message(
        id=new_id("message"), role="assistant", created_at=NOW, content=(Text(text),),
        tool_calls=tuple(ToolCall(c, "t", "{}") for c in calls),
    )


def returned(*calls: str) -> Message:
    return Message(
        id=new_id("message"), role="tool", created_at=NOW, tool_returns=tuple(ToolReturn(c, "ok") for c in calls)
    )


def asked(text: str) -> Message:
    return Message(id=new_id("message"), role="user", created_at=NOW, content=(Text(text),))


def test_a_whole_history_stays_as_it_is() -> None:
    """Messages that are in order are the same objects afterwards, so that their encoded forms are reused."""
    history = [asked("hi"), said("", "c1", "c2"), returned("c1", "c2"), said("done")]
    assert [id(m) for m in repair(history)] == [id(m) for m in history]


def test_an_open_call_is_closed_with_an_error() -> None:
    """A call that a crash left without a result gets one that says so."""
    repaired = repair([asked("hi"), said("", "c1"), asked("and?")])
    assert [m.role for m in repaired] == ["user", "assistant", "tool", "user"]
    assert repaired[2].tool_returns == (ToolReturn("c1", INTERRUPTED, "error", "t"),)


def test_stray_and_double_returns_are_left_out() -> None:
    """The first result of a call counts; one without a call is not shown to the model."""
    repaired = repair([returned("c0"), said("", "c1"), returned("c1"), returned("c1", "c9")])
    assert [m.role for m in repaired] == ["assistant", "tool"]
    assert [r.tool_call_id for r in repaired[1].tool_returns] == ["c1"]


call_ids = st.sampled_from(["a", "b", "c", "d"])
histories = st.lists(
    st.one_of(
        st.builds(asked, st.text(max_size=3)),
        st.builds(lambda ids: said("x", *ids), st.lists(call_ids, max_size=3)),
        st.builds(lambda ids: returned(*ids), st.lists(call_ids, min_size=1, max_size=3)),
    ),
    max_size=12,
)


@given(histories)
def test_any_history_becomes_valid(history: list[Message]) -> None:
    """After repair every calling message is followed by exactly one return per call, and there is no other return."""
    repaired = repair(history)
    at = 0
    while at < len(repaired):
        message = repaired[at]
        at += 1
        assert message.role != "tool"
        if message.tool_calls:
            ids = list(dict.fromkeys(c.id for c in message.tool_calls))
            assert [r.tool_call_id for r in repaired[at].tool_returns] == ids
            at += 1
    assert [m for m in repaired if m.role == "user"] == [m for m in history if m.role == "user"]


def test_the_model_gets_the_context_without_its_system_message_and_then_the_input() -> None:
    """Index 0 travels apart."""
    system = Message(id=new_id("message"), role="system", created_at=NOW)
    before, now = asked("one"), asked("two")
    assert for_model([system, before], [now]) == [before, now]


def test_a_clearing_agent_sees_its_own_request_only() -> None:
    """`since` leaves out everything stored before the request."""
    system = Message(id=new_id("message"), role="system", created_at=NOW)
    before, now = asked("one"), asked("two")
    assert for_model([system, before], [now], since=2) == [now]


def test_a_trailing_message_of_thoughts_alone_is_dropped() -> None:
    """Providers refuse an assistant turn that ends in thoughts."""
    system = Message(id=new_id("message"), role="system", created_at=NOW)
    thought = Message(id=new_id("message"), role="assistant", created_at=NOW, content=(Reasoning("hm"),))
    assert for_model([system, thought], []) == []


def test_a_result_may_take_a_fifth_of_the_window() -> None:
    """Spec §1.6: max(5000, floor(context_window · 0.2 · 4)) characters."""
    assert [return_char_cap(n) for n in (4_000, 8_000, 128_000)] == [5_000, 6_400, 102_400]
