"""Chat Completions streams as neutral pieces and one answer.

A provider is a stranger: what it says is bounded in size and in number of calls, and nothing it sends raises
anything but a ModelError.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from perdure.domain.errors import ModelEmptyResponse, ModelError
from perdure.domain.messages import OmittedReasoning, Part, Reasoning, Text, ToolCall, Usage
from perdure.domain.ports import Answer, CallPiece, HiddenPiece, Piece, ReasoningPiece, TextPiece
from perdure.models.chat_events import (
    DONE,
    NOTHING,
    CallDelta,
    Choice,
    Chunk,
    Delta,
    FunctionDelta,
    decoded,
    reported,
    words,
)
from perdure.models.faults import fault_in_stream

CHARACTERS_PER_TOKEN = 4
MAX_KEPT = 64 * 2**20
"""Characters of one answer, each fragment counting `FRAGMENT` more for what it takes to keep it."""
FRAGMENT = 64
MAX_CALLS = 128
MAX_ID = 256
SHOWN = 200
"""Bytes of garbage that an error quotes."""
MOST_TOKENS = 2**31 - 1
"""What the store can count; more than any model reads."""


@dataclass
class OpenCall:
    """A call that is still being told. `told` is the server's id for it, if it has given one."""

    id: str
    told: str | None
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Reading:
    """The state of one answer. `where` names the provider in errors; `hides` says that the model thinks unseen.

    `over`: the server said that nothing follows. `finished`: the answer is whole, only its count may follow.
    `kept`: how much has been said, in characters and fragments.
    """

    def __init__(self, where: str, prompt_bytes: int, *, hides: bool, limit: int = MAX_KEPT):
        self._where, self._prompt_bytes, self._hides, self._limit = where, prompt_bytes, hides, limit
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[OpenCall] = []
        self._at: dict[int, OpenCall] = {}
        self._finish: str | None = None
        self._usage = NOTHING
        self._id: str | None = None
        self._begun = False
        self.over, self.finished, self.kept = False, False, 0

    def read(self, data: bytes) -> Sequence[Piece]:
        """The pieces in one event. Raises a ModelError for an error told in it, for garbage, for too much."""
        data = data.strip()
        if data == DONE:
            self.over = True
        if self.over or not data:
            return ()
        chunk = self._chunk(data)
        if not self._id and isinstance(chunk.id, str):
            self._id = chunk.id[:MAX_ID]
        if chunk.usage is not NOTHING and bytes(chunk.usage) != b"null":
            self._usage = chunk.usage
        return self._choice(chunk.choices[0]) if chunk.choices else ()

    def _choice(self, choice: Choice) -> Sequence[Piece]:
        self._finish = choice.finish_reason or self._finish
        delta, before = choice.delta or choice.message, self.kept
        pieces = self._pieces(delta) if delta else ()
        # Some servers tell a finish with every word; one that comes with words, or before any, is not the end.
        self.finished = self.kept == before and bool(choice.finish_reason or self.finished)
        return pieces

    def _chunk(self, data: bytes) -> Chunk:
        try:
            chunk = decoded(data)
        except (ValueError, RecursionError) as error:
            raise self._garbage(data) from error
        if chunk.error or chunk.object == "error":  # vLLM used to send the error itself as the event
            bare = {"message": chunk.message, "code": chunk.code}
            raise fault_in_stream(chunk.error or bare, self._where)
        return chunk

    def _garbage(self, data: bytes) -> ModelError:
        return ModelError(
            f"{self._where} sent something that is not its protocol. Check that its address is that of the API.",
            data[:SHOWN].decode("utf-8", "replace"),
        )

    def _pieces(self, delta: Delta) -> list[Piece]:
        pieces: list[Piece] = []
        if thought := words(delta.reasoning_content) or words(delta.reasoning) or words(delta.reasoning_text):
            self._thoughts.append(self._keep(thought))
            pieces.append(ReasoningPiece(thought))
        text = words(delta.content) or words(delta.refusal)
        if not (text or delta.tool_calls):
            return pieces
        if self._hides and not self._begun and not self._thoughts:
            pieces.append(HiddenPiece(None))  # thoughts that took place and are not told come first, once (spec §4.4)
        self._begun = True
        if text:
            self._text.append(self._keep(text))
            pieces.append(TextPiece(text))
        pieces += map(self._call, delta.tool_calls or ())
        return pieces

    def _keep(self, text: str) -> str:
        self.kept += len(text) + FRAGMENT
        if self.kept > self._limit:
            raise ModelError(f"{self._where} answers without end: more than {self._limit} characters. Send again.")
        return text

    def _call(self, delta: CallDelta) -> CallPiece:
        """A fragment of a call; the first that names it carries the name."""
        function = delta.function or FunctionDelta()
        call = self._continued(delta, function.name) or self._new_call(delta)
        name = "" if call.name else self._keep(function.name or "")
        call.name = call.name or name
        arguments = function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if arguments:
            call.arguments.append(self._keep(arguments))
        return CallPiece(call.id, name or None, arguments or None)

    def _continued(self, delta: CallDelta, name: str | None) -> OpenCall | None:
        """The call that a fragment goes on with, by its index, else by its id, else the last one; None for a new one.

        Some servers give every call the index 0: a name with another id begins a call. Others give no index and no
        id: then a name does.
        """
        if delta.index is not None:
            call = self._at.get(delta.index)
            other = call is not None and name and delta.id and call.told and delta.id != call.told
            return None if other else call
        if delta.id:
            return next((call for call in self._calls if call.told == delta.id), None)
        return self._calls[-1] if self._calls and not name else None

    def _new_call(self, delta: CallDelta) -> OpenCall:
        """A call begins. An id that is missing, taken or endless is replaced by one of ours."""
        if len(self._calls) == MAX_CALLS:
            raise ModelError(f"{self._where} asked for more than {MAX_CALLS} tool calls at once. Send again.")
        taken = any(call.id == delta.id for call in self._calls)
        usable = delta.id and len(delta.id) <= MAX_ID and not taken
        call = OpenCall(delta.id if delta.id and usable else f"call_{uuid.uuid4().hex[:24]}", delta.id)
        self._keep(delta.id or "")
        self._calls.append(call)
        if delta.index is not None:
            self._at[delta.index] = call
        return call

    def answer(self, stray: bytes = b"") -> Answer:
        """The whole answer. Raises ModelError (cut off, broken off), ModelEmptyResponse.

        `stray`: what else was sent; where there is no whole answer it tells best what is wrong.
        """
        if self._finish == "error":
            raise ModelError(f"{self._where} broke its answer off with an error. Send again.")
        if self._finish is None and not self.over:
            if stray:
                raise self._garbage(stray)
            raise ModelError(f"{self._where} cut its answer off. Send again.", "the stream ended without a finish")
        calls = tuple(ToolCall(call.id, call.name, "".join(call.arguments) or "{}") for call in self._calls)
        if not self._text and not calls:
            raise ModelEmptyResponse(f"{self._where} answered with neither text nor a tool call. {self._advice()}")
        finish = self._finish if self._finish in ("length", "content_filter") else "stop"
        return Answer(
            content=self._content(), tool_calls=calls, finish="tool_calls" if calls else finish,
            usage=self._counted(), request_id=self._id,
        )  # fmt: skip

    def _advice(self) -> str:
        """What to do about an empty answer."""
        if self._finish == "length":
            return "Its output limit was used up before; raise max_output_tokens."
        if self._finish == "content_filter":
            return "Its content filter withheld the answer; change the message."
        return "Send again."

    def _content(self) -> tuple[Part, ...]:
        parts: list[Part] = []
        if self._thoughts:
            parts.append(Reasoning("".join(self._thoughts)))
        elif self._hides:
            parts.append(OmittedReasoning())
        if self._text:
            parts.append(Text("".join(self._text)))
        return tuple(parts)

    def _counted(self) -> Usage:
        """The server's count; without one, an estimate from the bytes."""
        said = reported(self._usage)
        prompt, completion = _count(said.prompt_tokens) or 0, _count(said.completion_tokens) or 0
        if not prompt and not completion:
            told = [*self._text, *self._thoughts, *(a for call in self._calls for a in call.arguments)]
            prompt, completion = self._prompt_bytes // CHARACTERS_PER_TOKEN, sum(map(len, told)) // CHARACTERS_PER_TOKEN
            return Usage(prompt, completion, prompt + completion)
        return Usage(
            prompt, completion, _count(said.total_tokens) or _count(prompt + completion) or 0,
            _count(said.prompt_tokens_details.cached_tokens) if said.prompt_tokens_details else None, None,
            _count(said.completion_tokens_details.reasoning_tokens) if said.completion_tokens_details else None,
        )  # fmt: skip


def _count(number: int | None) -> int | None:
    return None if number is None else min(max(number, 0), MOST_TOKENS)
