"""How many tokens a text is, without a tokenizer: an estimate by the shapes of words, and what a model corrects in it.

A provider's own usage is the truth for what was sent; this is for what has not been sent yet. Held against the
vocabularies of GPT-4 and GPT-4o the estimate lies within a fifth for English, code, JSON, ids and logs, and between the
two where they differ (other scripts). Neighbours: `compact`, which decides by these numbers.
"""

import math
import re
from collections.abc import Mapping, Sequence

import msgspec

from perdure.domain.messages import Image, Message, Part, Reasoning, SummarizedReasoning, Text, ToolReturn

PER_MESSAGE = 4
"""What a chat format adds to each message."""
PER_IMAGE = 1_200
"""A picture of about 1000 by 1000 points; providers count 765 to 1600."""
PLAUSIBLE = (0.25, 4.0)
"""A provider that reports fewer or more tokens per estimated one than this does not count what it was sent."""
ENOUGH = 200
"""Estimated tokens below which a request says little about a model: what its chat format adds outweighs the text."""
MEMORY = 8
"""How many requests a correction averages over; older ones fade."""

CHUNK = 50_000
"""Characters that are looked at in one go; that takes 3 ms."""

_PIECE = re.compile(
    r"[A-Z]?[a-z]{1,12}|[A-Z]{1,4}|[0-9]{1,3}"
    r"|[!-/:-@\[-`{-~]{1,3}|[\n\r]+[ \t]*|[ \t]{2,80}"
    r"|[\u00aa-\u024f\u0370-\u052f]{1,3}|[\u0530-\u2fff]{1,2}|[^\x00-\u2fff]"
)
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")


def estimate(text: str) -> int:
    """Tokens of a text, by the shapes of its words: 20 MB a second, letting other threads in between."""
    return sum(_count(text[at : at + CHUNK]) for at in range(0, len(text), CHUNK))


def _count(text: str) -> int:
    pieces = len(_PIECE.findall(text))
    return pieces if text.isascii() else pieces + len(_ASTRAL.findall(text))


def of_message(message: Message, return_char_cap: int | None = None) -> int:
    """Tokens of a message as a model sees it, tool results cut to `return_char_cap` characters."""
    count = PER_MESSAGE + sum(map(_of_part, message.content))
    count += sum(estimate(call.name) + estimate(call.arguments) + PER_MESSAGE for call in message.tool_calls)
    return count + sum(_of_return(returned, return_char_cap) for returned in message.tool_returns)


def _of_part(part: Part) -> int:
    if isinstance(part, Text):
        return estimate(part.text)
    if isinstance(part, Image):
        return PER_IMAGE
    if isinstance(part, Reasoning):
        return estimate(part.reasoning)
    if isinstance(part, SummarizedReasoning):
        return sum(estimate(paragraph.text) for paragraph in part.summary)
    return 0


def _of_return(returned: ToolReturn, cap: int | None) -> int:
    if isinstance(returned.content, str):
        return estimate(returned.content[:cap]) + PER_MESSAGE
    return sum(map(_of_part, returned.content)) + PER_MESSAGE


class Correction(msgspec.Struct, frozen=True):
    """What a model's real usage says of the estimate: multiply by `factor`. `seen` counts the requests behind it."""

    factor: float = 1.0
    seen: int = 0

    def __call__(self, estimated: int) -> int:
        """The corrected number of tokens, rounded up."""
        return math.ceil(estimated * self.factor)

    def learned(self, estimated: int, reported: int) -> "Correction":
        """The correction after a request that was estimated so and for which the provider counted `reported`.

        Unchanged by requests too small to tell anything and by numbers that cannot be true.
        """
        if estimated < ENOUGH or not PLAUSIBLE[0] <= reported / estimated <= PLAUSIBLE[1]:
            return self
        weight = 1 / min(self.seen + 1, MEMORY)
        return Correction(self.factor + (reported / estimated - self.factor) * weight, self.seen + 1)


def learned_from(
    messages: Sequence[Message], prompts: Mapping[str, int], fixed: int, return_char_cap: int | None = None
) -> Correction:
    """What the last model call of a context says: `prompts` are the reported prompt tokens by step id.

    A call counts only if it saw this context: not one from before the newest summary. `fixed` is the estimate of what
    goes with every request.
    """
    since = max((message.created_at for message in messages if message.role == "summary"), default=None)
    for at in range(len(messages) - 1, 0, -1):
        said = messages[at]
        reported = prompts.get(said.step_id or "")
        if said.role != "assistant" or reported is None or (since and said.created_at < since):
            continue
        sent = fixed + sum(of_message(message, return_char_cap) for message in messages[:at])
        return Correction().learned(sent, reported)
    return Correction()
