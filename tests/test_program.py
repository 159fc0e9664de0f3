"""The composition root: providers from settings, the built-in tools in the store, the runs of dead processes."""

from pathlib import Path

import msgspec
import pytest

from perdure.domain.ports import Page, ToolQuery
from perdure.models.openai import OpenAIProvider
from perdure.program import assembled, configured, offer
from perdure.settings import Settings, SettingsError
from perdure.store import open_store
from perdure.testing import Running, Say
from perdure.tools.box import ServerToolbox

pytestmark = pytest.mark.anyio

ALL = Page(limit=200)


def addresses(**settings: object) -> dict[str, str]:
    """The providers that settings give, and where each asks."""
    found = configured(Settings.model_validate({"demo": False, **settings}))
    return {one.name: one.client.base_url for one in found if isinstance(one, OpenAIProvider)}


async def test_without_settings_there_is_the_demo() -> None:
    """And it can be turned off."""
    assert [provider.name for provider in configured(Settings())] == ["demo"]
    assert configured(Settings(demo=False)) == []


async def test_a_key_is_enough_for_a_service_and_an_address_for_a_server() -> None:
    """A bare host gets the usual path, an address with a path is taken as it is."""
    assert addresses(openai_api_key="sk", openrouter_api_key="sk") == {
        "openai": "https://api.openai.com/v1", "openrouter": "https://openrouter.ai/api/v1",
    }  # fmt: skip
    assert addresses(
        openai_base_url="http://gpu.lan/openai/v1/", ollama_base_url="http://box.lan:11434",
        lmstudio_base_url="http://box.lan:1234/v1", vllm_base_url="http://gpu.lan:8000/",
        llamacpp_base_url="http://gpu.lan:8080", providers={"mine": {"base_url": "https://mine.example/api"}},
    ) == {
        "openai": "http://gpu.lan/openai/v1", "ollama": "http://box.lan:11434/v1", "lmstudio": "http://box.lan:1234/v1",
        "vllm": "http://gpu.lan:8000/v1", "llamacpp": "http://gpu.lan:8080/v1", "mine": "https://mine.example/api",
    }  # fmt: skip


async def test_an_entry_of_the_table_takes_the_place_of_a_provider_of_that_name() -> None:
    """What the file says about this server is meant for it; OPENAI_API_KEY may be there for something else."""
    assert addresses(openai_api_key="sk", providers={"openai": {"base_url": "http://gpu.lan/v1"}}) == {
        "openai": "http://gpu.lan/v1"
    }


async def test_a_wrong_entry_of_the_egress_list_is_told_at_start(tmp_path: Path) -> None:
    """Not at the first picture."""
    with pytest.raises(SettingsError, match="The setting 'egress_allow' is wrong: 'http://x' is neither"):
        async with assembled(Settings(data_dir=tmp_path, egress_allow=["http://x"]), []):
            pass


async def test_built_in_tools_are_there_and_a_second_start_writes_nothing(tmp_path: Path) -> None:
    """The same records with the same ids on every start; limits that an operator changed stay."""
    settings, builtin = Settings(data_dir=tmp_path), ServerToolbox().builtin()
    async with assembled(settings, []) as program:
        first = await program.store.tools.find(ToolQuery(), ALL)
        assert {tool.name for tool in first} == {tool.name for tool in builtin}
        narrow = await program.store.tools.update(
            first[0].id, lambda tool: msgspec.structs.replace(tool, return_char_limit=7)
        )
    async with assembled(settings, []) as program:
        second = await program.store.tools.find(ToolQuery(), ALL)
        assert second == [narrow, *first[1:]]


async def test_a_new_version_describes_its_tools_anew(tmp_path: Path) -> None:
    """The model is told what the tool of this version does; a user's own tool of that name is not touched."""
    store = await open_store(f"sqlite:///{tmp_path / 'x.db'}", synchronous="NORMAL")
    renamed, users, *_ = ServerToolbox().builtin()
    await store.tools.save(msgspec.structs.replace(renamed, description="old words", return_char_limit=7))
    await store.tools.save(msgspec.structs.replace(users, tool_type="custom", description="mine"))
    await offer(store.tools, [renamed, users])
    found = {tool.name: tool for tool in await store.tools.find(ToolQuery(), ALL)}
    await store.close()
    assert found[renamed.name] == msgspec.structs.replace(renamed, return_char_limit=7)
    assert found[users.name].description == "mine"


async def test_the_kit_runs_the_whole_program(server: Running) -> None:
    """The fixture that other tests use."""
    server.model.play(Say("Hello."))
    assert server.base_url.startswith("http://127.0.0.1:")
    assert await server.program.models.list() == [server.model.info]
