"""A run's events as server-sent events: the only place that writes SSE (behaviour spec §4).

Two renderings: by steps (whole messages after each commit) and by tokens (fragments as they come, whole tool
returns). Frames carry no event name but errors; SDKs drop all others. Exactly one terminal sequence ends a stream.
"""

from typing import Any

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
from perdure.domain.records import Run
from perdure.runs.order import Renderings, View
from perdure.runs.outcome import ended_of

STREAM_ERRORS = (
    "llm_timeout", "llm_rate_limit", "llm_authentication", "llm_empty_response", "llm_error", "internal_error",
)  # fmt: skip
"""What an error frame can call a model's failure (spec §4.5); HTTP answers know more kinds (§3.4)."""
DONE = b"data: [DONE]\n\n"
_PING = b'data: {"id":"ping-'
_encode = msgspec.json.Encoder().encode


def frame(wire: Wire) -> bytes:
    """One data frame."""
    return b"data: %b\n\n" % _encode(wire)


class Rendering:
    """Frames of one run (port `Rendering` of `runs`). The view's types restrict content frames only (spec §4.4)."""

    last_frame = DONE

    def __init__(self, run_id: str, view: View, clock: Clock):
        self._run_id, self._view, self._clock = run_id, view, clock
        self._types = frozenset(view.types)
        self._head = self._tail = b""
        self._of: tuple[str, int, type[Delta]] | None = None
        self._date = ""
        self._message_id = ""

    def frames(self, event: Event, number: int) -> list[bytes]:
        """What one event adds to the stream, the first frame numbered `number`."""
        if isinstance(event, Delta):
            return self._delta(event, number) if self._view.tokens else []
        if isinstance(event, StepCommitted):
            return self._step(event, number)
        if isinstance(event, RunEnded):
            return terminal(event, self._run_id, number if self._view.numbered else None)
        if isinstance(event, RunStarted) and self._view.pings:
            return [ping(self._run_id, self._clock, number if self._view.numbered else None)]
        return []

    def closing(self, run: Run, number: int) -> list[bytes]:
        """The terminal frames of a run that has ended, as its record tells it."""
        return terminal(ended_of(run), run.id, number if self._view.numbered else None)

    def _step(self, event: StepCommitted, number: int) -> list[bytes]:
        """Whole messages; with tokens only those that no fragment announced: the tools' returns."""
        shown = [m for m in event.messages if not self._view.tokens or m.role == "tool"]
        wires = [wire for m in shown for wire in wire_messages(m, self._view.types) if self._wanted(wire)]
        if self._view.numbered:
            wires = [wire | {"seq_id": number + at} for at, wire in enumerate(wires)]
        return [frame(wire) for wire in wires]

    def _wanted(self, wire: Wire) -> bool:
        return not self._types or wire["message_type"] in self._types

    def _delta(self, event: Delta, number: int) -> list[bytes]:
        """One fragment. What all fragments of a part have in common is encoded once: this runs for every token."""
        if (event.message_id, event.part, type(event)) != self._of:
            self._begin(event)
        if not self._head:
            return []
        numbered = b"%d" % number if self._view.numbered else b"null"
        return [b"%b%b%b%b}\n\n" % (self._head, numbered, self._tail, _own(event))]

    def _begin(self, event: Delta) -> None:
        """A new part: its frames up to the number, and from there to the part's own fields."""
        self._of = (event.message_id, event.part, type(event))
        if event.message_id != self._message_id:
            self._message_id, self._date = event.message_id, wire_date(self._clock.now())
        kind = MESSAGE_TYPES[type(event)]
        if self._types and kind not in self._types:
            self._head = b""
            return
        number = otid(event.message_id, event.part)
        whole = _encode(_base(event.message_id, kind, self._date, number, event.step_id, self._run_id))
        at = whole.index(b'"seq_id":null') + len(b'"seq_id":')
        self._head, self._tail = b"data: " + whole[:at], whole[at + len(b"null") : -1]


def renderings(clock: Clock) -> Renderings:
    """Makes the rendering of each run."""

    def rendering(run_id: str, view: View) -> Rendering:
        return Rendering(run_id, view, clock)

    return rendering


MESSAGE_TYPES: dict[type[Delta], str] = {
    TextDelta: "assistant_message", ReasoningDelta: "reasoning_message", HiddenReasoning: "hidden_reasoning_message",
    ToolCallDelta: "tool_call_message",
}  # fmt: skip


def _own(event: Delta) -> bytes:
    """The fields of a fragment's own, behind the common ones. Keys of a call not known yet are left out (★S1)."""
    if isinstance(event, TextDelta):
        return b',"content":' + _encode(event.text)
    if isinstance(event, ReasoningDelta):
        signature = _encode(event.signature)
        return b',"source":"reasoner_model","reasoning":%b,"signature":%b' % (_encode(event.text), signature)
    if isinstance(event, HiddenReasoning):
        state = b"omitted" if event.data is None else b"redacted"
        return b',"state":"%b","hidden_reasoning":%b' % (state, _encode(event.data))
    assert isinstance(event, ToolCallDelta)
    call = {"name": event.name, "arguments": event.arguments, "tool_call_id": event.tool_call_id}
    known = _encode({key: value for key, value in call.items() if value is not None})
    return b',"tool_call":%b,"tool_calls":%b' % (known, known)


def ping(run_id: str, clock: Clock, number: int | None) -> bytes:
    """A sign of life with the number of the last frame before it; the first one of a stream tells the run's id."""
    wire = _base(new_id("ping"), "ping", wire_date(clock.now()), None, None, run_id)
    return frame(wire | {"seq_id": number})


def without_ping(data: bytes) -> bytes:
    """The frames without a ping at their beginning; elsewhere a run's own frames have none."""
    return data[data.index(b"\n\n") + 2 :] if data.startswith(_PING) else data


def _base(
    message_id: str, message_type: str, date: str, message_otid: str | None, step_id: str | None, run_id: str
) -> dict[str, Any]:
    return {
        "id": message_id, "date": date, "name": None, "message_type": message_type, "otid": message_otid,
        "sender_id": None, "step_id": step_id, "is_err": None, "seq_id": None, "run_id": run_id,
    }  # fmt: skip


def terminal(event: RunEnded, run_id: str, number: int | None = None) -> list[bytes]:
    """stop_reason, then usage or the error, then [DONE] (spec §4.1, §4.5); a cancelled run shows no usage (★S42)."""
    stop = frame({"message_type": "stop_reason", "stop_reason": event.stop_reason})
    if event.error is not None:
        told = stream_error(event.error, run_id, None if number is None else number + 1)
        return [stop, b"event: error\ndata: %b\n\n" % _encode(told), DONE]
    if event.stop_reason == "cancelled":
        return [stop, DONE]
    return [stop, frame(usage_statistics(event.usage, event.step_count, event.context_tokens)), DONE]


def stream_error(error: Exception, run_id: str, number: int | None = None) -> Wire:
    """The data of an error frame (spec §4.5). What we did not foresee is named, never told in its own words."""
    if isinstance(error, ModelError):
        kind = error.error_type if error.error_type in STREAM_ERRORS else "llm_error"
        message, detail = str(error), error.detail
    else:
        told = str(error) if isinstance(error, PerdureError) else "An unknown error occurred"
        kind, message, detail = "internal_error", told, told
    return {
        "message_type": "error_message", "run_id": run_id, "error_type": kind, "message": message, "detail": detail,
        "seq_id": number,
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
