"""`memory_apply_patch`: one block with hunks, several with headers, all or nothing (spec §7.2)."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.domain.errors import ToolError
from perdure.domain.records import Block
from perdure.tools.draft import Draft
from perdure.tools.patch import memory_apply_patch, patched

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SHOPPING = "tea\nmilk\nbread\njam"


def block(label: str, value: str, **more) -> Block:
    return Block(id=f"block-{label}", label=label, value=value, created_at=NOW, updated_at=NOW, **more)


def draft(*blocks: Block) -> Draft:
    return Draft(blocks, NOW)


@pytest.mark.parametrize(
    ("value", "patch", "expected"),
    [
        (SHOPPING, "-milk\n+oat milk", "tea\noat milk\nbread\njam"),
        (SHOPPING, "@@ -1,2 +1,3 @@\n tea\n milk\n+eggs\n", "tea\nmilk\neggs\nbread\njam"),
        (SHOPPING, "@@\n-tea\n@@\n-jam\n+honey", "milk\nbread\nhoney"),
        (SHOPPING, "@@\n-jam\n+honey\n@@\n-tea\n+coffee", "coffee\nmilk\nbread\nhoney"),
        ("tea", "--- a/list\n+++ b/list\n@@ -1 +1 @@\n-tea\n+coffee\n\\ No newline at end of file", "coffee"),
        (SHOPPING, "*** Begin Patch\n-tea\n+coffee\n*** End Patch", "coffee\nmilk\nbread\njam"),
        (SHOPPING, "-tea\n-milk\n-bread\n-jam", ""),
        (SHOPPING, "-tea\n-milk\n+x\n@@\n-bread\n-jam\n+y", "x\ny"),
        (SHOPPING, "-milk\n+a\tb\n\n\n", "tea\na    b\nbread\njam"),
        ("", "+tea\n+milk", "tea\nmilk"),
        ("a\n\nb", " a\n\n-b\n+c", "a\n\nc"),
        ("-- x\n++ y", "--- x\n+++ z", "++ z\n++ y"),
    ],
)  # fmt: skip
def test_hunks_change_one_block(value, patch, expected):
    """A hunk's place is found by its lines alone, whatever the numbers say."""
    assert memory_apply_patch(draft(block("list", value)), patch, "list") == expected


@pytest.mark.parametrize(
    ("value", "patch", "words"),
    [
        (SHOPPING, "-coffee\n+x", "These lines are not in the memory block 'list': 'coffee'"),
        (SHOPPING, "-te\n+x", "These lines are not in"),
        ("a\nb\na", "-a\n+x", "These lines occur more than once in 'list': 'a'"),
        (SHOPPING, "+eggs", "only adds lines: put a line that is already there"),
        (SHOPPING, "milk\n+eggs", "The line 'milk' must begin with a space"),
        (SHOPPING, "", "changes nothing"),
        (SHOPPING, "@@\n", "changes nothing"),
        (SHOPPING, " tea\n-milk\n@@\n-milk\n+x", "Two hunks of the patch change the same lines"),
        (SHOPPING, "-tea\n+1→ coffee", "line numbers"),
    ],
)
def test_a_patch_that_does_not_fit_changes_nothing(value, patch, words):
    made = draft(block("list", value))
    with pytest.raises(ToolError, match=words):
        memory_apply_patch(made, patch, "list")
    assert made.edits() == ()


def test_a_patch_without_headers_needs_a_label():
    with pytest.raises(ToolError, match="Give the label of the block"):
        memory_apply_patch(draft(block("list", "a")), "-a\n+b")


def test_headers_change_several_blocks():
    """Add, update, move and delete in one go; the result lists them."""
    made = draft(block("list", SHOPPING), block("old", "x"), block("name", "Bo"))
    said = memory_apply_patch(
        made,
        "*** Begin Patch\n*** Add Block: plans\n+one\n+two\n*** Update Block: list\n@@\n-tea\n+coffee\n"
        "*** Update Block: name\n*** Move to: human\n-Bo\n+Bob\n*** Delete Block: old\n*** End Patch\n",
    )
    assert said == "Added plans\nUpdated list\nMoved name to human\nDeleted old"
    assert [(edit.block.label, edit.block.value, edit.base_version, edit.detach) for edit in made.edits()] == [
        ("old", "x", 1, True),
        ("list", "coffee\nmilk\nbread\njam", 1, False),
        ("human", "Bob", 1, False),
        ("plans", "one\ntwo", 0, False),
    ]


def test_a_move_may_change_no_line():
    made = draft(block("name", "Bo"))
    assert memory_apply_patch(made, "*** Update Block: name\n*** Move to: human\n") == "Moved name to human"


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ("*** Add Block: list\n+x", "already is a memory block 'list'"),
        ("*** Add Block: new\nx", "every line must begin with '\\+'"),
        ("*** Update Block: nobody\n-a", "There is no memory block 'nobody'"),
        ("*** Update Block: list", "changes nothing"),
        ("*** Delete Block: list\n-tea", "Nothing may follow"),
        ("*** Delete Block: fixed", "read-only"),
        ("*** Update Block: fixed\n-a\n+b", "read-only"),
        ("*** Update Block: fixed\n*** Move to: free", "read-only"),
        ("*** Update Block: list\n*** Move to: fixed", "already is a memory block 'fixed'"),
        ("-tea\n*** Update Block: list\n-milk", "stands before the first"),
        ("*** Update Block: list\n-tea\n*** Move to: x", "must begin with"),
    ],
)
def test_headers_that_do_not_fit(patch, words):
    with pytest.raises(ToolError, match=words):
        memory_apply_patch(draft(block("list", SHOPPING), block("fixed", "a", read_only=True)), patch)


def test_file_headers_are_understood_too():
    """Models know the form with File from editing code."""
    assert memory_apply_patch(draft(block("a", "x")), "*** Update File: a\n-x\n+y") == "Updated a"


def test_a_hunk_of_equal_lines_is_found_in_linear_time():
    """Comparing at every line would take minutes here."""
    lines = ["a"] * 50_000
    with pytest.raises(ToolError, match="not in the memory block"):
        patched("\n".join(lines), [" a"] * 25_000 + ["-b"], "list")


LINES = st.lists(st.text("ab ", max_size=3), min_size=1, max_size=12)


@given(old=LINES, new=LINES, data=st.data())
def test_only_the_lines_of_the_hunk_change(old, new, data):
    """Lines outside a hunk stay, whatever it does."""
    start = data.draw(st.integers(0, len(old) - 1))
    end = data.draw(st.integers(start + 1, len(old)))
    patch = [f"-{line}" for line in old[start:end]] + [f"+{line}" for line in new]
    value = "\n".join(old)
    try:
        after = patched(value, patch, "list")
    except ToolError:
        assert not value or value.split("\n").count(old[start]) > 1
    else:
        assert after == "\n".join(old[:start] + new + old[end:])
