"""All models of all configured providers (port `Models`). Knows providers by their protocol only."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from perdure.domain.clock import Clock, SystemClock
from perdure.domain.errors import Invalid, ModelError, NotFound, Unavailable
from perdure.domain.ports import Model, Provider
from perdure.domain.records import ModelInfo

FRESH = timedelta(seconds=60)
PATIENCE = 3.0
"""Seconds a provider has to list its models."""
RECENT = timedelta(seconds=2)
"""As old as a list may be that lacks the model asked for, and as long as a failure is taken for one still."""
SHOWN = 10


class Catalog:
    """Finds and opens models by handle `provider/model`."""

    def __init__(self, providers: Sequence[Provider], clock: Clock | None = None, patience: float = PATIENCE):
        self._providers = {provider.name: provider for provider in providers}
        self._clock, self._patience = clock or SystemClock(), patience
        self._asking = {name: asyncio.Lock() for name in self._providers}
        self._listed: dict[str, tuple[datetime, list[ModelInfo]]] = {}
        self._failed: dict[str, tuple[datetime, str]] = {}
        self._open: dict[tuple[str, int], Model] = {}

    @property
    def providers(self) -> Sequence[Provider]:
        """The configured providers."""
        return list(self._providers.values())

    def problems(self) -> dict[str, str]:
        """Why providers could not be listed the last time, by name."""
        return {name: why for name, (_, why) in self._failed.items()}

    async def find(self, handle: str) -> ModelInfo:
        """The entry with this handle. Raises Invalid, NotFound, Unavailable."""
        name, slash, model = handle.partition("/")
        if not slash or not name or not model:
            raise Invalid(f"{handle!r} is not a model handle. Write provider/model, such as openai/gpt-4o-mini.")
        if name not in self._providers:
            raise NotFound(f"No provider is called {name!r}. Configured are: {', '.join(self._providers) or 'none'}.")
        try:
            infos = await self._list(name)
            if not any(info.handle == handle for info in infos):
                infos = await self._list(name, RECENT)  # it may have been loaded since
        except ModelError as error:
            raise Unavailable(f"The models of {name} cannot be listed now: {error}") from error
        found = next((info for info in infos if info.handle == handle), None)
        if found is None:
            known = ", ".join(info.handle for info in infos[:SHOWN]) or "none"
            raise NotFound(f"{name} has no model {model!r}. Some that it has: {known}.")
        return found

    def open(self, handle: str, context_window: int) -> Model:
        """The model to call; makes no request. Raises NotFound if its provider is not configured."""
        key = (handle, context_window)
        if key not in self._open:
            name, _, model = handle.partition("/")
            provider = self._providers.get(name)
            if provider is None:
                raise NotFound(f"The provider {name!r} of model {handle!r} is not configured. Configure it again.")
            self._open[key] = provider.open(self._known(provider, handle, model, context_window))
        return self._open[key]

    def _known(self, provider: Provider, handle: str, model: str, context_window: int) -> ModelInfo:
        """The entry as it was listed, else one made from the name; the agent's own window counts."""
        _, infos = self._listed.get(provider.name, (None, []))
        info = next((info for info in infos if info.handle == handle), None) or ModelInfo(
            handle=handle, name=model, provider_name=provider.name, provider_type=provider.provider_type,
            endpoint_type=provider.provider_type,
        )  # fmt: skip
        return msgspec.structs.replace(info, context_window=context_window or info.context_window)

    async def _try(self, name: str) -> list[ModelInfo]:
        try:
            return await self._list(name)
        except ModelError:
            return []

    async def _list(self, name: str, fresh: timedelta = FRESH) -> list[ModelInfo]:
        """A provider's models, from memory if that is `fresh`. However many want them, it is asked once at a time."""
        async with self._asking[name]:
            now, (failed, why) = self._clock.now(), self._failed.get(name, (None, ""))
            if failed and now - failed < RECENT:
                raise ModelError(why)
            at, infos = self._listed.get(name, (None, []))
            if at and now - at < fresh:
                return infos
            return await self._ask(name)

    async def _ask(self, name: str) -> list[ModelInfo]:
        try:
            async with asyncio.timeout(self._patience):
                infos = await self._providers[name].list_models()
        except (ModelError, TimeoutError) as error:
            why = str(error) or f"no answer within {self._patience:g} s"
            self._failed[name] = (self._clock.now(), why)
            raise ModelError(why) from error
        self._failed.pop(name, None)
        self._listed[name] = (self._clock.now(), infos)
        return infos

    async def close(self) -> None:
        """Give back the connections of all providers."""
        await asyncio.gather(*(provider.close() for provider in self._providers.values()))

    async def list(self, kind: str = "llm") -> list[ModelInfo]:
        """Everything reachable now; a provider that is down is left out."""
        lists = await asyncio.gather(*(self._try(name) for name in self._providers))
        return [info for infos in lists for info in infos if info.kind == kind]
