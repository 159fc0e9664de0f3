"""The tool `memory`: one tool with a command, for models trained on file editors (spec §7.2, ★S46).

A block is addressed as the path `/memories/<label>`. The rules of the single tools hold here as well.
"""

from collections.abc import Callable, Mapping

from perdure.domain.errors import ToolError
from perdure.tools.draft import Draft, fit_text
from perdure.tools.memory import memory_insert, memory_replace
from perdure.tools.results import storable

ROOT = "memories"

Arguments = Mapping[str, str | int]


def memory(draft: Draft, command: str, **arguments: str | int) -> str:
    """Carry out a command: the new value, or a confirmation. Raises ToolError."""
    return COMMANDS[command](draft, arguments)


def label_of(path: str) -> str:
    """The label a path means: `/memories/human`, `memories/human/`, `/human` and `human` are all `human`."""
    parts = [part for part in path.strip().split("/") if part]
    if parts and parts[0] == ROOT:
        parts = parts[1:]
    if not parts:
        raise ToolError(f"The path {path[:80]!r} names no block. Use /{ROOT}/<label>.")
    return "/".join(parts)


def _create(draft: Draft, arguments: Arguments) -> str:
    label = label_of(_text(arguments, "create", "path"))
    description = storable(_text(arguments, "create", "description"))
    draft.create(label, fit_text(str(arguments.get("file_text", ""))), description)
    return f"Created the memory block {label!r}."


def _str_replace(draft: Draft, arguments: Arguments) -> str:
    label = label_of(_text(arguments, "str_replace", "path"))
    old, new = _text(arguments, "str_replace", "old_string"), _text(arguments, "str_replace", "new_string")
    return memory_replace(draft, label, old, new)


def _insert(draft: Draft, arguments: Arguments) -> str:
    label, text = label_of(_text(arguments, "insert", "path")), _text(arguments, "insert", "insert_text")
    return memory_insert(draft, label, text, int(arguments.get("insert_line", -1)))


def _delete(draft: Draft, arguments: Arguments) -> str:
    label = label_of(_text(arguments, "delete", "path"))
    draft.detach(label)
    return f"Deleted the memory block {label!r}."


def _rename(draft: Draft, arguments: Arguments) -> str:
    """Another label with old_path and new_path, another description with path and description."""
    if "old_path" not in arguments and "new_path" not in arguments:
        label = label_of(_text(arguments, "rename", "path"))
        draft.describe(label, storable(_text(arguments, "rename", "description")))
        return f"Changed the description of the memory block {label!r}."
    label = label_of(_text(arguments, "rename", "old_path"))
    to = label_of(_text(arguments, "rename", "new_path"))
    draft.rename(label, to)
    if "description" in arguments:
        draft.describe(to, storable(str(arguments["description"])))
    return f"Renamed the memory block {label!r} to {to!r}."


def _text(arguments: Arguments, command: str, key: str) -> str:
    if key not in arguments:
        raise ToolError(f"The command {command} needs {NEEDS[command]}; {key} is missing.")
    return str(arguments[key])


NEEDS: Mapping[str, str] = {
    "create": "path, description and perhaps file_text",
    "str_replace": "path, old_string and new_string",
    "insert": "path, insert_text and perhaps insert_line",
    "delete": "path",
    "rename": "old_path and new_path, or path and description",
}
COMMANDS: Mapping[str, Callable[[Draft, Arguments], str]] = {
    "create": _create, "str_replace": _str_replace, "insert": _insert, "delete": _delete, "rename": _rename,
}  # fmt: skip
