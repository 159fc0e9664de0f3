"""A tool's JSON schema from its source, by static analysis only: nothing is imported or executed (spec §8.2, ★S50).

Parsing 1 MB of Python takes about two seconds and some 400 MB, so callers in an event loop use a thread. `annotation`
and `docstring` are below; the API and imports call `derive`.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from perdure.domain.errors import Invalid
from perdure.tools.annotation import Annotations, Schema
from perdure.tools.docstring import Docstring, parse

NAME_LENGTH = 48
MOST_BYTES = 1_000_000
RESERVED = ("self", "agent_state", "agent_id", "client")
"""Parameters that the server fills in; the model never sees them."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def derive(
    source_code: str,
    *,
    name: str | None = None,
    json_schema: Mapping[str, Any] | None = None,
    args_json_schema: Mapping[str, Any] | None = None,
    description: str | None = None,
    source_type: str = "python",
) -> Schema:
    """`{name, description, parameters}` of a tool. Raises Invalid saying what to change in the source.

    An explicit `json_schema` wins; `args_json_schema` replaces the parameters, `description` the docstring's text.
    The function is the one called `name`, else the only public one at the top level, else the last one there.
    """
    if len(source_code) > MOST_BYTES:
        raise Invalid(f"The source has {len(source_code)} characters; a tool's source may have {MOST_BYTES}.")
    if json_schema is not None:
        return _explicit(json_schema, description)
    if source_type != "python":
        raise Invalid(f"A {source_type} tool needs its schema in json_schema: it cannot be read from the source.")
    module = _parsed(source_code)
    function = _function(module, name)
    doc = parse(ast.get_docstring(function) or "")
    words = description or doc.description
    if not words:
        raise Invalid(f"{function.name} has no docstring. Say in one what it does: a model reads nothing else.")
    if args_json_schema is not None:
        parameters = _parameters(args_json_schema)
    else:
        parameters = _from_signature(function, doc, Annotations(module))
    return {"name": _fit_name(function.name), "description": words, "parameters": parameters}


def _explicit(json_schema: Mapping[str, Any], description: str | None) -> Schema:
    name = json_schema.get("name")
    if not isinstance(name, str):
        raise Invalid("json_schema needs a name: {name, description, parameters}.")
    words = json_schema.get("description") or description or ""
    parameters = _parameters(json_schema.get("parameters", {}))
    return {**json_schema, "name": _fit_name(name), "description": words, "parameters": parameters}


def _parameters(schema: Any) -> Schema:
    """A given schema of arguments, as one of type object."""
    schema = {} if schema is None else schema
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise Invalid('The arguments\' schema must be a JSON schema of an object: {"type": "object", "properties": …}.')
    if not isinstance(schema.get("properties", {}), Mapping):
        raise Invalid("The properties of the arguments' schema must be an object with one schema per argument.")
    return {"type": "object", "properties": {}, "required": [], **schema}


def _parsed(source_code: str) -> ast.Module:
    if "\0" in source_code:  # told by the parser as a syntax error, a value error or not at all, by its version
        raise Invalid("The source is not Python: it holds null bytes.")
    try:
        return ast.parse(source_code)
    except SyntaxError as error:
        raise Invalid(f"The source is not Python: {error.msg} (line {error.lineno or 1}).") from None
    except (ValueError, MemoryError, RecursionError):
        # Unencodable text, or nesting beyond what the parser takes; it gives up cleanly.
        raise Invalid("The source is not Python: it is nested too deeply or holds broken characters.") from None


def _function(module: ast.Module, name: str | None) -> Function:
    functions = [node for node in module.body if isinstance(node, Function)]
    if not functions:
        raise Invalid("The source defines no function at its top level. Write the tool as def my_tool(…).")
    if name is not None:
        named = [function for function in functions if function.name == name]
        if not named:
            raise Invalid(f"The source defines no function {name!r} at its top level.")
        return named[-1]
    public = [function for function in functions if not function.name.startswith("_")]
    return (public or functions)[-1]


def _from_signature(function: Function, doc: Docstring, annotations: Annotations) -> Schema:
    signature = function.args
    if signature.vararg or signature.kwarg or signature.posonlyargs:
        raise Invalid(f"{function.name} takes *args, **kwargs or positional-only arguments. Name every argument.")
    optional_from = len(signature.args) - len(signature.defaults)
    defaulted = {arg.arg for arg in signature.args[optional_from:]}
    defaulted |= {a.arg for a, default in zip(signature.kwonlyargs, signature.kw_defaults, strict=True) if default}
    shown = [arg for arg in (*signature.args, *signature.kwonlyargs) if arg.arg not in RESERVED]
    _check_described(function.name, shown, doc)
    properties, required = {}, []
    for arg in shown:
        if arg.annotation is None:
            raise Invalid(f"The parameter {arg.arg} of {function.name} has no type. Write it as {arg.arg}: str.")
        schema, may_be_none = annotations.read(arg.annotation, f"the parameter {arg.arg} of {function.name}")
        properties[arg.arg] = {**schema, "description": doc.arguments[arg.arg]}
        if arg.arg not in defaulted and not may_be_none:
            required.append(arg.arg)
    return {"type": "object", "properties": properties, "required": required}


def _check_described(name: str, shown: list[ast.arg], doc: Docstring) -> None:
    """Every parameter needs words in the docstring, and a name that every provider takes."""
    missing = [arg.arg for arg in shown if not doc.arguments.get(arg.arg)]
    if missing:
        raise Invalid(
            f"The docstring of {name} does not describe {', '.join(missing[:20])}. "
            f"Add under 'Args:' a line such as '{missing[0]} (str): what it is for'."
        )
    odd = next((arg.arg for arg in shown if not _PARAMETER.fullmatch(arg.arg)), None)
    if odd:
        raise Invalid(f"The parameter name {odd[:64]!r} of {name} must be at most 64 of a–z, A–Z, 0–9 and _.")


def _fit_name(name: str) -> str:
    if len(name) > NAME_LENGTH:
        raise Invalid(f"The tool name {name[:64]!r} has {len(name)} characters; {NAME_LENGTH} are allowed.")
    if not _NAME.fullmatch(name):
        raise Invalid(f"The tool name {name!r} may hold only a–z, A–Z, 0–9, _ and -.")
    return name
