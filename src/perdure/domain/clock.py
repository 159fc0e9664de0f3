"""Time as a collaborator, so that tests decide what time it is, and times as the model reads them."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


class Clock(Protocol):
    """Anything that tells the time."""

    def now(self) -> datetime:
        """The current moment, aware, in UTC."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The current moment, aware, in UTC."""
        return datetime.now(UTC)


def local_time(moment: datetime, timezone: str) -> str:
    """`YYYY-MM-DD hh:mm:ss AM|PM TZ±hhmm` in the agent's time zone (spec §0.2)."""
    return moment.astimezone(zone(timezone)).strftime("%Y-%m-%d %I:%M:%S %p %Z%z")


@lru_cache(maxsize=512)
def zone(name: str) -> ZoneInfo:
    """The named time zone; UTC when this machine does not know it."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo("UTC")
