"""Which words of a message count."""

import pytest
from making import said

from perdure.store.words import LONGEST_WORD, query_words, searchable, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Hello, World! it's 3 o'clock", ["hello", "world", "it", "s", "3", "o", "clock"]),
        ("snake_case foo@bar.com a-b", ["snake", "case", "foo", "bar", "com", "a", "b"]),
        ("ÉCOLE Ångström ﬁne", ["ecole", "angstrom", "fine"]),
        ("한국어 हिन्दी ไทย", ["한국어", "हिन्दी", "ไทย"]),
        ("日本語ok", ["日", "本", "語", "ok"]),
        ("🙂 \0 \ud83d", []),
        ("x" * (LONGEST_WORD + 1) + " y", ["y"]),
    ],
)
def test_words_are_folded_and_split_alike_in_every_script(text: str, expected: list[str]):
    """Case and accents go, letters and their marks stay, punctuation separates, data is dropped."""
    assert words(text) == expected


def test_a_query_counts_each_word_once_and_only_so_many():
    """A pasted page must not become a search for a thousand words."""
    assert query_words("a b A") == ["a", "b"]
    assert len(query_words(" ".join(map(str, range(1000))))) == 64


def test_only_what_user_and_assistant_said_is_searchable():
    """None means never shown; empty means shown, but found by no word."""
    assert searchable(said("Hi", role="system")) is None
    assert searchable(said("Hi", role="tool")) is None
    assert searchable(said(role="assistant")) is None
    assert searchable(said('{"type": "login"}')) is None
    assert searchable(said('{"type": broken')) == "type broken"
    assert searchable(said('{"type": "user_message", "message": "Hi"}')) == "hi"
    assert searchable(said("🙂")) == ""
    assert searchable(said("Hi ", "there")) == "hi there"
