"""`demo/demo`: the model that answers before any other is configured.

It is a script with a small grammar, and says so. It remembers through the agent's memory tools, recalls from what
the system message shows, and does sums; so a newcomer sees memory, tools and streaming work without a key.
"""

import ast
import asyncio
import json
import operator
import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping

from perdure.domain.messages import Message, Text, ToolCall, Usage, text_of
from perdure.domain.packaging import cut
from perdure.domain.ports import Answer, CallPiece, ModelRequest, Piece, TextPiece
from perdure.domain.records import ModelInfo

INFO = ModelInfo(
    handle="demo/demo", name="demo", provider_name="demo", provider_type="openai", endpoint_type="openai",
    context_window=32_000, max_output_tokens=4_096, display_name="Demo (a script, not a language model)",
)  # fmt: skip
LABEL = "I am the demo: a script, not a language model."
HINT = "Set OPENAI_API_KEY, OLLAMA_BASE_URL or another provider and restart to talk to a real one."
MAX_TEXT = 2_000
MAX_SUM = 200
WORD_PAUSE = 0.01
LONGEST_ANSWER = 2.0
"""Seconds that the pauses of one answer may take together."""

REMEMBER = re.compile(r"^\s*(?:please\s+)?(?:remember|note|memorize)\s+(?:that\s+)?(.+)$", re.IGNORECASE | re.DOTALL)
FACT = re.compile(r"^\s*((?:my name is|i am called|call me|i like|i live in|i work)\b.+)$", re.IGNORECASE | re.DOTALL)
RECALL = re.compile(
    r"\b(recall|what do you (know|remember)|do you remember|who am i|what('s| is) my name)\b", re.IGNORECASE
)
SUM = re.compile(r"(?:what(?:'s| is)|calculate|compute|how much is)?\s*+([-+*/%().0-9 ]{3,60}+)\??\s*+$", re.IGNORECASE)
BLOCK = re.compile(r"<([^<>/\n][^<>\n]{0,49})>\n<description>")

Saying = str | ToolCall


class DemoProvider:
    """Offers the one demo model. `pause`: seconds between two words of an answer."""

    def __init__(self, pause: float = WORD_PAUSE):
        self.name, self.provider_type, self._pause = "demo", "openai", pause

    async def list_models(self) -> list[ModelInfo]:
        """The demo."""
        return [INFO]

    def open(self, info: ModelInfo) -> "DemoModel":
        """The demo, with the agent's window."""
        return DemoModel(info, self._pause)

    async def close(self) -> None:
        """Nothing to give back."""


class DemoModel:
    """The script."""

    def __init__(self, info: ModelInfo = INFO, pause: float = 0.0):
        self.info, self._pause = info, pause

    async def stream(self, request: ModelRequest) -> AsyncIterator[Piece]:
        """The answer word by word, or one tool call."""
        said = reply(request)
        usage = _usage(request, said)
        if isinstance(said, ToolCall):
            yield CallPiece(said.id, said.name, None)
            yield CallPiece(said.id, None, said.arguments)
            yield Answer(content=(), tool_calls=(said,), finish="tool_calls", usage=usage)
            return
        words = re.findall(r"\s*\S+\s*", said)
        for word in words:
            yield TextPiece(word)
            await asyncio.sleep(min(self._pause, LONGEST_ANSWER / len(words)))
        yield Answer(content=(Text(said),), tool_calls=(), finish="stop", usage=usage)


def reply(request: ModelRequest) -> Saying:
    """What the script says to a request. Total: any request has a reply."""
    last = request.messages[-1] if request.messages else None
    if last is None:
        return f"{LABEL} {HINT}"
    if last.role == "tool":
        return _after_tool(last)
    text = text_of(last.content).strip()[:MAX_TEXT]
    if fact := _fact(text):
        return _remember(fact, request)
    if RECALL.search(text):
        return _recall(request)
    if (found := SUM.match(text)) and (result := calculate(found[1])) is not None:
        return f"{found[1].strip()} = {result}"
    return f"{LABEL} You said: {text!r}. Try “remember that I like tea”, “what do you know?”, “12*7”. {HINT}"


def _fact(text: str) -> str | None:
    found = REMEMBER.match(text) or FACT.match(text)
    return found[1].strip() if found else None


def _remember(fact: str, request: ModelRequest) -> Saying:
    """A call of the memory tool at hand, on the block about the human or the first one there is."""
    tools, blocks = {tool.name for tool in request.tools}, shown_blocks(request.system)
    label = "human" if "human" in blocks else next(iter(blocks), None)
    if label is None:
        return f"I have no memory block to note that in. Create the agent with one, such as 'human'. {LABEL}"
    for name, arguments in (
        ("memory_insert", {"label": label, "new_string": fact}),
        ("core_memory_append", {"label": label, "content": fact}),
    ):
        if name in tools:
            written = json.dumps(arguments, ensure_ascii=False)
            return ToolCall(f"call_{uuid.uuid4().hex[:24]}", name, written.encode("utf-8", "replace").decode())
    return f"I have no memory tool to note that with. Attach memory_insert to this agent. {LABEL}"


def _after_tool(message: Message) -> str:
    ret = message.tool_returns[0] if message.tool_returns else None
    if ret is None or ret.status == "error":
        told = text_of(ret.content) if ret else "nothing"
        return f"That did not work: {told[:MAX_TEXT]}"
    return "I will remember that."


def _recall(request: ModelRequest) -> str:
    blocks = shown_blocks(request.system)
    known = [f"{label}: {cut(value.strip(), MAX_TEXT)}" for label, value in blocks.items() if value.strip()]
    return "This is in my memory:\n" + "\n".join(known) if known else f"My memory is empty. {LABEL}"


def shown_blocks(system: str) -> dict[str, str]:
    """The memory blocks in a system message, by label. What looks like one inside another's value is none."""
    blocks: dict[str, str] = {}
    end = 0
    for head in BLOCK.finditer(system):
        if head.start() < end:
            continue
        start = system.find("<value>\n", head.end()) + len("<value>\n")
        end = system.find("\n</value>", start)
        if start < head.end() or end < 0:
            break
        blocks.setdefault(head[1], system[start:end])
    return blocks


_OPERATORS: Mapping[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip
LARGEST = 1e15


def calculate(text: str) -> str | None:
    """The value of a sum of numbers and + - * / % ( ); None if it is none, or grows too large."""
    if len(text) > MAX_SUM:
        return None
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError, MemoryError):
        return None
    return f"{value + 0:.15g}"  # zero has no sign here


def _value(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        value = float(node.value)
    elif isinstance(node, ast.BinOp):
        value = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp):
        value = _OPERATORS[type(node.op)](_value(node.operand))
    else:
        raise ValueError("not a sum")
    if abs(value) > LARGEST:
        raise ValueError("too large")
    return value


def _usage(request: ModelRequest, said: Saying) -> Usage:
    """Counts in the order of a real tokenizer's, so that figures look like figures."""
    told = said if isinstance(said, str) else said.arguments
    prompt = (len(request.system) + sum(len(text_of(m.content)) for m in request.messages)) // 4
    return Usage(prompt, max(1, len(told) // 4), prompt + max(1, len(told) // 4))
