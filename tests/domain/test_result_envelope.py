"""Tool results as the model reads them, and local times."""

import json
from datetime import UTC, datetime

import pytest

from perdure.domain.clock import local_time
from perdure.domain.messages import ToolReturn
from perdure.domain.packaging import package

SUMMER = datetime(2026, 7, 2, 4, 4, 5, tzinfo=UTC)


def message(text: str, cap: int = 1000) -> object:
    return json.loads(package(ToolReturn("a", text), SUMMER, "UTC", cap))["message"]


def test_an_envelope() -> None:
    """Status, message and the local time, with letters as they are."""
    made = package(ToolReturn("a", "größer", "error"), SUMMER, "Europe/Berlin", 100)
    assert made == '{"status": "Failed", "message": "größer", "time": "2026-07-02 06:04:05 AM CEST+0200"}'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"a": [1]}', {"a": [1]}), ("[1, 2]", "[1, 2]"), ("7", "7"), ("null", "null"), ("{oops", "{oops"), ("", ""),
        ('{"a": 1} tail', '{"a": 1} tail'), ('{"a":' * 5000, None),
    ],
)  # fmt: skip
def test_only_an_object_stays_one(text: str, shown: object) -> None:
    """All else is a string, also what only begins like an object or nests without end."""
    assert message(text, 100_000) == (text if shown is None else shown)


def test_a_cut_object_is_a_string() -> None:
    """Half of an object is text."""
    assert message('{"a": "' + "x" * 50 + '"}', 10) == '{"a": "xxx... [truncated 49 chars]'


@pytest.mark.parametrize("name", ["", "../etc/passwd", "Nowhere/Else", "\x00", "x" * 5000])
def test_an_unknown_zone_is_utc(name: str) -> None:
    """A zone comes from a client and may be anything."""
    assert local_time(SUMMER, name) == "2026-07-02 04:04:05 AM UTC+0000"
