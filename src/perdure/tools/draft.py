"""An agent's blocks while one memory tool works on them; what comes of it leaves as `BlockEdit` data.

Here are the rules that hold for every memory tool (spec §7.2): read-only blocks, limits (★S44), unknown labels, and
which text may be written. Knows no tool; `memory`, `patch` and `omni` are above. Nothing is saved here.
"""

import re
from collections.abc import Sequence
from datetime import datetime

from msgspec.structs import replace

from perdure.domain.errors import ToolError
from perdure.domain.ids import new_id
from perdure.domain.ports import BlockEdit
from perdure.domain.records import DEFAULT_BLOCK_LIMIT, Block
from perdure.tools.results import storable

TAB = "    "
LABEL_LENGTH = 100
LINE_NUMBER = re.compile(r"^[ \t]*\d+→", re.MULTILINE)
LINE_NUMBER_WARNING = "line numbers are for orientation only"
"""Words of the warning that `memory.prompt` puts beside numbered lines."""


class Draft:
    """The blocks as a tool changes them. All methods raise ToolError, whose text goes back to the model."""

    def __init__(self, blocks: Sequence[Block], now: datetime):
        self._before = {block.id: block for block in blocks}
        self._after = dict(self._before)
        self._now = now

    def find(self, label: str) -> Block:
        """The block of that label. The error lists the labels there are."""
        for block in self._after.values():
            if block.label == label:
                return block
        labels = ", ".join(block.label for block in self._after.values())
        raise ToolError(f"There is no memory block {label!r}. Your blocks are: {labels or 'none'}.")

    def has(self, label: str) -> bool:
        """Whether there is a block of that label."""
        return any(block.label == label for block in self._after.values())

    def writable(self, label: str) -> Block:
        """The block of that label, if a tool may change it."""
        block = self.find(label)
        if block.read_only:
            raise ToolError(f"The memory block {label!r} is read-only: it cannot be changed with a tool.")
        return block

    def write(self, label: str, value: str) -> str:
        """Give a block a new value, and answer it. What would grow beyond the limit is refused (★S44)."""
        block = self.writable(label)
        if len(value) > block.limit and len(value) > len(block.value):
            raise ToolError(
                f"The memory block {label!r} would have {len(value)} characters; its limit is {block.limit}, "
                f"it has {len(block.value)} now. It was not changed. Write less, or shorten it first."
            )
        self._put(replace(block, value=value))
        return value

    def create(self, label: str, value: str, description: str | None = None) -> str:
        """Attach a new block, and answer its value."""
        if self.has(label):
            raise ToolError(f"There already is a memory block {label!r}. Edit it, or choose another label.")
        if len(value) > DEFAULT_BLOCK_LIMIT:
            raise ToolError(f"A new memory block takes {DEFAULT_BLOCK_LIMIT} characters; this has {len(value)}.")
        self._put(
            Block(
                id=new_id("block"), label=_fit_label(label), value=value, description=description,
                created_at=self._now, updated_at=self._now, version=0,
            )
        )  # fmt: skip
        return value

    def rename(self, label: str, to: str) -> None:
        """Give a block another label."""
        block = self.writable(label)
        if to != label and self.has(to):
            raise ToolError(f"There already is a memory block {to!r}. Choose another label.")
        self._put(replace(block, label=_fit_label(to)))

    def describe(self, label: str, description: str) -> None:
        """Give a block another description."""
        self._put(replace(self.writable(label), description=description))

    def detach(self, label: str) -> None:
        """Take a block off the agent; it stays in the store."""
        del self._after[self.writable(label).id]

    def edits(self) -> tuple[BlockEdit, ...]:
        """What changed. Blocks that go come first, so that a new one may take over their label."""
        gone = [
            BlockEdit(block=block, base_version=block.version, detach=True)
            for block in self._before.values()
            if block.id not in self._after
        ]
        kept = [self._edit(block) for block in self._after.values() if block != self._before.get(block.id)]
        return (*gone, *kept)

    def _put(self, block: Block) -> None:
        self._after[block.id] = block

    def _edit(self, block: Block) -> BlockEdit:
        base = block.version
        return BlockEdit(block=replace(block, version=base + 1, updated_at=self._now), base_version=base)


def _fit_label(label: str) -> str:
    """A label names an element of the system prompt, so it must not break out of one."""
    if not label.strip() or len(label) > LABEL_LENGTH or not label.isprintable() or re.search(r"[<>\s]", label):
        raise ToolError(f"{label[:LABEL_LENGTH]!r} cannot be a label: use 1 to {LABEL_LENGTH} characters, no spaces.")
    return label


def fit_text(text: str) -> str:
    """Text as memory takes it: tabs become spaces. Refuses copies of what only the display adds (spec §7.2)."""
    text = storable(text).replace("\t", TAB)
    if LINE_NUMBER.search(text):
        raise ToolError("The text contains line numbers such as '3→'. They are only shown to you: leave them out.")
    if LINE_NUMBER_WARNING in text.lower():
        raise ToolError("The text contains the warning about line numbers, which is no part of a memory: leave it out.")
    return text


def fit_needle(needle: str, value: str, argument: str) -> str:
    """The text to look for, as it stands in the value. Empty or display text is refused like new text."""
    if not needle:
        raise ToolError(f"{argument} is empty: give the text to look for.")
    return needle if needle in value else fit_text(needle)
