"""The memory tools: what each makes of a block, and what it refuses (spec §7.2, ★S44, ★S45, ★S46)."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.domain.errors import ToolError
from perdure.domain.ids import pattern
from perdure.domain.records import Agent, Block
from perdure.memory.prompt import memory_blocks
from perdure.tools.draft import Draft, fit_text
from perdure.tools.memory import (
    core_memory_append,
    core_memory_replace,
    memory_finish_edits,
    memory_insert,
    memory_replace,
    memory_rethink,
)
from perdure.tools.omni import label_of, memory

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BORN = datetime(2025, 1, 1, tzinfo=UTC)


def block(label: str = "human", value: str = "", **more) -> Block:
    return Block(id=f"block-{label}", label=label, value=value, created_at=BORN, updated_at=BORN, **more)


def draft(*blocks: Block) -> Draft:
    return Draft(blocks, NOW)


@pytest.mark.parametrize(
    ("value", "line", "expected"),
    [
        ("one\ntwo", -1, "one\ntwo\nNEW"),
        ("one\ntwo", 0, "NEW\none\ntwo"),
        ("one\ntwo", 1, "one\nNEW\ntwo"),
        ("one\ntwo", 2, "one\ntwo\nNEW"),
        ("", -1, "NEW"),
        ("", 0, "NEW"),
        ("", 1, "NEW"),
        ("one\n", -1, "one\n\nNEW"),
    ],
)
def test_insert_puts_the_text_after_the_line(value, line, expected):
    """0 is the top, -1 the end; an empty block has one empty line, which the text replaces."""
    assert memory_insert(draft(block(value=value)), "human", "NEW", line) == expected


@pytest.mark.parametrize("line", [-2, 3])
def test_insert_refuses_a_line_that_is_not_there(line):
    with pytest.raises(ToolError, match=r"has 2 lines\. Use 0 for the top, 1 to 2 for after that line, -1 for the end"):
        memory_insert(draft(block(value="one\ntwo")), "human", "NEW", line)


def test_append_starts_a_new_line():
    assert core_memory_append(draft(block(value="Likes tea.")), "human", "Has a cat.") == "Likes tea.\nHas a cat."


def test_core_replace_changes_every_occurrence():
    assert core_memory_replace(draft(block(value="a b a")), "human", "a", "c") == "c b c"


@pytest.mark.parametrize(
    ("old", "words"),
    [("z", "does not occur in the memory block 'human'"), ("", "old_content is empty")],
)
def test_core_replace_needs_something_to_replace(old, words):
    """An empty text is everywhere: replacing it would shred the block."""
    with pytest.raises(ToolError, match=words):
        core_memory_replace(draft(block(value="a b a")), "human", old, "c")


def test_replace_changes_the_one_occurrence():
    assert memory_replace(draft(block(value="Likes tea.\nHas a cat.")), "human", "tea", "coffee") == (
        "Likes coffee.\nHas a cat."
    )


@pytest.mark.parametrize(
    ("value", "old", "words"),
    [
        ("tea\ncake\ntea", "tea", "on lines 1, 3. Give more"),
        ("aaa", "aa", "on lines 1. Give more"),
        ("x\n" * 30, "x", "on lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, …"),
        ("tea", "coffee", "does not occur"),
        ("tea", "", "old_string is empty"),
        ("one\ntwo\ntea", "3→ tea", "line numbers"),
    ],
)
def test_replace_refuses_what_is_not_there_exactly_once(value, old, words):
    """Acceptance 69: two occurrences are named by their lines."""
    with pytest.raises(ToolError, match=words):
        memory_replace(draft(block(value=value)), "human", old, "new")


def test_a_text_with_line_numbers_can_still_be_removed():
    """What really stands in a block may be looked for, however it came there."""
    assert memory_replace(draft(block(value="a\n3→ b")), "human", "\n3→ b", "") == "a"


def test_tabs_become_spaces_in_what_is_written_and_nowhere_else():
    made = draft(block(value="a\tb"))
    assert memory_insert(made, "human", "c\td") == "a\tb\nc    d"
    assert memory_replace(made, "human", "a\tb", "x") == "x\nc    d"
    assert memory_replace(made, "human", "c\td", "y") == "x\ny"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3→ tea", "line numbers"),
        ("fine\n  12→tea", "line numbers"),
        ("# The Line numbers are for orientation only.", "warning about line numbers"),
    ],
)
def test_text_copied_from_the_display_is_refused(text, words):
    """Acceptance 69."""
    with pytest.raises(ToolError, match=words):
        memory_insert(draft(block()), "human", text)


def test_the_warning_shown_beside_numbered_lines_is_recognised():
    """The words of the prompt and the words refused belong together."""
    agent = Agent(
        id="agent-1", name="a", agent_type="letta_v1_agent", system="", model="m", created_at=BORN, updated_at=BORN,
        llm={"model_endpoint_type": "anthropic"},
    )  # fmt: skip
    shown = memory_blocks(agent, [block(value="tea")])
    warning = shown.partition("<warning>")[2].partition("</warning>")[0]
    assert "1→ tea" in shown
    with pytest.raises(ToolError, match="warning about line numbers"):
        fit_text(warning)


@pytest.mark.parametrize("text", ["5 → 6", "from 5→10", "a→b"])
def test_arrows_elsewhere_are_just_text(text):
    assert memory_insert(draft(block()), "human", text) == text


def test_nul_and_half_characters_never_reach_a_block():
    assert memory_insert(draft(block()), "human", "a\0b\ud83dc\ud83d\ude00") == "ab\ufffdc\U0001f600"


def test_rethink_overwrites():
    assert memory_rethink(draft(block(value="old")), "human", "new") == "new"


def test_rethink_creates_a_missing_block():
    """★S45."""
    made = draft(block())
    assert memory_rethink(made, "plans", "Buy tea.") == "Buy tea."
    (edit,) = made.edits()
    assert edit.base_version == 0
    assert pattern("block").match(edit.block.id)
    assert (edit.block.label, edit.block.value, edit.block.created_at) == ("plans", "Buy tea.", NOW)


@pytest.mark.parametrize("label", ["", " ", "a b", "</value>", "a\nb", "x" * 101])
def test_a_new_label_cannot_break_the_prompt(label):
    with pytest.raises(ToolError, match="cannot be a label"):
        memory_rethink(draft(), label, "text")


def test_finishing_edits_gives_nothing():
    made = draft(block(value="a"))
    assert memory_finish_edits(made) is None
    assert made.edits() == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: core_memory_append(d, "human", "x"),
        lambda d: core_memory_replace(d, "human", "tea", "x"),
        lambda d: memory_insert(d, "human", "x"),
        lambda d: memory_replace(d, "human", "tea", "x"),
        lambda d: memory_rethink(d, "human", "x"),
        lambda d: memory(d, "str_replace", path="/memories/human", old_string="tea", new_string="x"),
        lambda d: memory(d, "insert", path="/memories/human", insert_text="x"),
        lambda d: memory(d, "delete", path="/memories/human"),
        lambda d: memory(d, "rename", old_path="/memories/human", new_path="/memories/other"),
        lambda d: memory(d, "rename", path="/memories/human", description="x"),
    ],
)
def test_a_read_only_block_stays_as_it_is(change):
    """Acceptance 68; ★S46 for delete and rename."""
    made = draft(block(value="tea", read_only=True))
    with pytest.raises(ToolError, match="'human' is read-only"):
        change(made)
    assert made.edits() == ()


def test_an_unknown_label_lists_the_labels():
    with pytest.raises(ToolError, match=r"no memory block 'humans'\. Your blocks are: human, persona"):
        memory_insert(draft(block("human"), block("persona")), "humans", "x")


def test_without_blocks_the_list_says_so():
    with pytest.raises(ToolError, match="Your blocks are: none"):
        memory_insert(draft(), "human", "x")


def test_a_write_beyond_the_limit_is_refused_with_sizes():
    """★S44."""
    made = draft(block(value="tea", limit=5))
    with pytest.raises(ToolError, match="would have 7 characters; its limit is 5, it has 3 now"):
        memory_insert(made, "human", "ice")
    assert made.edits() == ()


def test_a_block_over_its_limit_may_shrink():
    """★S44: the API accepts such values, and a tool must be able to mend them."""
    assert memory_replace(draft(block(value="0123456789", limit=5)), "human", "01234567", "abcdef") == "abcdef89"


def test_an_edit_carries_the_version_it_was_made_from():
    made = draft(block(value="a", version=7), block("persona", "p"))
    memory_insert(made, "human", "b")
    memory_insert(made, "human", "c")
    (edit,) = made.edits()
    assert (edit.base_version, edit.block.version, edit.block.value, edit.detach) == (7, 8, "a\nb\nc", False)
    assert (edit.block.created_at, edit.block.updated_at) == (BORN, NOW)


def test_writing_the_same_again_is_no_edit():
    """No-op updates do not recompile (spec §7.1)."""
    made = draft(block(value="a"))
    assert memory_rethink(made, "human", "a") == "a"
    assert made.edits() == ()


# --- the omni tool ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/memories/human", "memories/human", "/memories/human/", "/human", "human"])
def test_one_rule_from_path_to_label(path):
    """★S46."""
    assert label_of(path) == "human"


def test_a_label_may_hold_slashes():
    assert label_of("/memories/skills/tea") == "skills/tea"


@pytest.mark.parametrize("path", ["", "/", "/memories", "/memories/"])
def test_a_path_must_name_a_block(path):
    with pytest.raises(ToolError, match="names no block"):
        label_of(path)


def test_create_attaches_a_new_block():
    made = draft(block())
    said = memory(made, "create", path="/memories/plans", description="What to do", file_text="Buy tea.")
    (edit,) = made.edits()
    assert said == "Created the memory block 'plans'."
    assert (edit.block.label, edit.block.description, edit.block.value) == ("plans", "What to do", "Buy tea.")


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("create", {"path": "/memories/plans"}, "path, description and perhaps file_text; description is missing"),
        ("create", {"path": "/memories/human", "description": "d"}, "There already is a memory block 'human'"),
        ("create", {"description": "d"}, "path is missing"),
        ("str_replace", {"path": "/memories/human", "old_string": "tea"}, "new_string is missing"),
        ("insert", {"path": "/memories/human"}, "insert_text is missing"),
        ("delete", {"path": "/memories/nobody"}, "There is no memory block 'nobody'"),
        ("rename", {"old_path": "/memories/human"}, "new_path is missing"),
        ("rename", {"old_path": "/memories/human", "new_path": "/memories/persona"}, "already is .* 'persona'"),
        ("rename", {"path": "/memories/human"}, "description is missing"),
    ],
)
def test_commands_say_what_they_lack(command, arguments, words):
    """★S46: errors are errors."""
    made = draft(block(value="tea"), block("persona"))
    with pytest.raises(ToolError, match=words):
        memory(made, command, **arguments)
    assert made.edits() == ()


def test_insert_without_a_line_goes_to_the_end():
    """★S46."""
    assert memory(draft(block(value="a")), "insert", path="/memories/human", insert_text="b") == "a\nb"


def test_str_replace_gives_the_new_value():
    made = draft(block(value="a b"))
    assert memory(made, "str_replace", path="/memories/human", old_string="b", new_string="c") == "a c"


def test_delete_detaches():
    made = draft(block(value="a", version=3))
    assert memory(made, "delete", path="/memories/human") == "Deleted the memory block 'human'."
    (edit,) = made.edits()
    assert (edit.block.id, edit.base_version, edit.detach) == ("block-human", 3, True)


def test_a_label_that_went_can_be_taken_over_in_the_same_step():
    """The edit that takes the old block away comes first."""
    made = draft(block(value="a"))
    memory(made, "delete", path="/memories/human")
    memory(made, "create", path="/memories/human", description="again")
    assert [(edit.detach, edit.block.label) for edit in made.edits()] == [(True, "human"), (False, "human")]


def test_rename_changes_the_label_and_perhaps_the_description():
    made = draft(block(value="a", description="old"))
    memory(made, "rename", old_path="/memories/human", new_path="/memories/user", description="new")
    (edit,) = made.edits()
    assert (edit.block.label, edit.block.description, edit.block.value) == ("user", "new", "a")


def test_rename_with_a_path_changes_the_description_alone():
    made = draft(block(value="a", description="old"))
    memory(made, "rename", path="/memories/human", description="new")
    (edit,) = made.edits()
    assert (edit.block.label, edit.block.description) == ("human", "new")


# --- nothing else is ever lost -------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t→"), max_size=60)


@given(value=TEXT, new=TEXT, data=st.data())
def test_insert_loses_nothing(value, new, data):
    """Taking the inserted lines out again gives the old value."""
    lines = value.split("\n") if value else []
    at = data.draw(st.integers(-1, max(1, len(lines))))
    after = memory_insert(draft(block(value=value)), "human", new, at).split("\n")
    start, count = len(lines) if at in (-1, len(lines) + 1) else min(at, len(lines)), new.count("\n") + 1
    assert after[start : start + count] == new.split("\n")
    assert after[:start] + after[start + count :] == lines


@given(before=TEXT, old=TEXT.filter(bool), after=TEXT, new=TEXT)
def test_replace_loses_nothing_but_the_old_text(before, old, after, new):
    """Either exactly the one occurrence is exchanged, or nothing changes."""
    made = draft(block(value=before + old + after))
    try:
        value = memory_replace(made, "human", old, new)
    except ToolError:
        assert made.edits() == ()
    else:
        assert value == before + new + after
