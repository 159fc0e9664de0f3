"""Google-style docstrings, as far as a tool's schema needs them: what it does, and a text per argument.

Plain text in, plain data out. `schema` is above.
"""

import re
from collections.abc import Iterable, Mapping

import msgspec

ARGUMENTS = ("Args", "Arguments", "Parameters", "Params", "Attributes")
EXAMPLES = ("Example", "Examples")
OTHERS = (
    "Returns", "Return", "Yields", "Raises", "Note", "Notes", "Warning", "Warnings", "See Also", "Todo", "References",
)  # fmt: skip
_SECTION = re.compile(rf"({'|'.join((*ARGUMENTS, *EXAMPLES, *OTHERS))}):\s*")
_ENTRY = re.compile(r"(\w+)[ \t]*(?:\(.*?\)[ \t]*)?:(?:[ \t]+(.*)|$)")


class Docstring(msgspec.Struct, frozen=True):
    """`description` holds the text before the first section and the examples; `arguments` a text per name."""

    description: str = ""
    arguments: Mapping[str, str] = {}


def parse(text: str) -> Docstring:
    """Read a docstring whose common indentation is already removed."""
    sections = _sections(text)
    examples = [f"{title}:\n" + "\n".join(lines).rstrip() for title, lines in sections if title in EXAMPLES]
    described = ["\n".join(sections[0][1]).strip(), *examples]
    entries = {name: words for title, lines in sections if title in ARGUMENTS for name, words in _entries(lines)}
    return Docstring("\n\n".join(words for words in described if words), entries)


def _sections(text: str) -> list[tuple[str, list[str]]]:
    """Titles with their lines; the first, untitled, is the text before all sections."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        header = _SECTION.fullmatch(line)
        if header:
            sections.append((header[1], []))
        else:
            sections[-1][1].append(line)
    return sections


def _entries(lines: Iterable[str]) -> list[tuple[str, str]]:
    """`name (type): words` entries; lines indented deeper than the first entry go on with the one before."""
    found: list[tuple[str, list[str]]] = []
    margin = None
    for line in lines:
        indent, words = len(line) - len(line.lstrip()), line.strip()
        if not words:
            continue
        margin = indent if margin is None else margin
        entry = _ENTRY.fullmatch(words) if indent <= margin else None
        if entry:
            found.append((entry[1], [entry[2] or ""]))
        elif found:
            found[-1][1].append(words)
    return [(name, " ".join(part for part in parts if part).strip()) for name, parts in found]
