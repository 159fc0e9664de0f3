"""What a request names, looked up: models, tools, blocks; and counting by paging.

Unknown models are 404, unknown tools 400, unknown blocks are passed over (api-surface §6, trap 13).
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from perdure.api.params import MAX_LIMIT
from perdure.api.views import embedding_config
from perdure.domain.errors import Invalid, NotFound, Unavailable
from perdure.domain.ports import Blocks, Models, Page, ToolQuery, Tools
from perdure.domain.records import Block, ModelInfo, Tool

Fields = Mapping[str, Any]
T = TypeVar("T")

NO_MODEL = "No model is named. Send model as provider/model, such as 'openai/gpt-4o-mini'; GET /v1/models/ lists them."


async def find_model(models: Models, fields: Fields) -> ModelInfo:
    """The entry of the model that a request names. Raises Invalid (none, no provider in it), NotFound, Unavailable."""
    handle = fields.get("model") or _handle_of(fields.get("llm_config") or {})
    if not handle:
        raise Invalid(NO_MODEL)
    info = await models.find(_checked_handle(handle))
    if info.kind != "llm":
        raise Invalid(f"{handle} is an embedding model. Name a model that talks; GET /v1/models/ lists them.")
    return info


def _handle_of(config: Fields) -> str | None:
    """The handle that the older llm_config means."""
    if config.get("handle"):
        return str(config["handle"])
    provider = config.get("provider_name") or config.get("model_endpoint_type")
    return f"{provider}/{config['model']}" if config.get("model") and provider else None


def _checked_handle(handle: str) -> str:
    provider, slash, name = handle.partition("/")
    if not (provider and slash and name):
        raise Invalid(f"The model {handle!r} names no provider. Write it as provider/model.")
    return handle


async def find_embedding(models: Models, fields: Fields) -> dict[str, Any] | None:
    """The configuration of the embedding model that a request names; None if it names none, or none is reachable.

    Raises NotFound for a model that its provider does not have, Invalid for one that does not embed.
    """
    handle = fields.get("embedding")
    if not handle:
        given = fields.get("embedding_config")
        return dict(given) if given else None
    try:
        info = await models.find(_checked_handle(handle))
    except Unavailable:
        return None
    if info.kind != "embedding":
        raise Invalid(f"{handle} does not embed. GET /v1/models/embedding lists the models that do.")
    return embedding_config(info, fields.get("embedding_chunk_size") or 300)


async def find_tools(
    tools: Tools, ids: Sequence[str] = (), names: Sequence[str] = (), if_present: Sequence[str] = ()
) -> list[Tool]:
    """Tools by id and by name, each once, in the order they were asked for. Raises Invalid for an unknown one.

    Those of `if_present` are left out if this server does not have them.
    """
    by_id = {t.id: t for t in await _some(tools, ToolQuery(tool_ids=tuple(ids)), len(ids))}
    wanted = (*names, *if_present)
    by_name = {t.name: t for t in await _some(tools, ToolQuery(names=wanted), len(wanted))}
    for tool_id in ids:
        if tool_id not in by_id:
            raise Invalid(f"There is no tool {tool_id!r}. GET /v1/tools/ lists the tools.")
    for name in names:
        if name not in by_name:
            raise Invalid(f"There is no tool named {name!r}. GET /v1/tools/ lists the tools.")
    found = [by_id[i] for i in ids] + [by_name[n] for n in wanted if n in by_name]
    return list({tool.id: tool for tool in found}.values())


async def _some(tools: Tools, query: ToolQuery, count: int) -> list[Tool]:
    """At most `count` tools; an empty filter would mean all of them."""
    return await tools.find(query, Page(limit=count)) if count else []


async def find_blocks(blocks: Blocks, ids: Sequence[str]) -> list[Block]:
    """Those of the blocks that exist, each once."""
    found = []
    for block_id in dict.fromkeys(ids):
        try:
            found.append(await blocks.get(block_id))
        except NotFound:
            continue
    return found


async def find_all(find: Callable[[Page], Awaitable[Sequence[T]]], id_of: Callable[[T], str]) -> list[T]:
    """Everything that a filter finds."""
    found: list[T] = []
    async for page in _pages(find, id_of):
        found.extend(page)
    return found


async def count_all(find: Callable[[Page], Awaitable[Sequence[T]]], id_of: Callable[[T], str]) -> int:
    """How many a filter finds; no more than one page is held at a time."""
    count = 0
    async for page in _pages(find, id_of):
        count += len(page)
    return count


async def _pages(
    find: Callable[[Page], Awaitable[Sequence[T]]], id_of: Callable[[T], str]
) -> AsyncIterator[Sequence[T]]:
    after = None
    while True:
        page = await find(Page(limit=MAX_LIMIT, after=after))
        yield page
        if len(page) < MAX_LIMIT:
            return
        after = id_of(page[-1])
