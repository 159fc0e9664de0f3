"""Python annotations, read from the syntax tree, as JSON schema (spec §8.2). Nothing is imported or executed.

Pydantic models count when they stand in the same source: their class bodies are read like signatures. The size of
what comes out is bounded, because a few classes that use each other twice would otherwise double with every level.
"""

import ast
import inspect
from collections.abc import Sequence
from typing import Any

from perdure.domain.errors import Invalid
from perdure.tools.docstring import parse

Schema = dict[str, Any]

SCALARS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
LISTS = ("list", "List", "Sequence")
TUPLES = ("tuple", "Tuple")
OBJECTS = ("dict", "Dict", "Mapping")
SUPPORTED = (
    "str, int, float, bool, list[…], tuple[…], dict, Literal[…], Optional[…], or a pydantic model defined in the same "
    "source"
)
MOST_TYPES = 2000
DEEPEST = 20


class Annotations:
    """The types of one source file. Raises Invalid for what has no schema, saying what to write instead."""

    def __init__(self, module: ast.Module):
        self._classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
        self._aliases = dict(alias for node in module.body for alias in _aliases(node))
        self._imported = dict(name for node in module.body for name in _imported(node))
        self._left = MOST_TYPES

    def read(self, node: ast.expr, where: str, path: tuple[str, ...] = ()) -> tuple[Schema, bool]:
        """The schema of a type, and whether None is allowed. `where` names the parameter in errors."""
        self._spend(where, path)
        path = (*path, "")
        members, optional = self._members(node, where)
        if len(members) != 1:
            raise Invalid(f"The type of {where} is a union of several. Use one type, or Optional[…] of it.")
        member = members[0]
        if isinstance(member, ast.Subscript):
            schema, may_be_none = self._generic(member, where, path)
        else:
            schema, may_be_none = self._named(member, where, path)
        return schema, optional or may_be_none

    def _spend(self, where: str, path: tuple[str, ...]) -> None:
        self._left -= 1
        if self._left < 0 or len(path) > DEEPEST:
            raise Invalid(f"The type of {where} is nested too deeply or refers to itself. Make it simpler.")

    def _members(self, node: ast.expr, where: str) -> tuple[list[ast.expr], bool]:
        """The types of a union (or the one type), without None, and whether None was among them."""
        members: list[ast.expr] = []
        waiting, optional = [node], False
        while waiting:
            part = _unquoted(waiting.pop(), where)
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitOr):
                waiting += [part.right, part.left]
            elif isinstance(part, ast.Subscript) and self._name(part.value) == "Union":
                waiting += reversed(_items(part))
            elif isinstance(part, ast.Subscript) and self._name(part.value) == "Optional":
                waiting, optional = [*waiting, part.slice], True
            elif isinstance(part, ast.Constant) and part.value is None:
                optional = True
            else:
                members.append(part)
        return members, optional

    def _name(self, node: ast.expr) -> str:
        """What a name or dotted name was called where it was defined."""
        if isinstance(node, ast.Attribute):
            return node.attr
        return self._imported.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    def _named(self, node: ast.expr, where: str, path: tuple[str, ...]) -> tuple[Schema, bool]:
        name = self._name(node)
        if name in SCALARS:
            return {"type": SCALARS[name]}, False
        if name in LISTS or name in TUPLES:
            return {"type": "array", "items": {"type": "string"}}, False
        if name in OBJECTS:
            return {"type": "object"}, False
        if name in self._classes and self._is_model(name):
            return self._model(self._classes[name], path), False
        if name in self._aliases:
            return self.read(self._aliases[name], where, path)
        shown = f": {name[:80]}" if name else ""
        raise Invalid(f"The type of {where} cannot be described to a model{shown}. Use {SUPPORTED}.")

    def _generic(self, node: ast.Subscript, where: str, path: tuple[str, ...]) -> tuple[Schema, bool]:
        name, items = self._name(node.value), _items(node)
        if name == "Literal":
            return _choice(items, where)
        if name == "Annotated":
            return self.read(items[0], where, path)
        if name in LISTS and len(items) == 1:
            return {"type": "array", "items": self.read(items[0], where, path)[0]}, False
        if name in TUPLES:
            return self._tuple(items, where, path), False
        if name in OBJECTS and len(items) == 2:
            return {"type": "object", "additionalProperties": self.read(items[1], where, path)[0]}, False
        raise Invalid(f"The type of {where} cannot be described to a model. Use {SUPPORTED}.")

    def _tuple(self, items: Sequence[ast.expr], where: str, path: tuple[str, ...]) -> Schema:
        if len(items) == 2 and _is_ellipsis(items[1]):
            return {"type": "array", "items": self.read(items[0], where, path)[0]}
        return {"type": "array", "prefixItems": [self.read(item, where, path)[0] for item in items]}

    def _is_model(self, name: str) -> bool:
        """Whether a class of this source descends from BaseModel."""
        waiting, seen = [name], set[str]()
        while waiting:
            current = waiting.pop()
            if current == "BaseModel":
                return True
            if current in self._classes and current not in seen:
                seen.add(current)
                waiting += map(self._name, self._classes[current].bases)
        return False

    def _model(self, model: ast.ClassDef, path: tuple[str, ...]) -> Schema:
        """The object schema of a pydantic model, with the fields of its bases."""
        if model.name in path:
            raise Invalid(f"The model {model.name} refers to itself: its schema has no end. Use dict for the inner.")
        self._spend(model.name, path)
        path, properties, required = (*path, model.name), {}, []
        for base in map(self._name, model.bases):
            if base in self._classes and self._is_model(base):
                inherited = self._model(self._classes[base], path)
                properties.update(inherited["properties"])
                required += inherited["required"]
        doc = parse(inspect.cleandoc(ast.get_docstring(model) or ""))
        for field in filter(_is_field, model.body):
            name, schema, is_required = self._field(field, model.name, path)
            words = schema.get("description") or doc.arguments.get(name)
            properties[name] = {**schema, **({"description": words} if words else {})}
            required = [key for key in required if key != name] + ([name] if is_required else [])
        described = {"description": doc.description} if doc.description else {}
        return {"type": "object", **described, "properties": properties, "required": required}

    def _field(self, field: ast.stmt, model: str, path: tuple[str, ...]) -> tuple[str, Schema, bool]:
        assert isinstance(field, ast.AnnAssign)
        assert isinstance(field.target, ast.Name)
        name = field.target.id
        schema, optional = self.read(field.annotation, f"{model}.{name}", path)
        options = [call for call in ast.walk(field) if isinstance(call, ast.Call) and self._name(call.func) == "Field"]
        words = [_keyword(call, "description") for call in options]
        if words and isinstance(words[0], str):
            schema = {**schema, "description": words[0]}
        return name, schema, not optional and not self._has_default(field.value)

    def _has_default(self, value: ast.expr | None) -> bool:
        """Whether a field's right side gives it a value: `Field(...)` and `Field(description=…)` do not."""
        if not isinstance(value, ast.Call) or self._name(value.func) != "Field":
            return value is not None and not _is_ellipsis(value)
        named = [word.value for word in value.keywords if word.arg in ("default", "default_factory")]
        return any(not _is_ellipsis(given) for given in (*value.args[:1], *named))


def _aliases(node: ast.stmt) -> list[tuple[str, ast.expr]]:
    """`Name = <type>` at the top of a file."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return [(node.targets[0].id, node.value)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return [(node.target.id, node.value)]
    return []


def _imported(node: ast.stmt) -> list[tuple[str, str]]:
    """New name and old name for every `from … import old as new`."""
    return [(n.asname, n.name) for n in node.names if n.asname] if isinstance(node, ast.ImportFrom) else []


def _items(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _unquoted(node: ast.expr, where: str) -> ast.expr:
    """The type inside a quoted annotation."""
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        return node
    try:
        inner = ast.parse(node.value.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Invalid(f"The type of {where} is not Python. Use {SUPPORTED}.") from None
    return _unquoted(inner, where)


def _choice(items: Sequence[ast.expr], where: str) -> tuple[Schema, bool]:
    """An enum of constants of one type; a None among them makes it optional."""
    values = [_constant(item) for item in items]
    kinds = {SCALARS.get(type(value).__name__) for value in values if value is not None}
    if len(kinds) != 1 or None in kinds:
        raise Invalid(f"The Literal of {where} must hold strings only, or whole numbers only, or booleans only.")
    schema = {"type": kinds.pop(), "enum": [value for value in values if value is not None]}
    return schema, None in values


def _constant(node: ast.expr) -> Any:
    """The value of a written-out constant; an Ellipsis, which no schema takes, for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value = node.operand.value
        return -value if isinstance(value, int | float) else ...
    return node.value if isinstance(node, ast.Constant) else ...


def _keyword(call: ast.Call, name: str) -> Any:
    return next((_constant(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def _is_field(node: ast.stmt) -> bool:
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
        return False
    outer = node.annotation.value if isinstance(node.annotation, ast.Subscript) else node.annotation
    is_class_variable = "ClassVar" in (getattr(outer, "id", ""), getattr(outer, "attr", ""))
    return not node.target.id.startswith("_") and not is_class_variable


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...
