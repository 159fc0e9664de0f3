"""`conversation_search`: which messages it shows, how, and for which dates (spec §7.3, ★S48)."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from perdure.domain.errors import ToolError
from perdure.domain.messages import Message, Reasoning, Text, ToolCall
from perdure.domain.ports import SearchHit
from perdure.domain.records import Agent, Block
from perdure.tools.recall import conversation_search, time_ago

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


@dataclass
class History:
    """A scene that finds the given messages, in order, and remembers what it was asked."""

    messages: list[Message]
    timezone: str = "UTC"
    blocks: tuple[Block, ...] = ()
    now: datetime = NOW
    asked: list[dict] = field(default_factory=list)

    @property
    def agent(self) -> Agent:
        return Agent(
            id="agent-1", name="a", agent_type="letta_v1_agent", system="", model="m", llm={}, created_at=NOW,
            updated_at=NOW, timezone=self.timezone,
        )  # fmt: skip

    async def search_messages(self, query, *, roles, start, end, limit) -> list[SearchHit]:
        self.asked.append({"query": query, "roles": roles, "start": start, "end": end, "limit": limit})
        found = [message for message in self.messages if message.role in roles]
        return [SearchHit(message, index, index) for index, message in enumerate(found[:limit], 1)]


def said(role: str, text: str, *, ago: timedelta = timedelta(), calls=(), thought: str = "") -> Message:
    content = ([Reasoning(thought)] if thought else []) + ([Text(text)] if text else [])
    return Message(id="message-1", role=role, created_at=NOW - ago, content=tuple(content), tool_calls=tuple(calls))


async def test_hits_are_shown_with_time_and_role():
    history = History([
        said("user", "I like tea.", ago=timedelta(hours=3)),
        said("assistant", "Noted.", ago=timedelta(days=2), thought="Remember it."),
    ])  # fmt: skip
    assert await conversation_search(history, query="tea") == {
        "message": "Showing 2 results:",
        "results": [
            {
                "timestamp": "2026-03-10T09:00:00+00:00", "time_ago": "3 hours ago", "role": "user",
                "content": "I like tea.", "relevance": {"fts_rank": 1},
            },
            {
                "timestamp": "2026-03-08T12:00:00+00:00", "time_ago": "2 days ago", "role": "assistant",
                "thinking": "Remember it.", "content": "Noted.", "relevance": {"fts_rank": 2},
            },
        ],
    }  # fmt: skip


async def test_without_a_query_there_is_no_relevance():
    result = await conversation_search(History([said("user", "hi")]), query="  ")
    assert "relevance" not in result["results"][0]


async def test_times_are_in_the_zone_of_the_agent():
    result = await conversation_search(History([said("user", "hi")], timezone="Europe/Berlin"))
    assert result["results"][0]["timestamp"] == "2026-03-10T13:00:00+01:00"


async def test_an_unknown_zone_is_utc():
    result = await conversation_search(History([said("user", "hi")], timezone="Mars/Olympus"))
    assert result["results"][0]["timestamp"] == "2026-03-10T12:00:00+00:00"


@pytest.mark.parametrize(
    "echo",
    [
        said("assistant", "Let me look.", calls=[ToolCall("c", "conversation_search", '{"query": "tea"}')]),
        said("assistant", "", calls=[ToolCall("c", "memory_insert", '{"new_string": "tea"}')]),
        said("tool", "tea"),
        said("user", '{"type": "heartbeat", "reason": "tea", "time": "now"}'),
        said("system", "tea"),
    ],
)
async def test_echoes_are_not_shown(echo):
    """Searches, their results, heartbeats and messages without words say nothing new."""
    assert await conversation_search(History([echo]), query="tea") == "No results found."


async def test_nothing_found():
    assert await conversation_search(History([]), query="tea") == "No results found."


async def test_the_limit_counts_what_is_shown():
    """★S48: what is left out does not use up places."""
    search = said("assistant", "", calls=[ToolCall("c", "conversation_search", "{}")])
    history = History([search] * 100 + [said("user", f"tea {n}") for n in range(9)])
    result = await conversation_search(history, query="tea", limit=3)
    assert [hit["content"] for hit in result["results"]] == ["tea 0", "tea 1", "tea 2"]
    assert result["message"] == "Showing 3 results:"


async def test_looking_through_echoes_ends():
    search = said("assistant", "", calls=[ToolCall("c", "conversation_search", "{}")])
    history = History([search] * 5000)
    assert await conversation_search(history, query="tea") == "No results found."
    assert [asked["limit"] for asked in history.asked] == [20, 80, 320, 1000]


@pytest.mark.parametrize(
    ("roles", "asked"),
    [(None, ["assistant", "user"]), ([], ["assistant", "user"]), (["user"], ["user"]), (["user", "tool"], ["user"])],
)
async def test_roles_narrow_the_search(roles, asked):
    history = History([said("user", "hi")])
    await conversation_search(history, roles=roles)
    assert history.asked[0]["roles"] == asked


async def test_tool_messages_alone_are_nothing():
    assert await conversation_search(History([said("tool", "tea")]), roles=["tool"]) == "No results found."


@pytest.mark.parametrize(
    ("start", "end", "zone", "expected_start", "expected_end"),
    [
        ("2026-03-01", "2026-03-02", "UTC", "2026-03-01T00:00:00+00:00", "2026-03-02T23:59:59.999999+00:00"),
        ("2026-03-01", "2026-03-01", "Asia/Tokyo", "2026-02-28T15:00:00+00:00", "2026-03-01T14:59:59.999999+00:00"),
        ("2026-03-01T10:30", "2026-03-01T11:00:00Z", "UTC", "2026-03-01T10:30:00+00:00", "2026-03-01T11:00:00+00:00"),
        ("2026-03-01T10:30:00+02:00", None, "Asia/Tokyo", "2026-03-01T08:30:00+00:00", None),
    ],
)
async def test_dates_are_honoured_in_the_zone_of_the_agent(start, end, zone, expected_start, expected_end):
    """★S48: a plain date covers its whole day."""
    history = History([], timezone=zone)
    await conversation_search(history, start_date=start, end_date=end)
    asked = history.asked[0]
    assert asked["start"].isoformat() == expected_start
    assert (asked["end"].isoformat() if asked["end"] else None) == expected_end


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ("yesterday", None, "start_date 'yesterday' is no date. Use 2026-01-31 or 2026-01-31T18:30:00"),
        (None, "2026-02-30", "end_date '2026-02-30' is no date"),
        ("0001-01-01", None, "start_date '0001-01-01' is no date"),
        ("2026-03-02", "2026-03-01", "start_date 2026-03-02 is later than end_date 2026-03-01"),
    ],
)
async def test_dates_that_are_none_are_errors(start, end, words):
    """Year 1 has no moment in UTC for a zone that is ahead."""
    with pytest.raises(ToolError, match=words):
        await conversation_search(History([], timezone="Asia/Tokyo"), start_date=start, end_date=end)


async def test_what_the_older_loops_stored_is_shown_as_words():
    """Wrapped user messages and send_message calls hold the words inside."""
    wrapped = json.dumps({"type": "user_message", "message": "I like tea.", "time": "now"})
    spoken = ToolCall("c", "send_message", '{"message": "Tea it is."}')
    result = await conversation_search(History([said("user", wrapped), said("assistant", "", calls=[spoken])]))
    assert [hit["content"] for hit in result["results"]] == ["I like tea.", "Tea it is."]


@pytest.mark.parametrize("text", ["{not json", "{" * 100_000, '{"type": 5}', "[1]"])
async def test_words_that_look_like_json_are_words(text):
    result = await conversation_search(History([said("user", text)]))
    assert result["results"][0]["content"] == text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "just now"), (0, "just now"), (59, "just now"), (60, "1 minute ago"), (3599, "59 minutes ago"),
        (3600, "1 hour ago"), (86_400, "1 day ago"), (86_400 * 45, "1 month ago"), (86_400 * 800, "2 years ago"),
    ],
)  # fmt: skip
def test_spans_in_words(seconds, words):
    assert time_ago(timedelta(seconds=seconds)) == words
