"""`perdure doctor`: looks at everything the server needs, changes nothing, and says what to do about what is missing.

Each check gives findings; `fix` means that the server would not start or not work. Above is `main`.
"""

import asyncio
import os
import platform
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

import perdure
from perdure.domain.clock import SystemClock
from perdure.domain.errors import ModelError, PerdureError
from perdure.domain.messages import Message, Text
from perdure.domain.ports import Answer, ModelRequest, Provider
from perdure.greeting import without_password
from perdure.program import egress_of, providers_of
from perdure.serving import bind, is_loopback
from perdure.settings import Settings, SettingsError, find_file, unknown_variables
from perdure.store.open import schema_revision
from perdure.store.upgrade import Migrations

OK, WARN, FIX = "ok", "warn", "fix"
PATIENCE = 10.0
"""Seconds that a provider has to list its models; the server itself waits less."""
CHAT_PATIENCE = 60.0
"""Seconds for one token: a local server may have to load its model first."""
LITTLE_SPACE, TOO_LITTLE_SPACE = 2**30, 100 * 2**20
SHOWN = 3


class Finding(NamedTuple):
    """What one look showed, and what to do about it."""

    level: str
    what: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.level:5} {self.what}" + (f"\n      → {self.todo}" if self.todo else "")


async def examine(settings: Settings, *, chat: bool, tell: Callable[[str], object]) -> int:
    """Tell one finding after another; answers the exit code, 1 if something must be fixed."""
    worst = 0
    async for finding in findings(settings, chat=chat):
        tell(str(finding))
        worst = max(worst, finding.level == FIX)
    tell("\nSomething must be fixed." if worst else "\nThe server can work here.")
    return int(worst)


async def findings(settings: Settings, *, chat: bool) -> AsyncIterator[Finding]:
    """All checks, the quick ones first."""
    for check in (of_program, of_settings, of_data, of_address):
        for finding in check(settings):
            yield finding
    yield await of_database(settings)
    providers = await providers_of(settings, settings.port)
    async for finding in of_providers(settings, providers, chat=chat):
        yield finding


def of_program(_: Settings) -> Iterator[Finding]:
    """Versions."""
    yield Finding(OK, f"Perdure {perdure.__version__} on Python {platform.python_version()}, {platform.system()}")


def of_settings(settings: Settings) -> Iterator[Finding]:
    """The file, the environment, and settings that only show their faults in use."""
    file = find_file({"data_dir": settings.data_dir})
    if file is not None:
        yield Finding(OK, f"settings from {file.absolute()}")
        if os.name == "posix" and settings.secrets() and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            yield Finding(WARN, f"{file} can be read by other users", f"If it holds secrets: chmod 600 {file}")
    for sentence in unknown_variables():
        yield Finding(WARN, sentence, "Correct its name, or unset it.")
    try:
        egress_of(settings)
    except SettingsError as error:
        yield Finding(FIX, str(error), "Correct it; docs/settings.md has the form.")


def of_data(settings: Settings) -> Iterator[Finding]:
    """The data directory: there or to be made, writable, with room."""
    home = settings.home
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding(FIX, f"the data directory {home} cannot be written", "Choose another: --data-dir DIRECTORY")
        return
    free = shutil.disk_usage(there).free
    room = f"{home} {'is writable' if there == home else 'will be made'}, {free / 2**30:.1f} GiB free"
    if free < TOO_LITTLE_SPACE:
        yield Finding(FIX, room, "Make room: a full disk stops every write.")
    else:
        yield Finding(WARN, room, "Make room soon.") if free < LITTLE_SPACE else Finding(OK, room)


def of_address(settings: Settings) -> Iterator[Finding]:
    """Whether the server may and can listen where it shall."""
    try:
        alone = is_loopback(settings.host)
        if not alone and settings.password is None:
            yield Finding(
                FIX, f"{settings.host} is reachable from other machines, and there is no password",
                "Set PERDURE_SERVER_PASSWORD, or listen on 127.0.0.1.",
            )  # fmt: skip
        bind(settings.host, settings.port).close()
    except SettingsError as error:
        yield Finding(WARN, str(error), "Nothing to do if that is the Perdure you are asking about.")
        return
    yield Finding(OK, f"{settings.host} port {settings.port} is free" + ("" if alone else ", open to other machines"))


async def of_database(settings: Settings) -> Finding:
    """Whether the database can be reached, and which schema it has."""
    shown, migrations = without_password(settings.database), Migrations()
    try:
        revision = await asyncio.to_thread(schema_revision, settings.database, migrations)
    except Exception as error:  # a driver has its own classes, known to `store` only; whatever it is, it is the finding
        cause = getattr(error, "orig", None) or error
        return Finding(FIX, f"{shown} cannot be used: {cause}", "Check the address, the rights, and that it runs.")
    if revision is None:
        return Finding(OK, f"{shown} is empty; the first start makes its tables")
    if revision != migrations.newest:
        return Finding(OK, f"{shown} has schema {revision}; the next start brings it to {migrations.newest}")
    return Finding(OK, f"{shown} has the current schema {revision}")


async def of_providers(settings: Settings, providers: list[Provider], *, chat: bool) -> AsyncIterator[Finding]:
    """What each provider really offers."""
    if settings.anthropic_api_key or settings.anthropic_base_url:
        yield Finding(WARN, "anthropic is configured, and this version does not speak its dialect yet")
    usable = 0
    for provider in providers:
        async for finding in of_provider(provider, chat=chat):
            usable += finding.level == OK and provider.name != "demo"
            yield finding
        await provider.close()
    if not usable:
        yield Finding(
            WARN, "no model but the demo, which is a script" if settings.demo else "no model at all",
            "Set OPENAI_API_KEY or OPENAI_BASE_URL, or start Ollama, LM Studio, llama.cpp or vLLM on this machine.",
        )  # fmt: skip


async def of_provider(provider: Provider, *, chat: bool) -> AsyncIterator[Finding]:
    """One provider: its list, and an answer if asked for."""
    try:
        async with asyncio.timeout(PATIENCE):
            models = [info for info in await provider.list_models() if info.kind == "llm"]
    except (ModelError, TimeoutError) as error:
        yield Finding(FIX, told(error, provider.name, PATIENCE), "Correct its settings, or remove them.")
        return
    if not models:
        yield Finding(WARN, f"{provider.name}: reachable, and offers no model", "Load or pull one there.")
        return
    named = ", ".join(info.handle for info in models[:SHOWN])
    yield Finding(OK, f"{provider.name}: {len(models)} models, such as {named}" if len(models) > 1 else f"{named}")
    if chat:
        yield await of_answer(provider, models[0].handle)


async def of_answer(provider: Provider, handle: str) -> Finding:
    """Whether a model answers with a token."""
    info = next(info for info in await provider.list_models() if info.handle == handle)
    hello = Message(id="message-doctor", role="user", created_at=SystemClock().now(), content=(Text("Say hello."),))
    request = ModelRequest(model=info.name, system="Be brief.", messages=[hello], settings={"max_output_tokens": 1})
    try:
        async with asyncio.timeout(CHAT_PATIENCE):
            async for piece in provider.open(info).stream(request):
                if isinstance(piece, Answer):
                    return Finding(OK, f"{handle} answers ({piece.usage.total_tokens} tokens)")
    except (ModelError, TimeoutError) as error:
        return Finding(FIX, told(error, handle, CHAT_PATIENCE), "Choose another model, or look at the provider.")
    return Finding(FIX, f"{handle} ended without an answer", "Look at the provider's own log.")


def told(error: Exception, name: str, patience: float) -> str:
    """An error as a person reads it."""
    words = str(error) if isinstance(error, PerdureError) else f"no answer within {patience:g} seconds"
    return words if words.startswith(name) else f"{name}: {words}"
