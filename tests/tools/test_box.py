"""The toolbox: its records, and how a call becomes a result and edits (port `Toolbox`, spec §1.6, §8.1)."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from perdure.domain.ids import pattern
from perdure.domain.messages import ToolCall, ToolReturn
from perdure.domain.ports import SearchHit, Toolbox
from perdure.domain.records import Agent, Block, Tool
from perdure.tools.box import ServerToolbox
from perdure.tools.catalogue import tool_id

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 2, tzinfo=UTC)
AGENT = Agent(
    id="agent-1", name="a", agent_type="letta_v1_agent", system="", model="m", llm={}, created_at=NOW, updated_at=NOW
)


@dataclass
class FakeScene:
    """A scene with blocks and a history that is empty, or broken."""

    blocks: tuple[Block, ...] = ()
    agent: Agent = AGENT
    now: datetime = NOW
    broken: Exception | None = None

    async def search_messages(self, query, *, roles, start, end, limit) -> list[SearchHit]:
        if self.broken:
            raise self.broken
        return []


def block(value: str, **more) -> Block:
    return Block(id="block-1", label="human", value=value, created_at=NOW, updated_at=NOW, **more)


def tool(name: str) -> Tool:
    return next(tool for tool in ServerToolbox().builtin() if tool.name == name)


def custom(name: str = "roll") -> Tool:
    return Tool(id="tool-1", name=name, json_schema={}, created_at=NOW, updated_at=NOW)


async def call(tool: Tool, scene: FakeScene | None = None, **arguments):
    box: Toolbox = ServerToolbox()
    return await box.call(tool, ToolCall("call-1", tool.name, "{}"), arguments, scene or FakeScene())


async def test_a_success_has_text_edits_and_no_streams():
    """As the transcript tools.memory_insert."""
    outcome = await call(tool("memory_insert"), FakeScene((block("Bo"),)), label="human", new_string="Likes tea.")
    assert outcome.result == ToolReturn("call-1", "Bo\nLikes tea.", "success", "memory_insert")
    assert [(edit.block.value, edit.base_version) for edit in outcome.edits] == [("Bo\nLikes tea.", 1)]


async def test_a_refusal_has_its_text_in_stderr_and_changes_nothing():
    """As the transcript blocks.read_only_tool."""
    scene = FakeScene((block("be kind", read_only=True),))
    outcome = await call(tool("memory_insert"), scene, label="human", new_string="or not")
    text = (
        "Error executing function memory_insert: ToolError: The memory block 'human' is read-only: "
        "it cannot be changed with a tool."
    )
    assert outcome.result == ToolReturn("call-1", text, "error", "memory_insert", stdout=None, stderr=(text,))
    assert outcome.edits == ()


async def test_finishing_edits_gives_none():
    assert (await call(tool("memory_finish_edits"))).result.content == "None"


async def test_wrong_arguments_come_back_as_an_error():
    outcome = await call(tool("memory_insert"), label="human")
    assert outcome.result.status == "error"
    assert "missing argument 'new_string'" in outcome.result.content


async def test_an_unexpected_exception_is_an_error_of_the_call(caplog):
    """The run goes on; the operator finds the traceback in the log."""
    outcome = await call(tool("conversation_search"), FakeScene(broken=RuntimeError("disk gone")))
    assert outcome.result.content == "Error executing function conversation_search: RuntimeError: disk gone"
    assert "disk gone" in caplog.text


async def test_a_result_is_cut_to_the_limit_of_the_tool():
    """★S12, acceptance 29."""
    short = replace(tool("memory_rethink"), return_char_limit=10)
    outcome = await call(short, FakeScene((block(""),)), label="human", new_memory="x" * 25)
    assert outcome.result.content == (
        "xxxxxxxxxx\n[Cut here: the result has 25 characters, 10 are allowed. Ask for less.]"
    )
    assert outcome.edits[0].block.value == "x" * 25


async def test_search_results_are_json_text():
    assert (await call(tool("conversation_search"), query="tea")).result.content == "No results found."


async def test_send_message_says_it_was_sent():
    assert (await call(tool("send_message"), message="hi")).result.content == "Sent message successfully."


async def test_a_custom_tool_is_refused_with_both_streams():
    """Until a sandbox exists the model is told, and nothing is executed."""
    result = (await call(custom(), x=1)).result
    assert result.status == "error"
    assert "does not execute custom Python tools yet" in result.content
    assert (result.stdout, result.stderr) == ((), (result.content,))


async def test_a_custom_tool_with_the_name_of_a_built_in_one_does_not_run_it():
    outcome = await call(custom("memory_rethink"), FakeScene((block("a"),)), label="human", new_memory="b")
    assert (outcome.result.status, outcome.edits) == ("error", ())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("archival_memory_insert", {"content": "x"}),
        ("archival_memory_search", {"query": "x"}),
        ("run_code", {"code": "1", "language": "python"}),
        ("web_search", {"query": "x"}),
        ("fetch_webpage", {"url": "http://x"}),
        ("open_files", {"file_requests": []}),
        ("grep_files", {"pattern": "x"}),
        ("semantic_search_files", {"query": "x"}),
        ("send_message_to_agent_and_wait_for_reply", {"message": "x", "other_agent_id": "agent-1"}),
        ("send_message_to_agents_matching_tags", {"message": "x", "match_all": [], "match_some": []}),
        ("send_message_to_agent_async", {"message": "x", "other_agent_id": "agent-1"}),
    ],
)
async def test_tools_of_later_versions_say_so(name, arguments):
    outcome = await call(tool(name), **arguments)
    assert outcome.result.status == "error"
    assert f"{name} is not available in this version of Perdure" in outcome.result.content


async def test_a_tool_of_another_kind_says_so():
    outcome = await call(replace(custom("remote"), tool_type="external_mcp"))
    assert "remote (external_mcp) is not available in this version of Perdure" in outcome.result.content


def test_types_of_the_built_in_tools():
    """Spec §8.1."""
    types: dict[str, set[str]] = {}
    for record in ServerToolbox().builtin():
        types.setdefault(record.tool_type, set()).add(record.name)
    assert types == {
        "letta_core": {"send_message", "conversation_search", "archival_memory_insert", "archival_memory_search"},
        "letta_memory_core": {
            "core_memory_append", "core_memory_replace", "memory_insert", "memory_replace", "memory_apply_patch",
            "memory",
        },
        "letta_sleeptime_core": {"memory_rethink", "memory_finish_edits"},
        "letta_builtin": {"run_code", "web_search", "fetch_webpage"},
        "letta_files_core": {"open_files", "grep_files", "semantic_search_files"},
        "letta_multi_agent_core": {
            "send_message_to_agent_and_wait_for_reply", "send_message_to_agents_matching_tags",
            "send_message_to_agent_async",
        },
    }  # fmt: skip


def test_what_may_run_beside_other_calls():
    """Spec §1.6."""
    assert {record.name for record in ServerToolbox().builtin() if record.enable_parallel_execution} == {
        "conversation_search", "archival_memory_search", "run_code", "web_search", "fetch_webpage", "grep_files",
        "semantic_search_files",
    }  # fmt: skip


def test_every_start_makes_the_same_records():
    """Another process or machine must not give built-in tools new ids."""
    assert ServerToolbox().builtin() == ServerToolbox().builtin()
    assert tool_id("memory_insert") == "tool-22143e89-96e8-4246-8cd1-a89b3a53243b"


def test_records_are_well_formed():
    for record in ServerToolbox().builtin():
        assert pattern("tool").match(record.id)
        assert record.json_schema["name"] == record.name
        assert len(record.name) <= 48
        assert record.json_schema["description"] == record.description
        assert record.json_schema["parameters"]["type"] == "object"
        assert set(record.json_schema["parameters"]["required"]) <= set(record.json_schema["parameters"]["properties"])
        assert record.tags == (record.tool_type,)
