"""Logs on standard error: text for people, JSON lines for machines, and no secret in either.

Our own modules log through structlog, libraries through the standard library; both end in one handler.
"""

import logging
import sys
from collections.abc import Collection
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MASK = "***"
SHORTEST = 4
"""Shorter secrets are not searched for: they would turn every second line into dots."""
NAMES = ("api_key", "authorization", "password", "secret", "token")


class Redaction:
    """A processor that covers the configured secrets wherever they turn up, and every field named like one."""

    def __init__(self, secrets: Collection[str]):
        self._secrets = sorted((text for text in secrets if len(text) >= SHORTEST), key=len, reverse=True)

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """The event without secrets."""
        return {key: self._covered(key, value) for key, value in event.items()}

    def _covered(self, key: str, value: object) -> object:
        if any(name in key.lower() for name in NAMES) and isinstance(value, str | bytes):
            return MASK
        if key.startswith("_") or isinstance(value, int | float | None):
            return value
        text = value if isinstance(value, str) else repr(value)
        if not any(secret in text for secret in self._secrets):
            return value
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text


def set_up(level: str, *, human: bool, secrets: Collection[str] = (), stream: TextIO = sys.stderr) -> None:
    """Send every log line of this process to `stream`, as text or as JSON."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human),
    ]
    text = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
    # Tracebacks become text before secrets are covered; a renderer that knew the exception would show local variables.
    last: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        Redaction(secrets),
        text if human else structlog.processors.JSONRenderer(),
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level.upper())
    for chatty in ("aiohttp", "alembic", "asyncio", "httptools", "uvicorn"):
        logging.getLogger(chatty).setLevel(max(logging.root.level, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter
        ],
        logger_factory=structlog.stdlib.LoggerFactory(), cache_logger_on_first_use=True,
    )  # fmt: skip
