"""The plain memory tools: append, replace, insert, rethink, finish (spec §7.2).

Functions from a draft of the agent's blocks to the tool's result, which is the new value. `patch` and `omni` are
beside; `box` calls them and takes the draft's edits.
"""

from perdure.domain.errors import ToolError
from perdure.tools.draft import Draft, fit_needle, fit_text

SHOWN_LINES = 20
"""How many of the places of an ambiguous text are named."""


def core_memory_append(draft: Draft, label: str, content: str) -> str:
    """Put the content on a new line at the end."""
    block = draft.writable(label)
    return draft.write(label, f"{block.value}\n{fit_text(content)}")


def core_memory_replace(draft: Draft, label: str, old_content: str, new_content: str) -> str:
    """Replace every occurrence. Raises ToolError if there is none."""
    value = draft.writable(label).value
    old = fit_needle(old_content, value, "old_content")
    if old not in value:
        raise ToolError(f"old_content does not occur in the memory block {label!r}. It must match to the letter.")
    return draft.write(label, value.replace(old, fit_text(new_content)))


def memory_insert(draft: Draft, label: str, new_string: str, insert_line: int = -1) -> str:
    """Insert after a line: 0 is the top, -1 the end. Raises ToolError if there is no such line."""
    block = draft.writable(label)
    lines = block.value.split("\n") if block.value else []
    last = max(1, len(lines))  # an empty block is shown as one empty line
    if not -1 <= insert_line <= last:
        raise ToolError(
            f"insert_line is {insert_line}, but the memory block {label!r} has {len(lines)} lines. "
            f"Use 0 for the top, 1 to {last} for after that line, -1 for the end."
        )
    at = last if insert_line == -1 else insert_line
    return draft.write(label, "\n".join([*lines[:at], fit_text(new_string), *lines[at:]]))


def memory_replace(draft: Draft, label: str, old_string: str, new_string: str) -> str:
    """Replace the one occurrence. Raises ToolError if there is none, or several (naming their lines)."""
    value = draft.writable(label).value
    old = fit_needle(old_string, value, "old_string")
    start = value.find(old)
    if start < 0:
        raise ToolError(f"old_string does not occur in the memory block {label!r}. It must match to the letter.")
    if value.find(old, start + 1) >= 0:
        raise ToolError(
            f"old_string occurs more than once in the memory block {label!r}, on lines {_lines(value, old)}. "
            "Give more of the text around the one you mean."
        )
    return draft.write(label, value[:start] + fit_text(new_string) + value[start + len(old) :])


def memory_rethink(draft: Draft, label: str, new_memory: str) -> str:
    """Overwrite a block; one that does not exist is created (★S45)."""
    text = fit_text(new_memory)
    return draft.write(label, text) if draft.has(label) else draft.create(label, text)


def memory_finish_edits(draft: Draft) -> None:
    """Say that the edits are done; the tool rules make something of it."""


def _lines(value: str, needle: str) -> str:
    """The lines on which the needle begins, counted from 1."""
    found: dict[int, None] = {}
    line, seen, at = 1, 0, value.find(needle)
    while at >= 0 and len(found) < SHOWN_LINES:
        line += value.count("\n", seen, at)
        found[line] = None
        seen, at = at, value.find(needle, at + 1)
    return ", ".join(map(str, found)) + (", …" if at >= 0 else "")
