"""Tools (api-surface §1, tools; ★S78). A tool's schema comes from its source unless it is given (spec §8.2).

Source is read, never run: derivation is static.
"""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from perdure.api.deps import Deps, deps_of
from perdure.api.lookup import count_all
from perdure.api.params import MAX_LIMIT, ToolId, paged, words
from perdure.api.schemas.tools import Tool, ToolCreate, ToolUpdate
from perdure.api.views import reply, tool_view
from perdure.domain import records
from perdure.domain.errors import Conflict
from perdure.domain.ids import new_id
from perdure.domain.ports import Page, ToolQuery
from perdure.tools.schema import derive

router = APIRouter(tags=["tools"])

CUSTOM = "custom"
LONG_SOURCE = 20_000
"""Characters from which a source is parsed in a thread."""

ToolType = Literal[
    "custom", "letta_core", "letta_memory_core", "letta_multi_agent_core", "letta_sleeptime_core",
    "letta_voice_sleeptime_core", "letta_builtin", "letta_files_core", "external_langchain", "external_composio",
    "external_mcp",
]  # fmt: skip
Many = Annotated[list[str] | None, Query(description="Repeat the parameter, or separate values with commas.")]


async def _query(
    name: str | None = None,
    names: Many = None,
    tool_ids: Many = None,
    search: str | None = None,
    tool_types: Many = None,
    exclude_tool_types: Many = None,
    return_only_letta_tools: bool | None = None,
) -> ToolQuery:
    return ToolQuery(
        name=name, names=words(names), tool_ids=words(tool_ids), search=search, tool_types=words(tool_types),
        exclude_tool_types=words(exclude_tool_types), letta_only=bool(return_only_letta_tools),
    )  # fmt: skip


Wanted = Annotated[ToolQuery, Depends(_query)]


@router.get("/v1/tools/", response_model=list[Tool])
async def list_tools(request: Request, query: Wanted, page: Annotated[Page, paged(50)]) -> Response:
    """A page of tools."""
    return reply([tool_view(tool) for tool in await deps_of(request).store.tools.find(query, page)])


@router.get("/v1/tools/count", response_model=int)
async def count_tools(request: Request, query: Wanted) -> Response:
    """How many tools a filter finds."""
    tools = deps_of(request).store.tools
    return reply(await count_all(lambda page: tools.find(query, page), lambda tool: tool.id))


@router.post("/v1/tools/", response_model=Tool)
async def create_tool(request: Request, body: ToolCreate) -> Response:
    """Make a tool, or change the custom tool of the same name."""
    return reply(tool_view(await _upsert(deps_of(request), body)))


@router.put("/v1/tools/", response_model=Tool)
async def upsert_tool(request: Request, body: ToolCreate) -> Response:
    """Make a tool, or change the custom tool of the same name."""
    return reply(tool_view(await _upsert(deps_of(request), body)))


async def _upsert(deps: Deps, body: ToolCreate) -> records.Tool:
    """Fields that are not sent keep the values of the tool of that name. Raises Conflict for a built-in's name."""
    fields = body.model_dump(exclude_unset=True)
    schema = await _schema(fields, body.source_code, body.source_type)
    now, known = deps.clock.now(), await deps.store.tools.find(ToolQuery(name=schema["name"]), Page(limit=1))
    if known:
        _refuse_builtin(known[0], "Give your tool another name.")
        return await deps.store.tools.update(
            known[0].id, lambda tool: _with(tool, fields, json_schema=schema, updated_at=now)
        )
    fresh = records.Tool(id=new_id("tool"), name=schema["name"], json_schema=schema, created_at=now, updated_at=now)
    return await deps.store.tools.save(_with(fresh, fields, json_schema=schema))


async def _schema(fields: dict[str, Any], source_code: str, source_type: str | None) -> dict[str, Any]:
    """{name, description, parameters}. Raises Invalid with what to change in the source."""

    def derived() -> dict[str, Any]:
        return derive(
            source_code, json_schema=fields.get("json_schema"), args_json_schema=fields.get("args_json_schema"),
            description=fields.get("description"),
            source_type="python" if source_type in (None, "json") else source_type,
        )  # fmt: skip

    return derived() if len(source_code) < LONG_SOURCE else await asyncio.to_thread(derived)


_KEPT_BY_NULL = ("source_code", "source_type", "return_char_limit")
_CLEARABLE = (
    "args_json_schema", "default_requires_approval", "enable_parallel_execution", "pip_requirements",
    "npm_requirements",
)  # fmt: skip


def _with(tool: records.Tool, fields: dict[str, Any], **change: Any) -> records.Tool:
    """The tool with the sent fields; null clears what may be empty. Its name is its schema's."""
    change |= {key: fields[key] for key in _KEPT_BY_NULL if fields.get(key) is not None}
    change |= {key: fields[key] for key in _CLEARABLE if key in fields}
    if fields.get("tags") is not None:
        change["tags"] = tuple(sorted(set(fields["tags"])))
    if "metadata_" in fields:
        change["metadata"] = fields["metadata_"]
    schema = change.get("json_schema")
    if fields.get("description") is not None:
        change["description"] = fields["description"]
    elif schema is not None:
        change["description"] = schema.get("description")
    if schema is not None:
        change["name"] = schema["name"]
    return msgspec.structs.replace(tool, **change)


def _refuse_builtin(tool: records.Tool, advice: str) -> None:
    if tool.tool_type != CUSTOM:
        raise Conflict(f"{tool.name} is a built-in tool of this server and cannot be changed. {advice}")


@router.post("/v1/tools/add-base-tools", response_model=list[Tool])
async def add_base_tools(request: Request) -> Response:
    """The built-in tools. They are always there; this only lists them."""
    deps = deps_of(request)
    names = tuple(tool.name for tool in deps.toolbox.builtin())
    found = await deps.store.tools.find(ToolQuery(names=names), Page(limit=MAX_LIMIT)) if names else []
    return reply([tool_view(tool) for tool in found])


@router.get("/v1/tools/{tool_id}", response_model=Tool)
async def retrieve_tool(request: Request, tool_id: ToolId) -> Response:
    """One tool."""
    return reply(tool_view(await deps_of(request).store.tools.get(tool_id)))


@router.patch("/v1/tools/{tool_id}", response_model=Tool)
async def update_tool(request: Request, tool_id: ToolId, body: ToolUpdate) -> Response:
    """Change the fields that are sent; a new source brings a new schema, a new description alone does not."""
    deps = deps_of(request)
    tool = await deps.store.tools.get(tool_id)
    _refuse_builtin(tool, "Make a tool of your own from its source, under another name.")
    fields = body.model_dump(exclude_unset=True)
    change: dict[str, Any] = {"updated_at": deps.clock.now()}
    if any(fields.get(key) is not None for key in ("source_code", "json_schema", "args_json_schema")):
        source = body.source_code if body.source_code is not None else tool.source_code or ""
        change["json_schema"] = await _schema(fields, source, body.source_type or tool.source_type)
    return reply(tool_view(await deps.store.tools.update(tool_id, lambda tool: _with(tool, fields, **change))))


@router.delete("/v1/tools/{tool_id}", response_model=None)
async def delete_tool(request: Request, tool_id: ToolId) -> Response:
    """Delete a tool, detaching it everywhere. Answers null."""
    tools = deps_of(request).store.tools
    _refuse_builtin(await tools.get(tool_id), "Detach it from your agents instead.")
    await tools.delete(tool_id)
    return reply(None)
