"""Logs: one line per event in either form, and no secret in any of them."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from perdure import logs

SECRET = "sk-very-secret"


@pytest.fixture
def restored() -> Iterator[None]:
    """Gives the process its own logging back."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def written(*, human: bool) -> str:
    """What is logged by our own logger and by a library's, with secrets in every place."""
    stream = io.StringIO()
    logs.set_up("info", human=human, secrets=[SECRET, "x"], stream=stream)
    log = structlog.get_logger()
    log.info("asked", url=f"http://u:{SECRET}@host", api_key="another", steps=3, max=["x", SECRET])
    log.debug("too quiet")
    logging.getLogger("perdure.tools").warning("library says %s", SECRET)
    logging.getLogger("uvicorn.error").info("too chatty")
    try:
        local = SECRET
        raise ValueError(f"bad key {local}")
    except ValueError as error:
        log.error("failed", exc_info=error)
    return stream.getvalue()


@pytest.mark.usefixtures("restored")
def test_machines_read_one_object_a_line() -> None:
    """Every line is JSON with level, time and event; tracebacks are inside."""
    lines = [json.loads(line) for line in written(human=False).splitlines()]
    assert [(line["level"], line["event"]) for line in lines] == [
        ("info", "asked"), ("warning", "library says ***"), ("error", "failed"),
    ]  # fmt: skip
    assert lines[0]["url"] == "http://u:***@host"
    assert lines[0]["api_key"] == "***"
    assert lines[0]["steps"] == 3
    assert "ValueError: bad key ***" in lines[2]["exception"]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("human", [True, False])
def test_no_secret_is_written(human: bool) -> None:
    """Not in values, messages, lists, tracebacks, or the source lines that a traceback shows."""
    text = written(human=human)
    assert SECRET not in text
    assert "another" not in text
    assert "Traceback" in text
    assert "too" not in text
