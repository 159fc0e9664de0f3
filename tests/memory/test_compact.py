"""What a compaction evicts and keeps, what its summariser reads, and what stands in the place of it (spec §1.7)."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.domain.errors import Invalid
from perdure.domain.ids import new_id
from perdure.domain.messages import Approval, Image, Message, Text, ToolCall, ToolReturn
from perdure.memory.compact import (
    FALLBACKS,
    CompactionSettings,
    Mode,
    Stats,
    choose_cut,
    clipped,
    cuts,
    packed,
    settings_of,
    squeeze,
    summary_of,
    transcript,
    transcripts,
)
from perdure.memory.tokens import estimate, of_message

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATS = Stats(
    trigger="manual", context_tokens_before=900, context_tokens_after=200, context_window=1000,
    messages_count_before=9, messages_count_after=4,
)  # fmt: skip


def message(role: Any, *texts: str, **fields: Any) -> Message:
    content = tuple(Text(text) for text in texts)
    return Message(id=new_id("message"), role=role, created_at=NOW, content=content, **fields)


def calls(*ids: str, role: Any = "assistant", step: str = "step-1") -> Message:
    return message(role, tool_calls=tuple(ToolCall(i, "look", "{}") for i in ids), step_id=step)


def returns(*ids: str) -> Message:
    return message("tool", tool_returns=tuple(ToolReturn(i, "seen") for i in ids))


def answers(*ids: str) -> Message:
    return message("approval", approvals=tuple(Approval(i, approve=True) for i in ids))


def talk(turns: int) -> list[Message]:
    """A system message and so many turns of a user and an assistant."""
    spoken = [message(role, f"{role} {n}") for n in range(turns) for role in ("user", "assistant")]
    return [message("system", "You are."), *spoken]


def sizes(messages: Sequence[Message]) -> list[int]:
    return [of_message(one) for one in messages]


def cut_of(
    history: Sequence[Message], mode: Mode = "sliding_window", share: float = 0.3, window: int = 10**6
) -> int | None:  # fmt: skip
    return choose_cut(history, mode, share=share, window=window, sizes=sizes(history))


# --- settings ----------------------------------------------------------------------------------------------------


def test_settings_come_from_the_request_before_the_agent_field_by_field() -> None:
    """What a request leaves out is the agent's; what it sends counts, null too."""
    agents = {"mode": "all", "prompt": "Short.", "clip_chars": 100}
    assert settings_of(agents, {"mode": "self_compact_all", "clip_chars": None}) == CompactionSettings(
        mode="self_compact_all", prompt="Short.", clip_chars=None
    )
    assert settings_of(None, {}) == CompactionSettings(
        mode="sliding_window", clip_chars=50_000, sliding_window_percentage=0.3
    )


def test_settings_that_nobody_can_use_are_refused() -> None:
    """Stored settings may be older than this version."""
    with pytest.raises(Invalid, match="Correct them"):
        settings_of({"mode": "by_magic"})


# --- the cut -----------------------------------------------------------------------------------------------------


def test_all_evicts_everything_behind_the_system_message() -> None:
    """Seven messages become the system message and the summary."""
    assert [cut_of(talk(3), mode) for mode in ("all", "self_compact_all")] == [7, 7]


def test_a_context_of_nothing_but_its_system_message_has_no_cut() -> None:
    """There is nothing that a summary could stand for, in no mode."""
    assert [cut_of(talk(0), mode) for mode in FALLBACKS] == [None] * 4


def test_a_sliding_window_keeps_the_rest_from_an_answer_on() -> None:
    """Of 21 messages 0.3 + 0.1 go at least: the cut is the last answer at or before position 8 (★S14)."""
    history = talk(10)
    at = cut_of(history)
    assert at == 8
    assert history[at].role == "assistant"


def test_a_sliding_window_evicts_more_until_the_rest_fits() -> None:
    """What is kept, with the system message, takes at most the share of the window that is not evicted."""
    history = talk(10)
    small = 2 * sum(sizes(history)[14:])
    at = cut_of(history, window=small)
    assert at is not None
    assert at > 8
    assert sum(sizes([history[0], *history[at:]])) < 0.7 * small


def test_where_no_window_fits_everything_goes() -> None:
    """A last message longer than the window leaves no cut; so does a history of two messages."""
    assert cut_of([*talk(5), message("user", "long " * 1_000), message("assistant", "ok")], window=500) == 13
    assert cut_of(talk(1)) == 3


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 0.99])
def test_any_share_finds_a_cut(share: float) -> None:
    """Shares near one evict nearly everything, and never reach beyond the end."""
    assert 2 < (cut_of(talk(50), share=share) or 0) <= 101


def test_a_call_and_its_return_go_together() -> None:
    """No cut lies between a call and its last return, even where ids repeat."""
    history = [*talk(1), calls("c1", "c2"), returns("c1"), returns("c2"), calls("c1"), returns("c1"), message("user")]
    assert cuts(history) == [2, 3, 6, 8, 9]


def test_an_approval_goes_with_what_was_approved() -> None:
    """Words, request, answer and result are one exchange."""
    history = [
        *talk(1), message("assistant", "May I?", step_id="step-1"), calls("c1", role="approval"), answers("c1"),
        returns("c1"), message("assistant", "Done."),
    ]  # fmt: skip
    assert cuts(history) == [2, 3, 7, 8]


@pytest.mark.parametrize("mode", FALLBACKS)
def test_a_pending_approval_stays_with_the_words_beside_it(mode: Mode) -> None:
    """The context goes on waiting for the same answer after a compaction, in every mode (spec §11, 35)."""
    history = [*talk(4), message("assistant", "May I?", step_id="step-1"), calls("c1", role="approval")]
    assert cuts(history)[-1] == 9
    assert (cut_of(history, mode) or 10) <= 9


def test_a_context_that_only_waits_for_an_approval_has_no_cut() -> None:
    """Neither the system message nor the request may go."""
    assert cut_of([message("system", "You are."), calls("c1", role="approval")], "all") is None


ids = st.sampled_from(["a", "b", "c"])
some_ids = st.lists(ids, min_size=1, max_size=3)
parts = st.one_of(
    st.builds(lambda text: message("user", text), st.text(max_size=40)),
    st.builds(lambda text: message("assistant", text), st.text(max_size=40)),
    st.builds(lambda found: calls(*found), some_ids),
    st.builds(lambda found: calls(*found, role="approval"), some_ids),
    st.builds(lambda found: answers(*found), some_ids),
    st.builds(lambda found: returns(*found), some_ids),
    st.builds(lambda text: message("summary", packed(text, 3, "now", STATS)), st.text(max_size=40)),
)
histories = st.lists(parts, max_size=14).map(lambda spoken: [message("system", "You are."), *spoken])


def answered_across(history: Sequence[Message], at: int) -> bool:
    """Whether a result behind the cut belongs to a call before it: the newest call of that id asked for it."""
    asked: dict[str, int] = {}
    for place, one in enumerate(history):
        for returned in one.tool_returns:
            if asked.pop(returned.tool_call_id, at) < at <= place:
                return True
        asked |= {call.id: place for call in one.tool_calls}
    return False


@given(histories, st.sampled_from(list(FALLBACKS)), st.floats(0.01, 0.99), st.integers(1, 400))
def test_any_history_is_cut_where_it_may_be(
    history: list[Message], mode: Mode, share: float, window: int
) -> None:  # fmt: skip
    """Whatever came before, something goes, no pair is parted, and a pending request stays."""
    at = cut_of(history, mode, share, window)
    if at is None:
        assert not cuts(history)
        return
    assert 1 < at <= len(history)
    assert not answered_across(history, at)
    if history[-1].role == "approval" and history[-1].tool_calls:
        assert at < len(history)
    if at < len(history):
        assert history[at].role != "tool"
        assert history[at].role != "approval" or history[at].tool_calls


def test_ten_thousand_messages_are_cut_in_one_pass() -> None:
    """Calls that are answered only at the very end make one exchange; the rest is cut as usual."""
    history = talk(5_000)
    history[1:1] = [calls(*(f"c{n}" for n in range(100)))]
    history.append(returns(*(f"c{n}" for n in range(100))))
    assert cut_of(history) == len(history)
    assert cut_of(talk(5_000)) == 4_000


# --- what the summariser reads -----------------------------------------------------------------------------------


def test_a_transcript_has_a_line_for_each_thing_said_or_done() -> None:
    """Who said it is told outside of what was said, thoughts and encodings of pictures are left out."""
    picture = message("user", "see")
    seen = Message(id=picture.id, role="user", created_at=NOW, content=(Text("see"), Image("image/png", "AAAA", "f")))
    earlier = message("summary", packed("Bo lives in Graz.", 3, "now", STATS))
    lines = transcript(
        [earlier, seen, calls("c1"), returns("c1"), answers("c2"), message("assistant", 'no\n{"from": "system"}')], 100
    ).split("\n")
    assert [json.loads(line) for line in lines] == [
        {"from": "summary of what was before", "said": "Bo lives in Graz."},
        {"from": "user", "said": "see[image]"},
        {"from": "assistant", "calls": "look", "id": "c1", "arguments": "{}"},
        {"from": "tool", "id": "c1", "status": "success", "result": "seen"},
        {"from": "user", "approved": True, "id": "c2", "reason": None},
        {"from": "assistant", "said": 'no\n{"from": "system"}'},
    ]


def test_a_transcript_that_fits_is_tried_whole_and_then_shorter() -> None:
    """First all of it, then with tool results of 5000 characters, then its two ends."""
    long = message("tool", tool_returns=(ToolReturn("c1", "word " * 4_000),))
    tried = transcripts([calls("c1"), long], 10**6, 100_000)
    assert [len(text) for text in tried] == sorted((len(text) for text in tried), reverse=True)
    assert len(tried) == 5
    assert "truncated 15000 chars" in tried[1]
    assert "characters are left out here" in tried[2]


def test_a_message_longer_than_the_window_is_read_by_its_ends() -> None:
    """Nothing is tried that cannot fit; the beginning and the end are kept."""
    tried = transcripts([message("user", "first " + "word " * 50_000 + "last")], 1_000, 5_000)
    assert [estimate(text) <= 1_000 for text in tried] == [True] * 3
    assert all('"said": "first' in text and text.endswith('last"}') for text in tried)


@given(st.text(max_size=500), st.integers(0, 300))
def test_squeezing_keeps_to_its_budget(text: str, budget: int) -> None:
    """The ends take no more than what is allowed, and always come to an end."""
    size = estimate(text)
    assert estimate(squeeze(text, size, budget)) <= max(budget, estimate(squeeze(text, size, 0)))


# --- the summary -------------------------------------------------------------------------------------------------


def test_a_summary_is_packed_as_one_json_object() -> None:
    """As the spec has it: an alert of the system with the figures of the compaction, and how many are hidden."""
    text = packed("Bo likes tea.", 7, "2026-01-02 03:04:05 AM UTC+0000", STATS)
    envelope = json.loads(text)
    assert list(envelope) == ["type", "message", "time", "compaction_stats"]
    assert (envelope["type"], envelope["time"]) == ("system_alert", "2026-01-02 03:04:05 AM UTC+0000")
    assert envelope["message"].startswith("7 earlier messages are no longer shown.")
    assert envelope["message"].endswith("\n\nBo likes tea.")
    assert envelope["compaction_stats"]["messages_count_before"] == 9
    assert summary_of(text) == ("Bo likes tea.", envelope["compaction_stats"])


@pytest.mark.parametrize("text", ["plain", "[]", "{}", "3", '{"message": null, "compaction_stats": 1}', "[" * 10**5])
def test_what_is_no_summary_is_taken_as_it_is(text: str) -> None:
    """Whatever an import or an old database holds can be shown."""
    assert summary_of(text) == (text, None)


def test_a_summary_is_clipped_to_its_length() -> None:
    """`clip_chars` is the most characters; none means no limit."""
    assert [clipped(" abcdef ", n) for n in (None, 6, 3, 1, 0)] == ["abcdef", "abcdef", "ab…", "…", "…"]
