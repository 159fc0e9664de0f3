"""Which words of a message can be searched for, the same for both databases.

The databases' own tokenizers differ (punctuation, accents, scripts without spaces), so both are given words that are
already split, in lower case and without accents; what is left to them is the English stem and the ranking.
"""

import re
import unicodedata

import msgspec

from perdure.domain.messages import Message, Reasoning, SummarizedReasoning, Text, text_of

LONGEST_TEXT = 100_000
"""Characters of a message that are indexed. PostgreSQL refuses more than 1 MB of words in one row."""
LONGEST_WORD = 64
"""Anything longer is data, not a word."""
MOST_WORDS = 64
"""Words of a query that count."""

_WORD = re.compile(r"[^\W_]+")
_ACCENTS = dict.fromkeys(range(0x300, 0x370))
_SPACELESS = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
"""Characters of scripts that put no spaces between words; each counts as a word."""
_SERVER_NOTES = ("heartbeat", "login", "system_alert")


class _Packed(msgspec.Struct):
    """A user message whose text is JSON (spec §9.3)."""

    type: str
    message: str = ""


_PACKED = msgspec.json.Decoder(_Packed)


def words(text: str) -> list[str]:
    """The words of a text, folded so that case and accents do not matter."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFKD", text).translate(_ACCENTS))
        text = "".join(char if unicodedata.category(char)[0] in "LNM" else " " for char in text)
        return [word for word in _SPACELESS.sub(r" \1 ", text).lower().split() if len(word) <= LONGEST_WORD]
    return [word for word in _WORD.findall(text.lower()) if len(word) <= LONGEST_WORD]


def query_words(query: str) -> list[str]:
    """The words to search for, each once."""
    return list(dict.fromkeys(words(query[:LONGEST_TEXT])))[:MOST_WORDS]


def searchable(message: Message) -> str | None:
    """The words of a message for the index; empty if it has none; None if searches shall never show it.

    Shown is what user and assistant said and thought; not system and tool messages nor the server's own notes.
    """
    text = _said(message)
    return None if text is None else " ".join(words(text[:LONGEST_TEXT]))


def _said(message: Message) -> str | None:
    if message.role == "user":
        return _unpacked(text_of(message.content))
    if message.role != "assistant":
        return None
    said = [part for part in map(_words_of, message.content) if part]
    return "\n".join(said) or None


def _words_of(part: object) -> str:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Reasoning):
        return part.reasoning
    if isinstance(part, SummarizedReasoning):
        return "\n".join(paragraph.text for paragraph in part.summary)
    return ""


def _unpacked(text: str) -> str | None:
    """The user's own words; None for a note of the server in a user message."""
    if not text.startswith("{"):
        return text
    try:
        packed = _PACKED.decode(text)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return text
    if packed.type in _SERVER_NOTES:
        return None
    return packed.message if packed.type == "user_message" else text
