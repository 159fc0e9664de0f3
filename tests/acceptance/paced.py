"""A model that speaks piece by piece, when a story lets it, and notices what should not be.

Each message says what its model does, so that afterwards everything that was stored can be told from what was sent.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence

from perdure.domain.errors import ModelTimeout
from perdure.domain.messages import Message, Text, ToolCall, Usage, text_of
from perdure.domain.ports import Answer, CallPiece, ModelRequest, Piece, TextPiece
from perdure.domain.records import ModelInfo

HANDLE = "paced/model"
INFO = ModelInfo(
    handle=HANDLE, name="model", provider_name="paced", provider_type="openai", endpoint_type="openai",
    context_window=1_000_000,
)  # fmt: skip


class Paced:
    """A model and its provider. It says a piece only when it is let; a message's last word says what it does.

    `text`: an answer; `tool`: a note in memory, then an answer; `fails`: words, then an error.
    """

    def __init__(self) -> None:
        self.name, self.provider_type, self.info = "paced", "openai", INFO
        self.speaking, self.alone = 0, True
        self.faults: list[str] = []
        """What should not have been."""
        self._may = asyncio.Semaphore(0)
        self._free = False

    def step(self) -> None:
        """Let it say one piece more."""
        self._may.release()

    def run_free(self) -> None:
        """Let it say everything."""
        self._free = True
        for _ in range(100):
            self._may.release()

    def hold(self) -> None:
        """Begin again with silence."""
        self._free, self._may = False, asyncio.Semaphore(0)

    async def list_models(self) -> list[ModelInfo]:
        return [INFO]

    def open(self, info: ModelInfo) -> "Paced":
        return self

    async def close(self) -> None:
        pass

    async def stream(self, request: ModelRequest) -> AsyncIterator[Piece]:
        """What the last user message asks for. Two at once, or a prompt that is not whole, is a fault."""
        self.faults += problems_of(request.messages)
        if self.speaking and self.alone:
            self.faults.append("two runs ask the model at once")
        self.speaking += 1
        try:
            for piece in self._said(request.messages):
                await self._turn()
                yield piece
        finally:
            self.speaking -= 1

    async def _turn(self) -> None:
        if not self._free:
            await self._may.acquire()

    def _said(self, messages: Sequence[Message]) -> Iterator[Piece]:
        asked = next(text_of(message.content) for message in reversed(messages) if message.role == "user")
        if asked.endswith("tool") and messages[-1].role == "user":
            arguments = json.dumps({"label": "notes", "new_string": asked})
            yield CallPiece("call_a", "memory_insert", arguments)
            yield answer_of("", (ToolCall("call_a", "memory_insert", arguments),))
            return
        for word in ("re: ", asked):
            yield TextPiece(word)
        if asked.endswith("fails"):
            raise ModelTimeout("Too slow.")
        yield answer_of(f"re: {asked}")


def answer_of(text: str, calls: tuple[ToolCall, ...] = ()) -> Answer:
    """A whole answer."""
    content = (Text(text),) if text else ()
    return Answer(content=content, tool_calls=calls, finish="stop", usage=Usage(10, 5, 15))


def problems_of(messages: Sequence[Message]) -> list[str]:
    """What a provider would refuse in a prompt: calls without returns, returns without calls, nothing to answer."""
    found, owed = [], None
    for message in messages:
        returned = tuple(ret.tool_call_id for ret in message.tool_returns)
        if owed is not None and returned != owed:
            found.append(f"calls {owed} are followed by a {message.role} with returns {returned}")
        if owed is None and returned:
            found.append(f"returns {returned} of no call")
        owed = tuple(call.id for call in message.tool_calls) or None
    if owed or messages[-1].role not in ("user", "tool"):
        found.append(f"the prompt ends with {messages[-1].role}")
    return found
