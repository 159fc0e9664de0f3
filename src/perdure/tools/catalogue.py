"""The built-in tools as data: name, type, what the model is told, argument schema (spec §7.2, §7.3, §8.1, §8.5).

Knows nothing of what they do: `box` joins a name with its function. Types follow where a tool belongs, so that clients
that group tools by type show the memory editors together.
"""

import hashlib
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from perdure.domain.records import Tool

BORN = datetime(2026, 1, 1, tzinfo=UTC)
"""Creation date of all built-in tools, so that their records are the same on every start."""

Schema = dict[str, Any]


class Builtin(msgspec.Struct, frozen=True):
    """A tool that every server has. `arguments` maps names to schemas; those not in `optional` are required."""

    name: str
    tool_type: str
    description: str
    arguments: Mapping[str, Schema] = {}
    optional: tuple[str, ...] = ()
    parallel: bool = False

    @property
    def parameters(self) -> Schema:
        """The JSON schema of the arguments, type object."""
        required = [name for name in self.arguments if name not in self.optional]
        return {"type": "object", "properties": dict(self.arguments), "required": required}

    def record(self) -> Tool:
        """The tool as the store keeps it."""
        schema = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return Tool(
            id=tool_id(self.name), name=self.name, json_schema=schema, created_at=BORN, updated_at=BORN,
            tool_type=self.tool_type, description=self.description, source_type="python", tags=(self.tool_type,),
            enable_parallel_execution=self.parallel,
        )  # fmt: skip


def tool_id(name: str) -> str:
    """The id of a built-in tool: made from its name, in the form of a UUID version 4."""
    digest = hashlib.sha256(f"perdure built-in tool {name}".encode()).digest()
    return f"tool-{uuid.UUID(bytes=digest[:16], version=4)}"


def _string(description: str, *choices: str) -> Schema:
    return {"type": "string", "description": description, **({"enum": list(choices)} if choices else {})}


def _integer(description: str, **bounds: int) -> Schema:
    return {"type": "integer", "description": description, **bounds}


def _boolean(description: str) -> Schema:
    return {"type": "boolean", "description": description}


def _strings(description: str, *choices: str) -> Schema:
    entry = {"type": "string", **({"enum": list(choices)} if choices else {})}
    return {"type": "array", "items": entry, "description": description}


_LABEL = _string("Label of the memory block, as in your memory.")
_AGENT = _string("Id of the other agent, agent-…")
_MESSAGE = _string("What to tell it.")
_START = _string("Only what is as new or newer: YYYY-MM-DD or an ISO 8601 time; your time zone unless it has one.")
_END = _string("Only what is as old or older; a plain date includes that whole day.")
_NO_NUMBERS = "Leave out line numbers such as '3→': they are only shown to you."

_CORE = (
    Builtin(
        "send_message", "letta_core", "Say something to the user.",
        {"message": _string("What to say; anything, also emoji.")},
    ),
    Builtin(
        "conversation_search", "letta_core",
        "Search the whole history of your conversations, also what is no longer in your context.",
        {
            "query": _string("Words to look for. Leave it out to get the newest messages."),
            "roles": _strings("Only messages of these roles.", "assistant", "user", "tool"),
            "limit": _integer("How many messages at most; 5 if left out.", minimum=1, maximum=100),
            "start_date": _START, "end_date": _END,
        },
        ("query", "roles", "limit", "start_date", "end_date"), parallel=True,
    ),
    Builtin(
        "archival_memory_insert", "letta_core",
        "Put a text into your archive, where it stays for ever and can be found by its meaning.",
        {"content": _string("The text; it should be understandable on its own."), "tags": _strings("Its tags.")},
        ("tags",),
    ),
    Builtin(
        "archival_memory_search", "letta_core", "Search your archive by meaning.",
        {
            "query": _string("What to look for, in plain words."),
            "tags": _strings("Only texts with these tags."),
            "tag_match_mode": _string("Whether one of the tags is enough; any if left out.", "any", "all"),
            "top_k": _integer("How many texts at most; 10 if left out.", minimum=1, maximum=100),
            "start_datetime": _START, "end_datetime": _END,
        },
        ("tags", "tag_match_mode", "top_k", "start_datetime", "end_datetime"), parallel=True,
    ),
)  # fmt: skip

_MEMORY = (
    Builtin(
        "core_memory_append", "letta_memory_core", "Add a line at the end of a memory block.",
        {"label": _LABEL, "content": _string(f"The line, or several. {_NO_NUMBERS}")},
    ),
    Builtin(
        "core_memory_replace", "letta_memory_core",
        "Replace a text in a memory block, wherever it occurs. An empty new_content removes it.",
        {
            "label": _LABEL, "old_content": _string("The text that is there, to the letter."),
            "new_content": _string(f"The text that shall be there. {_NO_NUMBERS}"),
        },
    ),
    Builtin(
        "memory_insert", "letta_memory_core", "Insert a text into a memory block, as lines of its own.",
        {
            "label": _LABEL, "new_string": _string(f"The text. {_NO_NUMBERS}"),
            "insert_line": _integer("After which line: 0 is the top, -1 the end; -1 if left out.", minimum=-1),
        },
        ("insert_line",),
    ),
    Builtin(
        "memory_replace", "letta_memory_core",
        "Replace a text that occurs exactly once in a memory block. An empty new_string removes it.",
        {
            "label": _LABEL,
            "old_string": _string("The text that is there, to the letter, with enough around it to be unique."),
            "new_string": _string(f"The text that shall be there. {_NO_NUMBERS}"),
        },
    ),
    Builtin(
        "memory_apply_patch", "letta_memory_core",
        "Change one memory block, or several at once, with a patch. For one block give its label and hunks: lines that "
        "begin with a space stay, with '-' go, with '+' come; '@@' stands between hunks. For several put them under "
        "'*** Add Block: <label>' (only + lines), '*** Update Block: <label>' (hunks; right below it perhaps "
        "'*** Move to: <new label>') and '*** Delete Block: <label>'. Everything is done or nothing.",
        {
            "label": _string("Label of the block; leave it out with headers."),
            "patch": _string(f"The patch. {_NO_NUMBERS}"),
        },
        ("label",),
    ),
    Builtin(
        "memory", "letta_memory_core",
        "Create, edit, delete or rename memory blocks, addressed as /memories/<label>. create takes path, description "
        "and perhaps file_text; str_replace path, old_string, new_string; insert path, insert_text and perhaps "
        "insert_line; delete path; rename old_path and new_path, or path and a new description.",
        {
            "command": _string("What to do.", "create", "str_replace", "insert", "delete", "rename"),
            "path": _string("The block, /memories/<label>."),
            "file_text": _string("First text of a new block."),
            "description": _string("What the block is for."),
            "old_string": _string("The text that is there, to the letter; it must occur exactly once."),
            "new_string": _string(f"The text that shall be there. {_NO_NUMBERS}"),
            "insert_line": _integer("After which line: 0 is the top, -1 the end; -1 if left out.", minimum=-1),
            "insert_text": _string(f"The text to insert. {_NO_NUMBERS}"),
            "old_path": _string("The block to rename."),
            "new_path": _string("Its new path."),
        },
        (
            "path", "file_text", "description", "old_string", "new_string", "insert_line", "insert_text", "old_path",
            "new_path",
        ),
    ),
    Builtin(
        "memory_rethink", "letta_sleeptime_core",
        "Write a memory block anew; it is created if there is none of that label. Its old text is lost.",
        {"label": _LABEL, "new_memory": _string(f"The whole new text. {_NO_NUMBERS}")},
    ),
    Builtin("memory_finish_edits", "letta_sleeptime_core", "Say that you have finished editing your memory."),
)  # fmt: skip

_ELSEWHERE = (
    Builtin(
        "run_code", "letta_builtin", "Run a program in a sandbox and get what it printed.",
        {"code": _string("The program."), "language": _string("Its language.", "python", "js", "ts", "r", "java")},
        parallel=True,
    ),
    Builtin(
        "web_search", "letta_builtin", "Search the web.",
        {
            "query": _string("What to look for."),
            "num_results": _integer("How many results; 10 if left out.", minimum=1, maximum=100),
            "category": _string("Only this kind of page, such as news or research paper."),
            "include_text": _boolean("Whether to give the pages' text; false if left out."),
            "include_domains": _strings("Only these domains."),
            "exclude_domains": _strings("None of these domains."),
            "start_published_date": _string("Only pages as new or newer, YYYY-MM-DD."),
            "end_published_date": _string("Only pages as old or older, YYYY-MM-DD."),
            "user_location": _string("Country of the searcher, two letters."),
        },
        (
            "num_results", "category", "include_text", "include_domains", "exclude_domains", "start_published_date",
            "end_published_date", "user_location",
        ),
        parallel=True,
    ),
    Builtin(
        "fetch_webpage", "letta_builtin", "Read a page of the web.",
        {"url": _string("Its address, http or https.")}, parallel=True,
    ),
    Builtin(
        "open_files", "letta_files_core", "Open files of your folders, so that you see them in your context.",
        {
            "file_requests": {
                "type": "array", "description": "The files.",
                "items": {
                    "type": "object",
                    "properties": {
                        "file_name": _string("Name of the file, with its folder."),
                        "offset": _integer("First line to show, from 0.", minimum=0),
                        "length": _integer("How many lines.", minimum=1),
                    },
                    "required": ["file_name"],
                },
            },
            "close_all_others": _boolean("Whether to close all other files; false if left out."),
        },
        ("close_all_others",),
    ),
    Builtin(
        "grep_files", "letta_files_core", "Find lines in your files by a regular expression, 20 a page.",
        {
            "pattern": _string("The regular expression."),
            "include": _string("Only files whose name matches this expression."),
            "context_lines": _integer("Lines to show around each hit; 1 if left out.", minimum=0),
            "offset": _integer("How many hits to pass over.", minimum=0),
        },
        ("include", "context_lines", "offset"), parallel=True,
    ),
    Builtin(
        "semantic_search_files", "letta_files_core", "Find passages of your files by meaning.",
        {
            "query": _string("What to look for, in plain words."),
            "limit": _integer("How many passages at most; 5 if left out.", minimum=1, maximum=100),
        },
        ("limit",), parallel=True,
    ),
    Builtin(
        "send_message_to_agent_and_wait_for_reply", "letta_multi_agent_core",
        "Tell another agent something and wait for its answer.", {"message": _MESSAGE, "other_agent_id": _AGENT},
    ),
    Builtin(
        "send_message_to_agents_matching_tags", "letta_multi_agent_core",
        "Tell something to all agents with certain tags and wait for their answers.",
        {
            "message": _MESSAGE, "match_all": _strings("Tags an agent must have, all of them."),
            "match_some": _strings("Tags of which an agent must have one."),
        },
    ),
    Builtin(
        "send_message_to_agent_async", "letta_multi_agent_core",
        "Tell another agent something without waiting for an answer.", {"message": _MESSAGE, "other_agent_id": _AGENT},
    ),
)  # fmt: skip

BUILTINS: Mapping[str, Builtin] = {builtin.name: builtin for builtin in (*_CORE, *_MEMORY, *_ELSEWHERE)}
