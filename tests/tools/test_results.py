"""What a tool gave, as text: coercion, cut, failure (spec §1.6, ★S11, ★S12)."""

import pytest

from perdure.tools.results import as_text, clip, failure


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ("", ""),
        (None, "None"),
        ({"a": 1, "b": [True, None, 2.5, "é"]}, '{"a": 1, "b": [true, null, 2.5, "é"]}'),
        ([1, "two"], '[1, "two"]'),
        ((1, 2), "[1, 2]"),
        ({}, "{}"),
        (True, "True"),
        (4, "4"),
        (2.5, "2.5"),
        ({(1, 2): "odd key"}, "{(1, 2): 'odd key'}"),
        ({"when": ValueError("x")}, '{"when": "x"}'),
        ("a\0b\ud800", "ab\ufffd"),
    ],
)
def test_any_value_becomes_text(value, text):
    """★S11: JSON for dict and list, never Python's repr; what no database takes is gone."""
    assert as_text(value) == text


def test_a_value_that_contains_itself_ends():
    loop: list[object] = []
    loop.append(loop)
    assert as_text(loop) == "[[...]]"


def test_a_text_within_the_limit_is_untouched():
    assert clip("12345", 5) == "12345"


def test_a_long_text_is_cut_with_both_sizes():
    """Acceptance 29."""
    cut = clip("x" * 60_000, 50_000)
    assert cut.startswith("x" * 50_000 + "\n[")
    assert cut[50_000:] == "\n[Cut here: the result has 60000 characters, 50000 are allowed. Ask for less.]"


def test_a_failure_names_tool_and_exception():
    """Acceptance 14."""
    assert failure("roll", ValueError("no dice")) == "Error executing function roll: ValueError: no dice"


def test_a_failure_is_cut_at_1000_characters():
    assert len(failure("roll", ValueError("x" * 5000))) == 1000
