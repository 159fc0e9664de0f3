"""Chat Completions streams as neutral pieces and one answer: typed decoding of what servers really send."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from perdure.domain.errors import ModelEmptyResponse, ModelError
from perdure.domain.messages import OmittedReasoning, Part, Reasoning, Text, ToolCall, Usage
from perdure.domain.ports import Answer, CallPiece, HiddenPiece, Piece, ReasoningPiece, TextPiece
from perdure.models.faults import fault_in_stream

CHARACTERS_PER_TOKEN = 4


class FunctionDelta(msgspec.Struct):
    """A fragment of a call's name and arguments; some servers give the arguments as an object."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallDelta(msgspec.Struct):
    """A fragment of a call."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct):
    """A fragment of a message, or the whole of it. Thoughts come under one of three names."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_text: str | None = None
    refusal: str | None = None
    tool_calls: list[CallDelta] | None = None


class Choice(msgspec.Struct):
    """One alternative; only the first is asked for."""

    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct):
    """Where prompt tokens came from."""

    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    """What completion tokens were spent on."""

    reasoning_tokens: int | None = None


class UsageReport(msgspec.Struct):
    """Tokens as the server counts them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Chunk(msgspec.Struct):
    """One event of a stream, or a whole answer."""

    id: str | None = None
    choices: list[Choice] | None = None
    usage: UsageReport | None = None
    error: Any = None


_decode = msgspec.json.Decoder(Chunk).decode


@dataclass
class OpenCall:
    """A call that is still being told."""

    id: str
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Reading:
    """The state of one answer. `where` names the provider in errors; `hides` says that the model thinks unseen."""

    def __init__(self, where: str, prompt_bytes: int, *, hides: bool):
        self._where, self._prompt_bytes, self._hides = where, prompt_bytes, hides
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._calls: dict[int, OpenCall] = {}
        self._finish: str | None = None
        self._usage: UsageReport | None = None
        self._id: str | None = None
        self._begun = False

    def read(self, data: bytes) -> Iterator[Piece]:
        """The pieces in one event. Raises a ModelError for an error told in it, or for garbage."""
        try:
            chunk = _decode(data)
        except msgspec.MsgspecError as error:
            shown = data[:200].decode("utf-8", "replace")
            raise ModelError(f"{self._where} sent something that is not its protocol.", shown) from error
        if chunk.error:
            raise fault_in_stream(chunk.error, self._where)
        self._id, self._usage = chunk.id or self._id, chunk.usage or self._usage
        for choice in chunk.choices[:1] if chunk.choices else ():
            self._finish = choice.finish_reason or self._finish
            delta = choice.delta or choice.message
            if delta is not None:
                yield from self._pieces(delta)

    def _pieces(self, delta: Delta) -> Iterator[Piece]:
        thought = delta.reasoning_content or delta.reasoning or delta.reasoning_text
        if thought:
            self._thoughts.append(thought)
            yield ReasoningPiece(thought)
        text = delta.content or delta.refusal
        if not (text or delta.tool_calls):
            return
        yield from self._hidden()
        if text:
            self._text.append(text)
            yield TextPiece(text)
        for position, call in enumerate(delta.tool_calls or ()):
            yield self._call(call, position)

    def _hidden(self) -> Iterator[Piece]:
        """Thoughts that took place and are not told come first, once (spec §4.4)."""
        if self._hides and not self._begun and not self._thoughts:
            yield HiddenPiece(None)
        self._begun = True

    def _call(self, delta: CallDelta, position: int) -> CallPiece:
        """A fragment of a call; a missing index means its place in the list, a missing id is made up."""
        index = delta.index if delta.index is not None else self._place(delta, position)
        call, new = self._calls.get(index), False
        if call is None:
            call, new = OpenCall(delta.id or f"call_{uuid.uuid4().hex[:24]}"), True
            self._calls[index] = call
        function = delta.function or FunctionDelta()
        arguments = function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        named = function.name if function.name and not call.name else None
        call.name = call.name or function.name or ""
        if arguments:
            call.arguments.append(arguments)
        return CallPiece(call.id, named if named or not new else function.name, arguments or None)

    def _place(self, delta: CallDelta, position: int) -> int:
        """Where a fragment without an index belongs: to the call of its id, else a call of its own if it names one."""
        for index, call in self._calls.items():
            if delta.id and call.id == delta.id:
                return index
        if delta.id or (delta.function and delta.function.name):
            return len(self._calls)
        return max(self._calls, default=position)

    def answer(self, *, ended: bool) -> Answer:
        """The whole answer. `ended`: whether the stream said that it is over. Raises ModelError, ModelEmptyResponse."""
        if self._finish is None and not ended:
            raise ModelError(f"{self._where} cut its answer off. Send again.", "the stream ended without a finish")
        calls = tuple(
            ToolCall(call.id, call.name, "".join(call.arguments) or "{}") for _, call in sorted(self._calls.items())
        )
        if not self._text and not calls:
            raise ModelEmptyResponse(f"{self._where} answered with neither text nor a tool call. Send again.")
        finish = "tool_calls" if calls else {"length": "length"}.get(self._finish or "", "stop")
        return Answer(
            content=self._content(), tool_calls=calls, finish=finish, usage=self._counted(), request_id=self._id
        )

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
        said = self._usage
        if said is None:
            told = [*self._text, *self._thoughts, *(a for call in self._calls.values() for a in call.arguments)]
            prompt, completion = self._prompt_bytes // CHARACTERS_PER_TOKEN, sum(map(len, told)) // CHARACTERS_PER_TOKEN
            return Usage(prompt, completion, prompt + completion)
        prompt, completion = said.prompt_tokens or 0, said.completion_tokens or 0
        return Usage(
            prompt, completion, said.total_tokens or prompt + completion,
            said.prompt_tokens_details.cached_tokens if said.prompt_tokens_details else None, None,
            said.completion_tokens_details.reasoning_tokens if said.completion_tokens_details else None,
        )  # fmt: skip
