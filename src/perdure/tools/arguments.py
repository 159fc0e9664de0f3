"""The arguments of a built-in tool against its JSON schema, before it runs.

Covers the part of JSON schema that `catalogue` uses. Loose where nothing is lost by it (null for an optional argument,
`5.0` or `"5"` for an integer), strict everywhere else, because a guess would be written into memory.
"""

import re
from collections.abc import Mapping
from typing import Any

from perdure.domain.errors import ToolError

_INTEGER = re.compile(r"-?\d{1,15}")
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict,
}  # fmt: skip


def checked(name: str, parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the tool takes them. Raises ToolError naming everything wrong and what is expected."""
    properties, required = parameters["properties"], parameters.get("required", ())
    given = {key: value for key, value in arguments.items() if value is not None or key in required}
    wrong = [f"unknown argument {key!r}" for key in given if key not in properties]
    wrong += [f"missing argument {key!r}" for key in required if key not in given]
    taken: dict[str, Any] = {}
    for key in properties.keys() & given.keys():
        taken[key] = _loosened(given[key], properties[key])
        complaint = _complaint(taken[key], properties[key])
        if complaint:
            wrong.append(f"{key} {complaint}")
    if wrong:
        raise ToolError(f"{'; '.join(sorted(wrong))}. {expected(name, parameters)}")
    return taken


def expected(name: str, parameters: Mapping[str, Any]) -> str:
    """One sentence that lists what a tool takes."""
    required = parameters.get("required", ())
    words = [
        f"{key} ({_words(schema)}{'' if key in required else ', optional'})"
        for key, schema in parameters["properties"].items()
    ]
    return f"{name} takes: {', '.join(words) or 'no arguments'}."


def _loosened(value: Any, schema: Mapping[str, Any]) -> Any:
    if schema.get("type") != "integer":
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    return value


def _complaint(value: Any, schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a value, as the rest of a sentence."""
    kind = schema.get("type", "string")
    is_bool_in_disguise = isinstance(value, bool) and kind in ("integer", "number")
    if not isinstance(value, _TYPES[kind]) or is_bool_in_disguise:
        return f"must be {_words(schema)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"must be {_words(schema)}"
    if kind in ("integer", "number") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"must be {_words(schema)}"
    if isinstance(value, list) and any(_complaint(item, schema.get("items", {})) for item in value):
        return f"must be {_words(schema)}"
    return None


def _words(schema: Mapping[str, Any]) -> str:
    kind = str(schema.get("type", "string"))
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if kind == "array":
        return f"a list, each entry {_words(schema.get('items', {}))}"
    if "minimum" in schema and "maximum" in schema:
        return f"{kind} from {schema['minimum']} to {schema['maximum']}"
    if "minimum" in schema:
        return f"{kind}, at least {schema['minimum']}"
    return kind
