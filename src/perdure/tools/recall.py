"""The tool `conversation_search`: the agent's own history, searched (spec §7.3, ★S48).

Asks the scene for hits, leaves out what would only echo the search itself, and counts what is left. Knows no store.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from perdure.domain.clock import zone
from perdure.domain.errors import ToolError
from perdure.domain.messages import Message, Reasoning, text_of
from perdure.domain.ports import Scene, SearchHit
from perdure.tools.results import storable

NAME = "conversation_search"
NOTHING = "No results found."
ROLES = ("assistant", "user")
"""Tool messages are not shown whatever is asked for: they repeat what the assistant's answers say."""
DEFAULT_LIMIT = 5
MOST_HITS = 1000
"""How many hits are looked through for ones worth showing."""


async def conversation_search(
    scene: Scene,
    query: str | None = None,
    roles: Sequence[str] | None = None,
    limit: int = DEFAULT_LIMIT,
    start_date: str | None = None,
    end_date: str | None = None,
) -> dict[str, Any] | str:
    """`{message, results}`, best first, or `No results found.`. Raises ToolError for dates that are none."""
    home = zone(scene.agent.timezone)
    start, end = _moment(start_date, "start_date", home), _moment(end_date, "end_date", home, ends=True)
    if start and end and start > end:
        raise ToolError(f"start_date {start_date} is later than end_date {end_date}. Swap them.")
    wanted = [role for role in ROLES if not roles or role in roles]
    words = storable(query or "").strip()
    hits = await _hits(scene, words, wanted, start, end, limit) if wanted else []
    if not hits:
        return NOTHING
    results = [_result(hit, scene.now, home, ranked=bool(words)) for hit in hits]
    return {"message": f"Showing {len(results)} results:", "results": results}


async def _hits(
    scene: Scene, query: str, roles: Sequence[str], start: datetime | None, end: datetime | None, limit: int
) -> list[SearchHit]:
    """Up to `limit` hits worth showing; asks for more while what came was mostly not."""
    asked = 2 * limit + 10
    while True:
        found = await scene.search_messages(query or None, roles=roles, start=start, end=end, limit=asked)
        shown = [hit for hit in found if hit.message.role in roles and _is_worth_showing(hit.message)]
        if len(shown) >= limit or len(found) < asked or asked >= MOST_HITS:
            return shown[:limit]
        asked = min(MOST_HITS, asked * 4)


def _is_worth_showing(message: Message) -> bool:
    """Not the searches themselves, nor what the server said to keep a loop going, nor messages without words."""
    if any(call.name == NAME for call in message.tool_calls):
        return False
    return bool(_content(message)) and _envelope(message).get("type") != "heartbeat"


def _result(hit: SearchHit, now: datetime, home: ZoneInfo, ranked: bool) -> dict[str, Any]:
    message = hit.message
    result: dict[str, Any] = {
        "timestamp": message.created_at.astimezone(home).isoformat(timespec="seconds"),
        "time_ago": time_ago(now - message.created_at),
        "role": message.role,
    }
    thinking = "\n".join(part.reasoning for part in message.content if isinstance(part, Reasoning))
    if thinking:
        result["thinking"] = thinking
    result["content"] = _content(message)
    if ranked:
        result["relevance"] = {"fts_rank": hit.rank}
    return result


def _content(message: Message) -> str:
    """The words of a message: its text, what send_message said, or what an envelope of the older loops holds."""
    text = text_of(message.content)
    said = [_argument(call.arguments) for call in message.tool_calls if call.name == "send_message"]
    envelope = _envelope(message)
    if envelope.get("type") == "user_message" and isinstance(envelope.get("message"), str):
        text = envelope["message"]
    return "\n".join(words for words in (text, *said) if words.strip())


def _argument(arguments: str) -> str:
    message = _object(arguments).get("message")
    return message if isinstance(message, str) else ""


def _envelope(message: Message) -> dict[str, Any]:
    """The JSON object that is a user message of the older loops; empty for plain words."""
    return _object(text_of(message.content)) if message.role == "user" else {}


def _object(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _moment(text: str | None, argument: str, home: ZoneInfo, ends: bool = False) -> datetime | None:
    """A date or time of the agent's zone, in UTC; a plain date means its first moment, or its last if it `ends`."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
        if len(text.strip()) <= len("2026-01-31"):
            moment = datetime.combine(moment.date(), time.max if ends else time.min)
        return (moment if moment.tzinfo else moment.replace(tzinfo=home)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ToolError(f"{argument} {text[:40]!r} is no date. Use 2026-01-31 or 2026-01-31T18:30:00.") from None


def time_ago(span: timedelta) -> str:
    """A span of time in words, in its largest whole unit."""
    seconds = int(span.total_seconds())
    units = (("year", 31_536_000), ("month", 2_592_000), ("day", 86_400), ("hour", 3600), ("minute", 60))
    for unit, size in units:
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"
