"""The estimate of tokens without a tokenizer, and how a model's real usage corrects it.

The counts in `COUNTED` are those of GPT-4's and GPT-4o's own vocabularies (cl100k, o200k), taken once with bpe-openai.
"""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.domain.ids import new_id
from perdure.domain.messages import Image, Message, Text, ToolCall, ToolReturn
from perdure.memory.tokens import PER_IMAGE, PER_MESSAGE, Correction, estimate, learned_from, of_message

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ENGLISH = "I went down to the river early in the morning because the doctor had told me that cold water would do good. "
COUNTED = {
    ENGLISH * 20: (461, 461),
    "for name, value in sorted(found.items()):\n    total += prices[name] * value  # in cents\n" * 20: (440, 440),
    '{"id": "agent-1", "tags": ["a", "b"], "limit": 5000, "hidden": null}\n' * 20: (580, 580),
    "昨天我和姐姐谈了她去国外度假的事情，她更喜欢夏天去，虽然天气很热。" * 20: (960, 480),
    "Вчера я говорил с сестрой о её отпуске за границей, она предпочитала ехать летом. " * 20: (781, 461),
}


@pytest.mark.parametrize(("text", "counted"), COUNTED.items(), ids=["english", "code", "json", "chinese", "russian"])
def test_the_estimate_lies_near_what_real_vocabularies_count(text: str, counted: tuple[int, int]) -> None:
    """Within a fifth of one of them, or between the two where they differ."""
    low, high = min(counted), max(counted)
    assert low * 0.8 <= estimate(text) <= high * 1.2


@given(st.text(), st.text())
def test_joining_texts_adds_one_piece_at_most(first: str, second: str) -> None:
    """The estimate is total and never negative; two texts apart count nearly what they count as one."""
    apart = estimate(first) + estimate(second)
    assert 0 <= estimate(first + second) <= apart + 1


def test_nothing_is_no_token_and_a_message_has_its_frame() -> None:
    """An empty text counts nothing; an empty message what the chat format adds."""
    empty = Message(id=new_id("message"), role="user", created_at=NOW)
    assert (estimate(""), of_message(empty)) == (0, PER_MESSAGE)


def test_a_message_counts_words_calls_results_and_pictures() -> None:
    """A picture counts by itself, not by its encoding; a result counts as far as the model sees it."""
    picture = Image("image/png", "A" * 100_000, "file-1")
    call, answer = ToolCall("c1", "look", '{"at": "it"}'), ToolReturn("c1", "word " * 1_000)
    made = Message(
        id=new_id("message"), role="assistant", created_at=NOW, content=(Text("look at this"), picture),
        tool_calls=(call,),
    )  # fmt: skip
    got = Message(id=new_id("message"), role="tool", created_at=NOW, tool_returns=(answer,))
    assert of_message(made) == PER_MESSAGE + 3 + PER_IMAGE + 1 + 6 + PER_MESSAGE
    assert [of_message(got), of_message(got, 50)] == [1_000 + 2 * PER_MESSAGE, 10 + 2 * PER_MESSAGE]


def test_a_model_corrects_the_estimate() -> None:
    """The first request counts fully; later ones are averaged in."""
    learned = Correction().learned(1_000, 1_500)
    assert (learned.factor, learned(10), learned.learned(1_000, 500).factor) == (1.5, 15, 1.0)


@pytest.mark.parametrize(("estimated", "reported"), [(1_000, 0), (1_000, 15), (1_000, 9_000), (30, 90)])
def test_numbers_that_cannot_be_true_teach_nothing(estimated: int, reported: int) -> None:
    """A provider that reports nothing or nonsense, or a prompt too short to tell, leaves the estimate as it is."""
    assert Correction().learned(estimated, reported) == Correction()


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**7)), max_size=50))
def test_a_correction_stays_within_bounds(requests: list[tuple[int, int]]) -> None:
    """Whatever is reported, an estimate is never off by more than the factor of four that is plausible."""
    correction = Correction()
    for estimated, reported in requests:
        correction = correction.learned(estimated, reported)
    assert 0.25 <= correction.factor <= 4


def said(role: str, text: str, step: str | None = None, minutes: int = 0) -> Message:
    return Message(
        id=new_id("message"), role=role, created_at=NOW + timedelta(minutes=minutes), content=(Text(text),),
        step_id=step,
    )  # type: ignore[arg-type]  # fmt: skip


def test_the_last_call_of_a_context_tells_how_its_model_counts() -> None:
    """What was sent for the newest step that is known is held against what the provider counted for it."""
    context = [said("system", ENGLISH * 20), said("user", ENGLISH), said("assistant", "Good.", "step-1")]
    sent = sum(map(of_message, context[:2])) + 100
    assert learned_from(context, {"step-1": 2 * sent}, fixed=100) == Correction(2.0, 1)
    assert learned_from(context, {"step-0": 2 * sent}, fixed=100) == Correction()


def test_a_call_from_before_a_summary_tells_nothing() -> None:
    """It was asked with messages that have since left the context."""
    context = [
        said("system", ENGLISH * 20), said("summary", "They talked.", minutes=5), said("assistant", "Good.", "step-1"),
    ]  # fmt: skip
    assert learned_from(context, {"step-1": 5_000}, fixed=0) == Correction()
