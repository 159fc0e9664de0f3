"""Arguments of built-in tools before they run: what is loosened, what is refused and how."""

import pytest

from perdure.domain.errors import ToolError
from perdure.tools.arguments import checked
from perdure.tools.catalogue import BUILTINS

INSERT = BUILTINS["memory_insert"].parameters
SEARCH = BUILTINS["conversation_search"].parameters
FILES = BUILTINS["open_files"].parameters


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"label": "a", "new_string": "b"}, {"label": "a", "new_string": "b"}),
        ({"label": "a", "new_string": "b", "insert_line": 3.0}, {"label": "a", "new_string": "b", "insert_line": 3}),
        ({"label": "a", "new_string": "b", "insert_line": "-1"}, {"label": "a", "new_string": "b", "insert_line": -1}),
        ({"label": "a", "new_string": "b", "insert_line": None}, {"label": "a", "new_string": "b"}),
    ],
)
def test_what_loses_nothing_is_taken(given, taken):
    assert checked("memory_insert", INSERT, given) == taken


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"label": "a"}, r"argument 'new_string'\. memory_insert takes: label \(string\), new_string \(string\)"),
        ({"label": "a", "new_string": "b", "line": 1}, "unknown argument 'line'"),
        ({"label": "a", "new_string": 5}, "new_string must be string"),
        ({"label": None, "new_string": "b"}, "label must be string"),
        ({"label": "a", "new_string": "b", "insert_line": True}, "insert_line must be integer, at least -1"),
        ({"label": "a", "new_string": "b", "insert_line": 1.5}, "insert_line must be integer"),
        ({"label": "a", "new_string": "b", "insert_line": "end"}, "insert_line must be integer"),
        ({"label": "a", "new_string": "b", "insert_line": -2}, "insert_line must be integer, at least -1"),
        ({"x": 1}, "missing argument 'label'; missing argument 'new_string'; unknown argument 'x'"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_expected(given, words):
    with pytest.raises(ToolError, match=words):
        checked("memory_insert", INSERT, given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"roles": "user"}, "roles must be a list, each entry one of assistant, user, tool"),
        ({"roles": ["system"]}, "roles must be a list, each entry one of assistant, user, tool"),
        ({"limit": 0}, "limit must be integer from 1 to 100"),
        ({"limit": 101}, "limit must be integer from 1 to 100"),
    ],
)
def test_lists_choices_and_bounds(given, words):
    with pytest.raises(ToolError, match=words):
        checked("conversation_search", SEARCH, given)


def test_a_list_of_objects():
    given = {"file_requests": [{"file_name": "a"}], "close_all_others": True}
    assert checked("open_files", FILES, given) == given


def test_a_tool_without_arguments_says_so():
    with pytest.raises(ToolError, match="memory_finish_edits takes: no arguments"):
        checked("memory_finish_edits", BUILTINS["memory_finish_edits"].parameters, {"why": "done"})
