"""The composition root: settings in, a program out. The one place that names concrete stores, models and tools.

Nothing here decides anything; it makes the parts, gives each what it needs, and takes them apart in reverse order.
Above are the command line (`main`), `doctor` and `testing`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import structlog
from pydantic import AnyHttpUrl, SecretStr

from perdure.api.app import create_app
from perdure.api.deps import Deps
from perdure.api.sse import renderings
from perdure.api.views import run_view
from perdure.domain.clock import Clock, SystemClock
from perdure.domain.errors import PerdureError
from perdure.domain.frames import Log
from perdure.domain.ports import Models, Page, Provider, Store, ToolQuery
from perdure.domain.ports import Tools as ToolRecords
from perdure.domain.records import Tool
from perdure.models.catalog import Catalog
from perdure.models.demo import DemoProvider
from perdure.models.discover import probe_local
from perdure.models.openai import OpenAIProvider
from perdure.runs.callbacks import EVERY, Callbacks
from perdure.runs.executor import Executor
from perdure.runs.signing import kept, key_of
from perdure.serving import Application
from perdure.settings import Settings, SettingsError
from perdure.store import open_store
from perdure.tools.box import ServerToolbox
from perdure.tools.egress import Egress

log = structlog.get_logger()

HOMES = {"openai": "https://api.openai.com/v1", "openrouter": "https://openrouter.ai/api/v1"}
"""Where providers are that need only a key."""
PRUNE_SECONDS = 300
"""How often streams that are kept no longer are removed from the database."""


@dataclass(frozen=True)
class Program:
    """The parts of a running server that others need."""

    app: Application
    store: Store
    models: Models
    executor: Executor
    callbacks: Callbacks


@contextlib.asynccontextmanager
async def assembled(
    settings: Settings, providers: Sequence[Provider], clock: Clock | None = None, *, watching: bool = True
) -> AsyncIterator[Program]:
    """Everything between the settings and the application, ready to serve; taken apart at the end.

    `watching`: look again and again for what other processes have left: runs, if they can work on the database too,
    and callbacks.
    Raises SettingsError, and what `open_store` does: Invalid, SchemaTooNew, Unavailable.
    """
    clock = clock or SystemClock()
    async with contextlib.AsyncExitStack() as at_end:
        models = Catalog(providers)
        at_end.push_async_callback(models.close)
        store = await open_store(
            settings.database, backups=settings.home / "backups", synchronous=settings.sqlite_synchronous,
            pool_size=settings.postgres_pool_size, clock=clock,
        )  # fmt: skip
        at_end.push_async_callback(store.close)
        toolbox = ServerToolbox()
        await offer(store.tools, toolbox.builtin())
        egress = egress_of(settings)
        callbacks = Callbacks(
            store.runs, egress, run_view, clock, callback_key(settings), every=EVERY if watching else None
        )  # fmt: skip
        at_end.push_async_callback(callbacks.close)
        executor = Executor(store, models, toolbox, clock, renderings(clock), on_callback=callbacks.nudge)
        at_end.push_async_callback(executor.drain, 0)
        await executor.recover()
        callbacks.start()
        if watching and not store.exclusive:
            at_end.callback(asyncio.create_task(executor.watch.run()).cancel)
        retention = timedelta(hours=settings.stream_retention_hours)
        at_end.callback(asyncio.create_task(pruning(store.log, clock, retention)).cancel)
        deps = Deps(
            store=store, models=models, toolbox=toolbox, executor=executor, clock=clock,
            fetch_image=egress.fetch_image, check_callback=callbacks.check, password=settings.password,
            ping_seconds=settings.ping_seconds, stream_retention=retention,
        )  # fmt: skip
        app = create_app(deps, max_body=settings.max_body_bytes, hosts=settings.allowed_hosts)
        yield Program(app, store, models, executor, callbacks)


async def providers_of(settings: Settings, port: int) -> list[Provider]:
    """The configured providers, and local model servers on their usual ports (other than our own `port`)."""
    found: list[Provider] = configured(settings)
    if settings.discover:
        found += await probe_local([provider.name for provider in found], except_port=port)
    return found


def configured(settings: Settings) -> list[Provider]:
    """The providers that the settings name; makes no request."""
    idle = settings.model_timeout_seconds
    found: dict[str, Provider] = {"demo": DemoProvider()} if settings.demo else {}
    for name, url, key, kind in known(settings):
        if url or key:
            found[name] = OpenAIProvider(
                name, api_root(url) or HOMES[name], shown(key), provider_type=kind, official=url is None, idle=idle
            )
    for name, entry in settings.providers.items():
        found[name] = OpenAIProvider(name, str(api_root(entry.base_url)), shown(entry.api_key), idle=idle)
    return list(found.values())


def known(settings: Settings) -> Sequence[tuple[str, AnyHttpUrl | None, SecretStr | None, str]]:
    """Name, address, key and wire type of the providers that have settings of their own."""
    return (
        ("openai", settings.openai_base_url, settings.openai_api_key, "openai"),
        ("openrouter", None, settings.openrouter_api_key, "openrouter"),
        ("ollama", settings.ollama_base_url, None, "ollama"),
        ("lmstudio", settings.lmstudio_base_url, None, "lmstudio_openai"),
        ("vllm", settings.vllm_base_url, None, "vllm"),
        ("llamacpp", settings.llamacpp_base_url, None, "openai"),
    )


def api_root(url: AnyHttpUrl | None) -> str | None:
    """Where the API begins: of a bare host, as Ollama's is usually given, below `/v1`."""
    if url is None:
        return None
    return str(url).rstrip("/") + ("/v1" if url.path in (None, "", "/") else "")


def shown(secret: SecretStr | None) -> str | None:
    """The text of a secret."""
    return None if secret is None else secret.get_secret_value()


def egress_of(settings: Settings) -> Egress:
    """The guard of outbound fetches. Raises SettingsError for an entry of the list that is none."""
    try:
        return Egress(allow=settings.egress_allow)
    except ValueError as error:
        raise SettingsError(f"The setting 'egress_allow' is wrong: {error}") from None


def callback_key(settings: Settings) -> bytes | None:
    """What callbacks are signed with: the setting, else a secret that the data directory keeps; None if it cannot."""
    try:
        return key_of(shown(settings.callback_secret) or kept(settings.home / "callback_secret"))
    except PerdureError as error:  # most servers never call back, and such a one must start all the same
        log.warning("callback_url will be refused: there is no secret to sign with", reason=str(error))
        return None


async def offer(records: ToolRecords, builtin: Sequence[Tool]) -> None:
    """Have the built-in tools in the store as this version describes them.

    What an operator changed about one (limits, approval) stays, and so does a user's own tool of the same name.
    The writes go out together, so that SQLite makes one transaction of them; with nothing new there are none.
    """
    names = tuple(tool.name for tool in builtin)
    found = await records.find(ToolQuery(names=names), Page(limit=len(names)))
    stored = {tool.name: tool for tool in found}
    changed = [renewed(tool, stored.get(tool.name)) for tool in builtin]
    await asyncio.gather(*(records.save(tool) for tool in changed if tool is not None))


def renewed(tool: Tool, stored: Tool | None) -> Tool | None:
    """The record to save for a built-in tool, or None if the stored one will do."""
    if stored is None:
        return tool
    if stored.tool_type == "custom":
        log.warning("a tool of the user's hides a built-in one", name=tool.name, tool_id=stored.id)
        return None
    after = msgspec.structs.replace(
        stored, json_schema=tool.json_schema, args_json_schema=tool.args_json_schema, description=tool.description,
        tool_type=tool.tool_type, source_type=tool.source_type, source_code=tool.source_code,
    )  # fmt: skip
    return None if after == stored else msgspec.structs.replace(after, updated_at=tool.updated_at)


async def pruning(frames: Log, clock: Clock, retention: timedelta) -> None:
    """Remove streams that are kept no longer, again and again."""
    while True:
        await asyncio.sleep(PRUNE_SECONDS)
        try:
            await frames.prune(clock.now() - retention)
        except PerdureError as error:  # the database is away: the next round may find it
            log.warning("could not remove old streams", reason=str(error))
