"""A run's events as server-sent events: the only place that writes SSE (behaviour spec §4).

Two renderings: by steps (whole messages after each commit) and by tokens (fragments as they come, whole tool
returns). Frames carry no event name but errors; SDKs drop all others. Exactly one terminal sequence ends a stream.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import msgspec

from perdure.api.wire import Wire, wire_date, wire_messages
from perdure.domain.clock import Clock
from perdure.domain.errors import ModelError, PerdureError
from perdure.domain.events import (
    Delta,
    Event,
    HiddenReasoning,
    ReasoningDelta,
    RunEnded,
    RunStarted,
    StepCommitted,
    TextDelta,
    ToolCallDelta,
)
from perdure.domain.ids import new_id, otid
from perdure.domain.messages import Usage

STREAM_ERRORS = (
    "llm_timeout", "llm_rate_limit", "llm_authentication", "llm_empty_response", "llm_error", "internal_error",
)  # fmt: skip
"""What an error frame can call a model's failure (spec §4.5); HTTP answers know more kinds (§3.4)."""
DONE = b"data: [DONE]\n\n"
PING_SECONDS = 20.0
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_encode = msgspec.json.Encoder().encode


def frame(wire: Wire) -> bytes:
    """One data frame."""
    return b"data: %b\n\n" % _encode(wire)


class Rendering:
    """Frames of one stream. `types` restricts content frames, never pings or the terminal sequence (spec §4.4)."""

    def __init__(self, run_id: str, clock: Clock, *, tokens: bool, pings: bool, types: Sequence[str] | None):
        self._run_id, self._clock, self._tokens, self._pings = run_id, clock, tokens, pings
        self._types = frozenset(types or ())
        self._message_id, self._date = "", ""

    def frames(self, event: Event) -> bytes:
        """What one event adds to the stream; empty for nothing."""
        if isinstance(event, Delta):
            return self._delta(event) if self._tokens else b""
        if isinstance(event, StepCommitted):
            return self._step(event)
        if isinstance(event, RunEnded):
            return terminal(event, self._run_id)
        return self.ping() if isinstance(event, RunStarted) else b""

    def ping(self) -> bytes:
        """A sign of life; the first one tells the run's id."""
        if not self._pings:
            return b""
        return frame(_base(new_id("ping"), "ping", self._clock.now(), None, None, self._run_id))

    def _step(self, event: StepCommitted) -> bytes:
        """Whole messages; with tokens only those that no fragment announced: the tools' returns."""
        shown = [m for m in event.messages if not self._tokens or m.role == "tool"]
        wires = (wire for message in shown for wire in wire_messages(message, tuple(self._types)))
        return b"".join(frame(wire) for wire in wires if self._wanted(wire["message_type"]))

    def _delta(self, event: Delta) -> bytes:
        message_type, body = _fragment(event)
        if not self._wanted(message_type):
            return b""
        if event.message_id != self._message_id:
            self._message_id, self._date = event.message_id, wire_date(self._clock.now())
        base = _base(
            event.message_id, message_type, self._date, otid(event.message_id, event.part), event.step_id, self._run_id
        )
        return frame(base | body)

    def _wanted(self, message_type: str) -> bool:
        return not self._types or message_type in self._types


def _base(
    message_id: str, message_type: str, date: datetime | str, message_otid: str | None, step_id: str | None, run_id: str
) -> Wire:
    return {
        "id": message_id, "date": date if isinstance(date, str) else wire_date(date), "name": None,
        "message_type": message_type, "otid": message_otid, "sender_id": None, "step_id": step_id, "is_err": None,
        "seq_id": None, "run_id": run_id,
    }  # fmt: skip


def _fragment(event: Delta) -> tuple[str, Wire]:
    """The message type and own fields of a fragment. Keys of a call that are not known yet are left out (★S1)."""
    if isinstance(event, TextDelta):
        return "assistant_message", {"content": event.text}
    if isinstance(event, ReasoningDelta):
        return "reasoning_message", {
            "source": "reasoner_model", "reasoning": event.text, "signature": event.signature,
        }  # fmt: skip
    if isinstance(event, HiddenReasoning):
        state = "omitted" if event.data is None else "redacted"
        return "hidden_reasoning_message", {"state": state, "hidden_reasoning": event.data}
    assert isinstance(event, ToolCallDelta)
    call = {"name": event.name, "arguments": event.arguments, "tool_call_id": event.tool_call_id}
    known = {key: value for key, value in call.items() if value is not None}
    return "tool_call_message", {"tool_call": known, "tool_calls": known}


def terminal(event: RunEnded, run_id: str) -> bytes:
    """stop_reason, then usage or the error, then [DONE] (spec §4.1, §4.5); a cancelled run shows no usage (★S42)."""
    stop = frame({"message_type": "stop_reason", "stop_reason": event.stop_reason})
    if event.error is not None:
        return stop + b"event: error\ndata: %b\n\n" % _encode(stream_error(event.error, run_id)) + DONE
    if event.stop_reason == "cancelled":
        return stop + DONE
    return stop + frame(usage_statistics(event.usage, event.step_count, event.context_tokens)) + DONE


def stream_error(error: Exception, run_id: str) -> Wire:
    """The data of an error frame (spec §4.5). What we did not foresee is named, never told in its own words."""
    if isinstance(error, ModelError):
        kind = error.error_type if error.error_type in STREAM_ERRORS else "llm_error"
        message, detail = str(error), error.detail
    else:
        told = str(error) if isinstance(error, PerdureError) else "An unknown error occurred"
        kind, message, detail = "internal_error", told, told
    return {
        "message_type": "error_message", "run_id": run_id, "error_type": kind, "message": message, "detail": detail,
        "seq_id": None,
    }  # fmt: skip


def usage_statistics(usage: Usage, step_count: int, context_tokens: int | None) -> Wire:
    """The usage of a request: sums over its steps (spec §3.3)."""
    return {
        "message_type": "usage_statistics", "completion_tokens": usage.completion_tokens,
        "prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens, "step_count": step_count,
        "run_ids": None, "cached_input_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens, "reasoning_tokens": usage.reasoning_tokens,
        "context_tokens": context_tokens,
    }  # fmt: skip


async def stream(batches: AsyncIterator[list[Event]], rendering: Rendering) -> AsyncIterator[bytes]:
    """Frames as events come; a batch without events is a stretch of silence, answered with a ping."""
    async for batch in batches:
        frames = b"".join(map(rendering.frames, batch)) if batch else rendering.ping()
        if frames:
            yield frames
