"""The tool `memory_apply_patch`: unified-diff style changes of one block, or of several with headers (spec §7.2).

One block: hunks of lines that begin with a space (kept), `-` (removed) or `+` (added), separated by `@@` lines.
Several blocks: such hunks under the headers

    *** Add Block: <label>        only + lines follow
    *** Update Block: <label>     hunks follow
    *** Move to: <label>          right after Update: the block's new label
    *** Delete Block: <label>     nothing follows

between optional `*** Begin Patch` and `*** End Patch`. Everything is applied or nothing is. A hunk's place is found
by its text alone, because models count lines badly; text that is missing or occurs twice is an error.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from perdure.domain.errors import ToolError
from perdure.tools.draft import Draft, fit_text

_HEADER = re.compile(r"\*\*\* (Add|Update|Delete) (?:Block|File): *(.*)")
_MOVE = re.compile(r"\*\*\* Move to: *(.*)")
_FRAME = re.compile(r"\*\*\* (?:Begin|End) (?:Patch|of File) *")
_DIFF_HEADER = re.compile(r"(?:---|\+\+\+|diff |index )")


@dataclass
class Hunk:
    """Lines that are there, and the lines that shall be."""

    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


@dataclass
class Operation:
    """What a header asks for, with the lines below it."""

    kind: str
    label: str
    move_to: str | None = None
    lines: list[str] = field(default_factory=list)


def memory_apply_patch(draft: Draft, patch: str, label: str | None = None) -> str:
    """Apply a patch: the block's new value, or for several blocks one line per operation. Raises ToolError."""
    lines = patch.removesuffix("\n").split("\n")
    if any(_HEADER.fullmatch(line.rstrip()) for line in lines):
        return "\n".join(_carry_out(draft, operation) for operation in _operations(lines))
    if label is None:
        raise ToolError("Give the label of the block, or a patch with headers such as '*** Update Block: <label>'.")
    value = draft.writable(label).value
    return draft.write(label, patched(value, [line for line in lines if not _FRAME.fullmatch(line)], label))


def _operations(lines: Sequence[str]) -> list[Operation]:
    operations: list[Operation] = []
    for line in lines:
        header, move = _HEADER.fullmatch(line.rstrip()), _MOVE.fullmatch(line.rstrip())
        if header:
            operations.append(Operation(header[1], header[2]))
        elif _FRAME.fullmatch(line) or (not operations and not line.strip()):
            continue
        elif not operations:
            raise ToolError(f"{line[:80]!r} stands before the first '*** … Block:' header. Put it under one.")
        elif move and operations[-1].kind == "Update" and not operations[-1].lines:
            operations[-1].move_to = move[1]
        else:
            operations[-1].lines.append(line)
    return operations


def _carry_out(draft: Draft, operation: Operation) -> str:
    """Do one operation and say what was done."""
    label = operation.label
    if operation.kind == "Add":
        draft.create(label, _added(operation))
        return f"Added {label}"
    if operation.kind == "Delete":
        if any(line.strip() for line in operation.lines):
            raise ToolError(f"Nothing may follow '*** Delete Block: {label}' but another header.")
        draft.detach(label)
        return f"Deleted {label}"
    if operation.lines or operation.move_to is None:
        draft.write(label, patched(draft.writable(label).value, operation.lines, label))
    if operation.move_to is None:
        return f"Updated {label}"
    draft.rename(label, operation.move_to)
    return f"Moved {label} to {operation.move_to}"


def _added(operation: Operation) -> str:
    """The value of a new block, from + lines alone."""
    lines = _without_blank_end(operation.lines)
    if any(not line.startswith("+") for line in lines):
        raise ToolError(f"Under '*** Add Block: {operation.label}' every line must begin with '+'.")
    return fit_text("\n".join(line[1:] for line in lines))


def patched(value: str, lines: Sequence[str], label: str) -> str:
    """The value with all hunks applied. Raises ToolError if one does not fit, fits twice or overlaps another."""
    hunks = _hunks(lines, label)
    old_lines = value.split("\n") if value else []
    places = sorted(((_place(value, hunk, label), hunk) for hunk in hunks), key=lambda placed: placed[0])
    for (first, hunk), (second, _) in pairwise(places):
        if first + max(1, len(hunk.old)) > second:
            raise ToolError(f"Two hunks of the patch change the same lines of {label!r}. Make them one.")
    for first, hunk in reversed(places):
        old_lines[first : first + len(hunk.old)] = hunk.new
    return "\n".join(old_lines)


def _hunks(lines: Sequence[str], label: str) -> list[Hunk]:
    hunks: list[Hunk] = [Hunk()]
    for line in _without_blank_end(_without_diff_header(lines)):
        if line.startswith("@@"):
            hunks.append(Hunk())
        elif not line.startswith("\\"):  # "\ No newline at end of file" says nothing about a block
            _read(line, hunks[-1])
    hunks = [hunk for hunk in hunks if hunk.old or hunk.new]
    if not hunks:
        raise ToolError(f"The patch for {label!r} changes nothing: give lines that begin with '-' or '+'.")
    return hunks


def _read(line: str, hunk: Hunk) -> None:
    mark, text = line[:1] or " ", line[1:]
    if mark not in " -+":
        raise ToolError(f"The line {line[:80]!r} must begin with a space (kept), '-' (removed), '+' (added) or '@@'.")
    if mark != "+":
        hunk.old.append(text)
    if mark != "-":
        hunk.new.append(fit_text(text) if mark == "+" else text)


def _place(value: str, hunk: Hunk, label: str) -> int:
    """The line, counted from 0, where the hunk's old lines stand."""
    if not hunk.old and not value:
        return 0
    if not hunk.old:
        raise ToolError(f"A hunk for {label!r} only adds lines: put a line that is already there beside them.")
    # One text search over the whole value stays linear where comparing line by line would not.
    padded, needle = f"\n{value}\n", "\n" + "\n".join(hunk.old) + "\n"
    at = padded.find(needle)
    if at < 0:
        raise ToolError(f"These lines are not in the memory block {label!r}: {_shown(hunk.old)}. Copy them exactly.")
    if padded.find(needle, at + 1) >= 0:
        raise ToolError(f"These lines occur more than once in {label!r}: {_shown(hunk.old)}. Add lines around them.")
    return padded.count("\n", 0, at)


def _shown(lines: Sequence[str]) -> str:
    return repr("\n".join(lines)[:200])


def _without_diff_header(lines: Sequence[str]) -> Sequence[str]:
    """The lines from the first hunk on. Only a whole header with a hunk right below is one: it might be a change."""
    for index, line in enumerate(lines[:5]):
        if line.startswith("@@") and index > 1 and lines[index - 1].startswith("+++ "):
            return lines[index:] if all(_DIFF_HEADER.match(above) for above in lines[:index]) else lines
    return lines


def _without_blank_end(lines: Sequence[str]) -> Sequence[str]:
    """Empty lines at the end are how a text ends, not context."""
    end = len(lines)
    while end and not lines[end - 1]:
        end -= 1
    return lines[:end]
