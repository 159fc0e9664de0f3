"""Schemas from Python source, by reading it only (spec §8.2, ★S50)."""

import ast

import pytest

from perdure.domain.errors import Invalid
from perdure.tools.docstring import parse
from perdure.tools.schema import derive

ECHO = '''
def echo(text: str) -> str:
    """
    Say it back.

    Args:
        text (str): what to say

    Returns:
        str: the same
    """
    return "heard " + text
'''


def tool(parameters: str, *, before: str = "", described: str | None = None) -> str:
    """A tool with these parameters, all described."""
    names = described.split() if described is not None else _names(parameters)
    lines = "\n".join(f"        {name}: what {name} is" for name in names)
    return f'{before}\ndef act({parameters}):\n    """Does it.\n\n    Args:\n{lines}\n    """\n'


def _names(parameters: str) -> list[str]:
    arguments = ast.parse(f"def f({parameters}): pass").body[0].args
    return [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]


def test_the_whole_schema_of_a_plain_tool():
    """As the transcript tools.crud."""
    assert derive(ECHO) == {
        "name": "echo",
        "description": "Say it back.",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string", "description": "what to say"}},
            "required": ["text"],
        },
    }


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        ("str", {"type": "string"}),
        ("int", {"type": "integer"}),
        ("float", {"type": "number"}),
        ("bool", {"type": "boolean"}),
        ("list", {"type": "array", "items": {"type": "string"}}),
        ("list[int]", {"type": "array", "items": {"type": "integer"}}),
        ("List[List[str]]", {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
        ("typing.List[bool]", {"type": "array", "items": {"type": "boolean"}}),
        ("Sequence[str]", {"type": "array", "items": {"type": "string"}}),
        ("list[str | None]", {"type": "array", "items": {"type": "string"}}),
        ("tuple[str, int]", {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]}),
        ("tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}),
        ("dict", {"type": "object"}),
        ("Dict[str, int]", {"type": "object", "additionalProperties": {"type": "integer"}}),
        ("Literal['a', 'b']", {"type": "string", "enum": ["a", "b"]}),
        ("Literal[1, -2]", {"type": "integer", "enum": [1, -2]}),
        ("Literal[True]", {"type": "boolean", "enum": [True]}),
        ("Annotated[int, 'how many']", {"type": "integer"}),
        ("'str'", {"type": "string"}),
        ("'list[\"int\"]'", {"type": "array", "items": {"type": "integer"}}),
    ],
)
def test_types(annotation, schema):
    parameters = derive(tool(f"x: {annotation}"))["parameters"]
    assert parameters == {
        "type": "object", "properties": {"x": {**schema, "description": "what x is"}}, "required": ["x"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "required"),
    [
        ("x: int", ["x"]),
        ("x: int = 3", []),
        ("x: Optional[int]", []),
        ("x: int | None", []),
        ("x: None | int", []),
        ("x: Union[int, None] = None", []),
        ("x: Literal['a', None]", []),
        ("x: 'Optional[int]'", []),
        ("x: int, y: int = 1, z: str = ''", ["x"]),
        ("x: int, *, y: int, z: int = 1", ["x", "y"]),
    ],
)
def test_what_is_required(parameters, required):
    """No default and not Optional."""
    assert derive(tool(parameters))["parameters"]["required"] == required


def test_reserved_parameters_are_not_shown():
    """★S50: the server fills them in; they need neither type nor words."""
    source = tool("self, agent_state, x: int, agent_id, client=None", described="x")
    assert list(derive(source)["parameters"]["properties"]) == ["x"]


def test_an_async_function_is_a_tool():
    assert derive("async " + ECHO.lstrip())["name"] == "echo"


def test_a_renamed_import_and_an_alias_are_followed():
    before = "from typing import Optional as Maybe, Literal\nColor = Literal['red', 'blue']"
    assert derive(tool("x: Maybe[Color]", before=before))["parameters"] == {
        "type": "object",
        "properties": {"x": {"type": "string", "enum": ["red", "blue"], "description": "what x is"}},
        "required": [],
    }


MODELS = '''
from typing import ClassVar, Optional
from pydantic import BaseModel, Field

class Place(BaseModel):
    """Where it is."""
    city: str = Field(..., description="name of the city")
    zip_code: Optional[str] = None

class Named(BaseModel):
    name: str

class Person(Named):
    """Somebody.

    Attributes:
        age: in years
    """
    kind: ClassVar[str] = "person"
    _secret: int = 0
    age: int
    home: Place
    tags: list[str] = Field(default_factory=list)
    note: str = Field(description="anything")
'''


def test_a_pydantic_model_of_the_same_source_is_a_nested_object():
    """Read from its class body, with the fields of its bases; pydantic is not needed for it."""
    assert derive(tool("who: Person", before=MODELS))["parameters"]["properties"]["who"] == {
        "type": "object",
        "description": "what who is",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "description": "in years"},
            "home": {
                "type": "object",
                "description": "Where it is.",
                "properties": {
                    "city": {"type": "string", "description": "name of the city"},
                    "zip_code": {"type": "string"},
                },
                "required": ["city"],
            },
            "tags": {"type": "array", "items": {"type": "string"}},
            "note": {"type": "string", "description": "anything"},
        },
        "required": ["name", "age", "home", "note"],
    }


TWO = ECHO + ECHO.replace("def echo", "def other") + ECHO.replace("def echo", "def _hidden")


@pytest.mark.parametrize(
    ("source", "name", "chosen"),
    [
        (ECHO + ECHO.replace("def echo", "def _helper"), None, "echo"),
        (TWO, None, "other"),
        (TWO, "echo", "echo"),
        (TWO, "_hidden", "_hidden"),
        (ECHO.replace("def echo", "def _only"), None, "_only"),
    ],
)
def test_which_function_is_the_tool(source, name, chosen):
    """The named one, else the only public one, else the last public one, else the last."""
    assert derive(source, name=name)["name"] == chosen


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("this is no python", r"not Python: invalid syntax \(line 1\)"),
        ("", "defines no function"),
        ("x = 1", "defines no function"),
        ("class A:\n    def f(self): pass", "defines no function"),
        ("def nodoc(x):\n    return x\n", "nodoc has no docstring"),
        ('def f(x):\n    """Does it."""', "docstring of f does not describe x. Add under 'Args:'"),
        ('def f(x: int, y: int):\n    """Does.\n\n    Args:\n        y: good\n    """', "does not describe x"),
        ('def f(x: int):\n    """Does.\n\n    Args:\n        x (int):\n    """', "does not describe x"),
        (tool("x"), "parameter x of act has no type. Write it as x: str"),
        (tool("x: int | str"), "union of several. Use one type"),
        (tool("x: Union[int, str, None]"), "union of several"),
        (tool("x: None"), "union of several"),
        (tool("x: Any"), "cannot be described to a model: Any. Use str, int"),
        (tool("x: datetime"), "cannot be described to a model: datetime"),
        (tool("x: set[int]"), "cannot be described"),
        (tool("x: BaseModel"), "cannot be described to a model: BaseModel"),
        (tool("x: lambda: 1"), "cannot be described"),
        (tool("x: dict[str]"), "cannot be described"),
        (tool("x: Literal['a', 1]"), "strings only, or whole numbers only"),
        (tool("x: Literal[name]"), "strings only"),
        (tool("x: Literal[None]"), "strings only"),
        (tool("x: 'a b'"), "is not Python"),
        (tool("x: P", before="class P(TypedDict):\n    a: int"), "cannot be described to a model: P"),
        (tool("*, x: int, **more", described="x"), r"takes \*args, \*\*kwargs"),
        (tool("*x", described="x"), r"takes \*args"),
        (tool("x: int, /", described="x"), "positional-only"),
        (tool("größe: int"), "parameter name 'größe'"),
        (ECHO.replace("echo", "e" * 49), "has 49 characters; 48 are allowed"),
        (ECHO.replace("echo", "écho"), "may hold only"),
        (ECHO + "\0", "null bytes"),
        (ECHO + "# \ud800", "broken characters"),
        ("#" * 1_000_001, "has 1000001 characters; a tool's source may have 1000000"),
    ],
)
def test_what_is_wrong_is_said(source, words):
    with pytest.raises(Invalid, match=words):
        derive(source)


@pytest.mark.parametrize(
    "source",
    [
        "(" * 5000 + ")" * 5000,
        "-" * 100_000 + "1",
        "x" + ".a" * 100_000,
        "1" + "+1" * 100_000,
        "lambda:" * 20_000 + "1",
        tool("x: " + "list[" * 150 + "int" + "]" * 150),
        tool("x: A", before="A = A"),
        tool("x: A", before="A = list[B]\nB = list[A]"),
        tool("x: Node", before="class Node(BaseModel):\n    next: Optional['Node']"),
        tool("x: A", before="class A(B): pass\nclass B(A, BaseModel): pass"),
        tool("x: A", before="class A(B): pass\nclass B(A): pass"),
        tool("x: M0", before="\n".join(f"class M{n}(BaseModel):\n    a: M{n + 1}\n    b: M{n + 1}" for n in range(30))),
        tool("x: M0", before="\n".join(
            f"class M{n}(M{n + 1}, N{n + 1}): pass\nclass N{n}(M{n + 1}): pass" for n in range(99)
        )),
        tool("x: M0", before="\n".join(
            f"class M{n}(M{n + 1}, N{n + 1}): pass\nclass N{n}(M{n + 1}, N{n + 1}): pass" for n in range(15)
        ) + "\nclass M15(BaseModel): pass\nclass N15(BaseModel): pass"),
        tool("x: tuple[" + "int, " * 5000 + "]"),
    ],
)  # fmt: skip
def test_sources_made_to_explode_are_refused_at_once(source):
    """Deep nesting, circles and doubling: an error, not a full machine."""
    with pytest.raises(Invalid):
        derive(source)


def test_a_long_union_of_none_is_just_optional():
    assert derive(tool("x: int" + " | None" * 500))["parameters"]["required"] == []


def test_nothing_is_executed():
    """A source that would end the process is only read."""
    assert derive("raise SystemExit\nimport os\nos._exit(1)\n" + ECHO)["name"] == "echo"


def test_an_explicit_schema_wins():
    schema = {"name": "mine", "description": "d", "parameters": {"type": "object", "properties": {"a": {}}}}
    assert derive("no python", json_schema=schema) == {
        "name": "mine", "description": "d", "parameters": {"type": "object", "properties": {"a": {}}, "required": []},
    }  # fmt: skip


def test_typescript_needs_an_explicit_schema():
    source = "export function f(a: string) { return a }"
    assert derive(source, source_type="typescript", json_schema={"name": "f"}) == {
        "name": "f", "description": "", "parameters": {"type": "object", "properties": {}, "required": []},
    }  # fmt: skip
    with pytest.raises(Invalid, match="A typescript tool needs its schema in json_schema"):
        derive(source, source_type="typescript")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "needs a name"),
        ({"name": "a b"}, "may hold only"),
        ({"name": "a" * 49}, "49 characters"),
        ({"name": ""}, "may hold only"),
        ({"name": "a", "parameters": {"type": "string"}}, "schema of an object"),
        ({"name": "a", "parameters": []}, "schema of an object"),
        ({"name": "a", "parameters": {"properties": []}}, "one schema per argument"),
    ],
)
def test_an_explicit_schema_must_be_one(schema, words):
    with pytest.raises(Invalid, match=words):
        derive("", json_schema=schema)


def test_given_arguments_replace_the_signature():
    arguments = {"title": "Args", "type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    assert derive('def f(anything):\n    """Finds it."""', args_json_schema=arguments) == {
        "name": "f", "description": "Finds it.", "parameters": arguments,
    }  # fmt: skip


def test_a_given_description_replaces_the_docstring():
    assert derive("def f(): pass", description="Does it.") == {
        "name": "f", "description": "Does it.", "parameters": {"type": "object", "properties": {}, "required": []},
    }  # fmt: skip


# --- docstrings ----------------------------------------------------------------------------------------------------

FULL = """Book a table.

It waits for the answer.
Note: this sentence is no section.

Args:
    place (dict[str, int]): where,
        with the street
    when: a time

        or a day
    odd (a (b) c): it
Raises:
    ValueError: never
Examples:
    >>> book("here")
    True
"""


def test_a_full_docstring():
    doc = parse(FULL)
    assert doc.description == (
        "Book a table.\n\nIt waits for the answer.\nNote: this sentence is no section.\n\n"
        'Examples:\n    >>> book("here")\n    True'
    )
    assert doc.arguments == {"place": "where, with the street", "when": "a time or a day", "odd": "it"}


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ("Args:", {}),
        ("Args:\n    x: a: b", {"x": "a: b"}),
        ("Args:\n    see http://x: y", {}),
        ("Args:\n    x:\n        below", {"x": "below"}),
        ("Args:\n  x: one\n  y: two", {"x": "one", "y": "two"}),
        ("Parameters:\n    x: one", {"x": "one"}),
        ("Args:\n    x (int, optional): one", {"x": "one"}),
    ],
)
def test_argument_sections(text, arguments):
    assert parse(text).arguments == arguments
