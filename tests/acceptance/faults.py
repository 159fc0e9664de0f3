"""The table of what a provider can do wrong: what it does, and what caller, run and reader are told of it.

`test_fault_table` carries it out; `docs/faults.md` tells it to operators, and a test holds them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from acceptance.twin import Turn
from models.twin import JSON, SSE, Reply, body, call, delta, events, refusal, streamed

TWIN, HASTY, GONE = "twin/twin", "hasty/twin", "gone/twin"
"""Models: of a patient provider, of one that is given up after a moment, of one that has gone away."""
MOMENT = 0.1
"""Seconds."""
TEN_MB = 10 * 2**20
HEL, STOP = delta(content="Hel"), delta("stop")
HALF = events(HEL, done=False)
"""The first word of an answer, and no end."""
PIECE = b'data: {"choices": [{"del'
"""The beginning of a frame."""
GARBAGE = "twin sent something that is not its protocol. Check that its address is that of the API."
BROKEN_OFF = "The connection to twin broke off. Send again."
CUT_OFF = "twin cut its answer off. Send again."
NO_FINISH = "the stream ended without a finish"
EMPTY = "twin answered with neither text nor a tool call. Send again."
LARGE = "The model sent an event of more than 16777216 bytes. Send again."
OVERFLOW = "The conversation is longer than the model's context window; shorten it or reset it."
SLOW_DOWN = "twin answered 429. It asks for fewer requests; wait a little and send again."
SILENT = "hasty did not answer in time. Send again, or use a faster model."
INCOMPLETE = "Response payload is not completed"
RETRY_LATER = "The fault is on its side; send again later."


@dataclass(frozen=True)
class Told:
    """How a failure is told: without streaming, by the run, and by a stream."""

    status: int
    body: str
    """The answer's error.type, or `detail` where the body has only that."""
    kind: str
    """The run's metadata.error.error_type."""
    frame: str
    """The error_type of the error frame."""
    stop: str = "llm_api_error"
    final: bool = False
    """Whether clients are told not to try again by themselves."""


REFUSED = Told(400, "llm_bad_request", "llm_bad_request", "llm_error")
KEY = Told(401, "llm_authentication", "llm_authentication", "llm_authentication", final=True)
CREDITS = Told(402, "llm_insufficient_credits", "llm_insufficient_credits", "llm_error")
TOO_LONG = Told(400, "detail", "internal_error", "internal_error", stop="error")
BUSY = Told(429, "llm_rate_limit", "llm_rate_limit", "llm_rate_limit")
OVERLOADED = Told(503, "detail", "llm_error", "llm_error")
LATE = Told(504, "llm_timeout", "llm_timeout", "llm_timeout")
FAILED = Told(500, "llm_error", "llm_error", "llm_error")
NOTHING = Told(500, "llm_error", "llm_empty_response", "llm_empty_response", stop="invalid_llm_response")


@dataclass(frozen=True)
class Fault:
    """One line of the table: what the provider does, and what the caller, the run and the reader are told."""

    name: str
    told: Told
    message: str
    detail: str
    """How it begins."""
    turns: Sequence[Turn]
    asked: int = 1
    """How often the provider is asked."""
    shown: Sequence[str] = ()
    """What a reader of tokens sees before the end."""
    model: str = TWIN


FAULTS = [
    # Refusals: told at once, since asking again would not help.
    Fault("answers 400", REFUSED, "twin answered 400. It refuses the request; the detail says why.", "bad field",
          [refusal(400, "bad field")]),
    Fault("answers 401", KEY, "twin answered 401. It refuses the API key; check the key of this provider.", "who?",
          [refusal(401, "who?")]),
    Fault("answers 402", CREDITS, "twin answered 402. The account there has no credits left; top it up.", "empty",
          [refusal(402, "empty")]),
    Fault("answers 404", REFUSED, "twin answered 404. It refuses the request; the detail says why.", "no such model",
          [refusal(404, "no such model")]),
    Fault("answers 413", TOO_LONG, f"twin answered 413. {OVERFLOW}", "too long", [refusal(413, "too long")]),
    Fault("says that the prompt is too long", TOO_LONG, f"twin answered 400. {OVERFLOW}", "x",
          [refusal(400, "x", code="context_length_exceeded")]),
    Fault("answers 302", FAILED,
          "twin answered 302. It sends callers elsewhere; set the address of this provider to the right place.",
          "HTTP 302", [Reply(status=302, headers={"location": "http://127.0.0.1:9/"})]),
    # Failures that may pass: tried twice more.
    Fault("answers 429", BUSY, SLOW_DOWN, "slow down", [refusal(429, "slow down")] * 3, asked=3),
    Fault("answers 429 with a pause of an hour", BUSY, SLOW_DOWN, "slow down",
          [refusal(429, "slow down", headers={"retry-after": "3600"})]),
    Fault("answers 500", FAILED, f"twin answered 500. {RETRY_LATER}", "boom", [refusal(500, "boom")] * 3, asked=3),
    Fault("answers 500 with a body of 10 MB", FAILED, f"twin answered 500. {RETRY_LATER}", "x" * 2000,
          [body(b"x" * TEN_MB, 500)] * 3, asked=3),
    Fault("answers 503", OVERLOADED, "twin answered 503. It is overloaded; wait a little and send again.", "busy",
          [refusal(503, "busy")] * 3, asked=3),
    Fault("answers 504", LATE, "twin answered 504. It took too long; send again, or use a faster model.", "slow",
          [refusal(504, "slow")] * 3, asked=3),
    Fault("drops the line before its answer", FAILED, BROKEN_OFF, "Server disconnected", [Reply(end="drop")] * 3,
          asked=3),
    Fault("is not there", FAILED,
          "gone cannot be reached at http://127.0.0.1:1/v1. Check that it runs and that the address is right.",
          "Cannot connect to", [], asked=0, model=GONE),
    # Silence: not tried again, since it has cost its time already.
    Fault("does not answer in time", LATE, SILENT, SILENT, [Reply(end="mute")], model=HASTY),
    Fault("sends headers and then nothing", LATE, SILENT, SILENT, [Reply(end="hang")], model=HASTY),
    Fault("falls silent between words", LATE, SILENT, SILENT, [Reply(HALF, end="hang")], shown=["Hel"], model=HASTY),
    # Streams that are cut: what was shown is followed by the error, and asked for again by nobody.
    Fault("is cut before its first word", FAILED, BROKEN_OFF, INCOMPLETE, [Reply(end="cut")]),
    Fault("is cut between words", FAILED, BROKEN_OFF, INCOMPLETE, [Reply(HALF, end="cut")], shown=["Hel"]),
    Fault("is cut within a frame", FAILED, BROKEN_OFF, INCOMPLETE, [Reply([*HALF, PIECE], end="cut")], shown=["Hel"]),
    Fault("ends without a finish", FAILED, CUT_OFF, NO_FINISH, [Reply(HALF)], shown=["Hel"]),
    Fault("ends within a frame", FAILED, CUT_OFF, NO_FINISH, [Reply([*HALF, PIECE])], shown=["Hel"]),
    Fault("ends within the arguments of a call", FAILED, CUT_OFF, NO_FINISH,
          [streamed(delta(tool_calls=[call(0, "call_a", "memory_insert")]),
                    delta(tool_calls=[call(0, arguments='{"label": "hu')]), done=False)],
          shown=["memory_insert", '{"label": "hu']),
    Fault("sends an error among its words (429)", BUSY,
          "twin broke off with an error. It asks for fewer requests; wait a little and send again.", "slow down",
          [streamed(HEL, {"error": {"code": 429, "message": "slow down"}})], shown=["Hel"]),
    Fault("sends an error with status 200", FAILED, f"twin broke off with an error. {RETRY_LATER}", "boom",
          [body({"error": {"message": "boom"}})]),
    Fault("finishes with an error", FAILED, "twin broke its answer off with an error. Send again.",
          "twin broke its answer off", [streamed(HEL, delta("error"))], shown=["Hel"]),
    # Garbage.
    Fault("sends a web page", FAILED, GARBAGE, "<html>Sign in</html>",
          [body(b"<html>Sign in</html>", headers={"content-type": "text/html"})]),
    Fault("sends plain text", FAILED, GARBAGE, "upstream connect error",
          [body(b"upstream connect error", headers={"content-type": "text/plain"})]),
    Fault("sends noise", FAILED, GARBAGE, "\x00\ufffd\ufffd", [body(b"\x00\xff\xfe" * 100, headers=SSE)]),
    Fault("sends a frame that is no JSON", FAILED, GARBAGE, "%%garbage%%", [streamed(HEL, "%%garbage%%")],
          shown=["Hel"]),
    Fault("sends a frame of some other JSON", FAILED, GARBAGE, "[1, 2, 3]", [streamed(HEL, [1, 2, 3])], shown=["Hel"]),
    Fault("sends a frame that is nested too deep", FAILED, GARBAGE, "[" * 200, [streamed(HEL, "[" * 100_000)],
          shown=["Hel"]),
    Fault("sends a frame of 10 MB of garbage", FAILED, GARBAGE, "x" * 200, [streamed(HEL, "x" * TEN_MB)],
          shown=["Hel"]),
    Fault("sends a frame of 17 MB", FAILED, LARGE, LARGE, [streamed(HEL, delta(content="x" * (17 * 2**20)))],
          shown=["Hel"]),
    Fault("sends a line without end", FAILED, LARGE, LARGE, [Reply([b"data: ", *[b"x" * 2**20] * 17])]),
    Fault("compresses its answer", FAILED,
          "twin compressed its answer, though it was asked not to. Switch compression off there.",
          "content-encoding: gzip", [Reply([b"\x1f\x8b"], headers={**SSE, "content-encoding": "gzip"})]),
    Fault("sends an empty body", FAILED, CUT_OFF, NO_FINISH, [body(b"", headers=JSON)]),
    # Nothing said: asked once more in silence (★S13).
    Fault("says nothing, twice", NOTHING, EMPTY, EMPTY, [streamed(STOP)] * 2, asked=2),
    Fault("sends `[DONE]` and nothing else, twice", NOTHING, EMPTY, EMPTY, [streamed()] * 2, asked=2),
    Fault("uses its output limit up before a word, twice", NOTHING,
          "twin answered with neither text nor a tool call. Its output limit was used up before; raise "
          "max_output_tokens.", "twin answered with neither", [streamed(delta("length"))] * 2, asked=2),
]  # fmt: skip
BY_NAME = {fault.name: fault for fault in FAULTS}


@dataclass(frozen=True)
class Oddity:
    """What a provider does that costs nothing: the answer is whole."""

    turns: Sequence[Turn]
    text: str
    asked: int = 1
    model: str = TWIN


ODDITIES = {
    "sends its answer in one frame of 10 MB": Oddity([streamed(delta(content="x" * TEN_MB), STOP)], "x" * TEN_MB),
    "leaves `[DONE]` out": Oddity([streamed(HEL, STOP, done=False)], "Hel"),
    "leaves the finish out": Oddity([streamed(HEL)], "Hel"),
    "is cut after its finish": Oddity([Reply(events(HEL, STOP, done=False), end="cut")], "Hel"),
    "falls silent after its finish": Oddity([Reply(events(HEL, STOP, done=False), end="hang")], "Hel", model=HASTY),
    "keeps the line open after `[DONE]`": Oddity([Reply(events(HEL, STOP), end="hang")], "Hel", model=HASTY),
    "answers in one piece, though a stream was asked for": Oddity(
        [body({"choices": [{"message": {"content": "Hel"}, "finish_reason": "stop"}]})], "Hel"
    ),
    "sends comments, other fields and other lines in between": Oddity(
        [Reply([b": wait\n\n", b"event: x\r\n", events(HEL)[0], b"noise\n\n", *events(STOP)])], "Hel"
    ),
    "sends bytes that are no UTF-8 (they become U+FFFD)": Oddity(
        [Reply([b'data: {"choices": [{"delta": {"content": "H\xffl"}}]}\n\n', *events(STOP)])], "H\ufffdl"
    ),
    "answers 500, then as it should": Oddity([refusal(500, "boom"), streamed(HEL, STOP)], "Hel", asked=2),
    "answers 429 twice, then as it should": Oddity([*[refusal(429, "slow")] * 2, streamed(HEL, STOP)], "Hel", asked=3),
    "drops the line once before its answer": Oddity([Reply(end="drop"), streamed(HEL, STOP)], "Hel", asked=2),
    "says nothing once": Oddity([streamed(STOP), streamed(HEL, STOP)], "Hel", asked=2),
}
