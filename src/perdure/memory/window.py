"""Which messages the model sees, as pure functions over the context's list (behaviour spec §1.2).

`repair` runs when a context is read from the database; what a run appends afterwards is whole by construction, so a
turn over a long context costs no pass over it.
"""

from collections.abc import Iterable, Sequence

import msgspec

from perdure.domain.messages import Message, Part, Reasoning, RedactedReasoning, SummarizedReasoning, ToolReturn

INTERRUPTED = "The call was interrupted before it gave a result; it is not known whether it had an effect."
RETURN_CAP_FLOOR = 5_000
RETURN_CAP_SHARE = 0.2
CHARACTERS_PER_TOKEN = 4


def repair(messages: Sequence[Message]) -> list[Message]:
    """The same history in a form every provider takes: each call has one return after it, each return has a call.

    Total: any list of messages has a repaired form. Calls left open by a crash are closed with an error result that
    says so; returns without a call, and second returns for one call, are left out.
    """
    repaired: list[Message] = []
    position = 0
    while position < len(messages):
        message = messages[position]
        position += 1
        if message.role == "tool":
            continue
        repaired.append(message)
        if not message.tool_calls or message.role != "assistant":
            continue
        returns: list[ToolReturn] = []
        sources: list[Message] = []
        while position < len(messages) and messages[position].role == "tool":
            sources.append(messages[position])
            returns.extend(messages[position].tool_returns)
            position += 1
        repaired.append(_closing(message, returns, sources))
    return repaired


def _closing(asked: Message, returns: Iterable[ToolReturn], sources: Sequence[Message]) -> Message:
    """The tool message that answers every call of `asked`; the stored one itself if it already does."""
    by_call: dict[str, ToolReturn] = {}
    for ret in returns:
        by_call.setdefault(ret.tool_call_id, ret)
    wanted = list({call.id: call for call in asked.tool_calls}.values())
    closed = tuple(by_call.get(c.id) or ToolReturn(c.id, INTERRUPTED, "error", c.name) for c in wanted)
    if len(sources) == 1 and sources[0].tool_returns == closed:
        return sources[0]
    base = sources[0] if sources else Message(id=asked.id, role="tool", created_at=asked.created_at)
    return msgspec.structs.replace(base, tool_returns=closed)


def for_model(context: Sequence[Message], new: Sequence[Message], since: int = 1) -> list[Message]:
    """The request's messages: those of the context from index `since` on, then what is not stored yet.

    Index 0 is the system message, which travels apart; an agent that clears its buffer sees only its own request.
    """
    kept = list(context[since:])
    if kept and not new and _only_reasons(kept[-1]):
        kept.pop()
    kept.extend(new)
    return kept


def _only_reasons(message: Message) -> bool:
    thoughts: tuple[type[Part], ...] = (Reasoning, RedactedReasoning, SummarizedReasoning)
    return (
        message.role == "assistant"
        and not message.tool_calls
        and bool(message.content)
        and all(isinstance(part, thoughts) for part in message.content)
    )


def return_char_cap(context_window: int) -> int:
    """Characters of one tool result that may go into the prompt (spec §1.6, layers b and c)."""
    return max(RETURN_CAP_FLOOR, int(context_window * RETURN_CAP_SHARE * CHARACTERS_PER_TOKEN))
