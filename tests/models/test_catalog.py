"""The catalog: which models there are, and how soon it says so when a provider is slow, down or wrong."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from hearing import AT, asking, hear
from twin import HELLO, Twin, body

from perdure.domain.errors import Invalid, ModelError, NotFound, Unavailable
from perdure.domain.records import ModelInfo
from perdure.models.catalog import Catalog
from perdure.models.demo import DemoProvider
from perdure.models.openai import OpenAIProvider
from perdure.models.scripted import Say, ScriptedModel, ScriptedProvider

pytestmark = pytest.mark.anyio


class Watch:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.time = AT

    def now(self) -> datetime:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class Listing(ScriptedProvider):
    """A provider that counts how often it is asked, and fails or hangs on request."""

    def __init__(self, *models: str, name: str = "p"):
        super().__init__(name=name)
        self.names, self.asked, self.closed = list(models), 0, False
        self.fails: ModelError | None = None
        self.hangs, self.begun = False, asyncio.Event()

    async def list_models(self) -> list[ModelInfo]:
        self.asked += 1
        self.begun.set()
        await asyncio.Event().wait() if self.hangs else await asyncio.sleep(0)
        if self.fails:
            raise self.fails
        return [info(f"{self.name}/{model}") for model in self.names]

    async def close(self) -> None:
        self.closed = True


def info(handle: str, kind: str = "llm") -> ModelInfo:
    provider, _, name = handle.partition("/")
    return ModelInfo(
        handle=handle, name=name, provider_name=provider, provider_type="openai", endpoint_type="openai", kind=kind
    )  # fmt: skip


def handles(infos: Sequence[ModelInfo]) -> list[str]:
    return [info.handle for info in infos]


@pytest.mark.parametrize("handle", ["", "gpt-4o", "/m", "p/", "/"])
async def test_a_handle_names_provider_and_model(handle: str) -> None:
    """Anything else is told how a handle looks."""
    with pytest.raises(Invalid, match="Write provider/model, such as openai/gpt-4o-mini"):
        await Catalog([Listing("m")]).find(handle)


async def test_find() -> None:
    """A model may have slashes in its name; it is found in the list of its provider, no other is asked."""
    here, other = Listing("org/m"), Listing("m", name="other")
    assert (await Catalog([here, other]).find("p/org/m")).name == "org/m"
    assert (here.asked, other.asked) == (1, 0)


async def test_an_unknown_handle_lists_known_ones() -> None:
    """What is there instead is told, as far as a person reads on."""
    catalog = Catalog([Listing(*(f"m{n}" for n in range(12)))])
    with pytest.raises(NotFound) as raised:
        await catalog.find("p/x")
    assert str(raised.value) == (
        "p has no model 'x'. Some that it has: p/m0, p/m1, p/m2, p/m3, p/m4, p/m5, p/m6, p/m7, p/m8, p/m9."
    )
    with pytest.raises(NotFound, match=r"No provider is called 'q'\. Configured are: p\."):
        await catalog.find("q/x")
    with pytest.raises(NotFound, match="Configured are: none"):
        await Catalog([]).find("q/x")


async def test_lists_are_kept_for_a_minute() -> None:
    """Every request needs a model; the provider is asked once a minute."""
    watch, provider = Watch(), Listing("m")
    catalog = Catalog([provider], watch)
    for _ in range(3):
        await catalog.find("p/m")
    assert provider.asked == 1
    watch.forward(61)
    await catalog.find("p/m")
    assert provider.asked == 2


async def test_a_model_loaded_just_now_is_found() -> None:
    """A handle that the kept list lacks is looked for in a new one, though not for every miss."""
    watch, provider = Watch(), Listing("m")
    catalog = Catalog([provider], watch)
    await catalog.find("p/m")
    provider.names.append("new")
    with pytest.raises(NotFound):
        await catalog.find("p/new")
    watch.forward(3)
    assert (await catalog.find("p/new")).handle == "p/new"
    assert provider.asked == 2


async def test_many_at_once_ask_once() -> None:
    """A hundred requests after a start are one to the provider."""
    provider = Listing("m")
    catalog = Catalog([provider])
    await asyncio.gather(*(catalog.find("p/m") for _ in range(100)))
    assert provider.asked == 1


async def test_list_leaves_out_who_is_down() -> None:
    """The others' models are shown, by kind; the reason is kept for whoever asks."""
    down, here = Listing("m", name="down"), Listing("m")
    down.fails = ModelError("down cannot be reached.")
    catalog = Catalog([down, here])
    assert handles(await catalog.list()) == ["p/m"]
    assert await catalog.list("embedding") == []
    assert catalog.problems() == {"down": "down cannot be reached."}


async def test_a_provider_that_comes_back() -> None:
    """A failure is taken for one for two seconds, then the provider is asked again and its problem is over."""
    watch, provider = Watch(), Listing("m")
    provider.fails = ModelError("p cannot be reached.")
    catalog = Catalog([provider], watch)
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"The models of p cannot be listed now: p cannot be reached\."):
            await catalog.find("p/m")
    assert provider.asked == 1
    provider.fails = None
    watch.forward(3)
    assert (await catalog.find("p/m")).handle == "p/m"
    assert catalog.problems() == {}


async def test_a_slow_provider_holds_nobody_up() -> None:
    """Who does not list in time is left out, and the many who wait for it all get on at that moment."""
    slow, here = Listing("m", name="slow"), Listing("m")
    slow.hangs = True
    catalog = Catalog([slow, here], patience=0.1)
    async with asyncio.timeout(1):
        lists = await asyncio.gather(*(catalog.list() for _ in range(50)))
    assert {tuple(handles(one)) for one in lists} == {("p/m",)}
    assert slow.asked == 1
    assert catalog.problems() == {"slow": "no answer within 0.1 s"}


async def test_the_first_asker_may_go_away() -> None:
    """A request that is cancelled while it waits for a list does not fail those that wait with it."""
    provider = Listing("m")
    provider.hangs = True
    catalog = Catalog([provider])
    first, second = (asyncio.create_task(catalog.find("p/m")) for _ in range(2))
    await provider.begun.wait()
    provider.hangs = False
    first.cancel()
    assert (await second).handle == "p/m"


async def test_open_makes_no_request() -> None:
    """A stored handle is opened as it is, listed or not, with the agent's own window; twice it is the same model."""
    provider = OpenAIProvider("gone", "http://127.0.0.1:9/v1", None)
    catalog = Catalog([provider])
    model = catalog.open("gone/org/m", 9000)
    assert (model.info.name, model.info.context_window) == ("org/m", 9000)
    assert catalog.open("gone/org/m", 9000) is model
    assert catalog.open("gone/org/m", 8000) is not model
    with pytest.raises(NotFound, match="The provider 'x' of model 'x/m' is not configured"):
        catalog.open("x/m", 9000)


async def test_open_knows_what_was_listed() -> None:
    """After a listing the entry is the provider's, but for the window."""
    model = ScriptedModel([Say("Hello.")])
    catalog = Catalog([ScriptedProvider(model)])
    await catalog.list()
    opened = catalog.open("scripted/model", 5000)
    assert (opened.info.max_output_tokens, opened.info.context_window) == (16_384, 5000)
    assert (await hear(opened, asking())).text == "Hello."


async def test_close_closes_all() -> None:
    """Everything the providers hold is given back."""
    one, two = Listing(name="one"), Listing(name="two")
    catalog = Catalog([one, two, DemoProvider()])
    assert [provider.name for provider in catalog.providers] == ["one", "two", "demo"]
    await catalog.close()
    assert (one.closed, two.closed) == (True, True)


# --- what providers of the dialect list --------------------------------------------------------------------------


async def listed(twin: Twin, rows: object, *, official: bool = False) -> list[ModelInfo]:
    twin.play(body(rows))
    provider = OpenAIProvider("twin", twin.base_url, None, official=official)
    try:
        return await provider.list_models()
    finally:
        await provider.close()


@pytest.mark.parametrize(
    ("row", "window"),
    [
        ({"id": "gpt-4o-mini"}, 128_000), ({"id": "openai/gpt-4o"}, 128_000), ({"id": "gpt-4"}, 8_192),
        ({"id": "llama3"}, 32_000), ({"id": "m", "max_model_len": 4096}, 4096),
        ({"id": "m", "context_length": 8192}, 8192), ({"id": "m", "meta": {"n_ctx": 2048, "n_ctx_train": 9}}, 2048),
        ({"id": "gpt-4o", "context_length": 5000}, 5000),
        ({"id": "m", "context_length": True}, 32_000), ({"id": "m", "context_length": -1}, 32_000),
        ({"id": "m", "context_length": 10**30}, 32_000), ({"id": "m", "meta": [1]}, 32_000),
    ],
)  # fmt: skip
async def test_windows(row: object, window: int, twin: Twin) -> None:
    """What the server says, if it is a window; else that of the model's family."""
    (info,) = await listed(twin, {"data": [row]})
    assert info.context_window == window


async def test_kinds(twin: Twin) -> None:
    """Embedders are told by name, with their dimension."""
    chat, embedder = await listed(twin, {"data": [{"id": "llama3"}, {"id": "nomic-embed-text:latest"}]})
    assert (chat.kind, chat.handle, chat.endpoint) == ("llm", "twin/llama3", twin.base_url)
    assert (embedder.kind, embedder.embedding_dim) == ("embedding", 768)


async def test_what_neither_chats_nor_embeds(twin: Twin) -> None:
    """OpenAI's own list mixes in voices and pictures; at home somebody's model may be called anything."""
    rows = {"data": [{"id": "gpt-4o"}, {"id": "whisper-1"}, {"id": "dall-e-3"}, {"id": "my-image-talker"}]}
    assert handles(await listed(twin, rows, official=True)) == ["twin/gpt-4o"]
    assert len(await listed(twin, rows)) == 4


@pytest.mark.parametrize("rows", [{"data": []}, {"data": None}, [], {"data": [1, None, {}, {"id": 7}, {"id": ""}]}])
async def test_lists_without_models(rows: object, twin: Twin) -> None:
    """Entries that name no model are passed over; one of them does not cost the others."""
    assert await listed(twin, rows) == []


@pytest.mark.parametrize("rows", [{}, 7, "m", None, {"data": 7}, {"models": []}])
async def test_lists_that_are_none(rows: object, twin: Twin) -> None:
    """Another API at this address is said to be one."""
    with pytest.raises(ModelError, match="twin did not list its models in the form of this API"):
        await listed(twin, rows)


async def test_a_provider_of_the_dialect_in_the_catalog(twin: Twin) -> None:
    """From the list over the handle to an answer."""
    twin.play(body({"data": [{"id": "m"}]}), HELLO)
    catalog = Catalog([OpenAIProvider("twin", twin.base_url, None)])
    found = await catalog.find("twin/m")
    assert (await hear(catalog.open(found.handle, 8000))).text == "Hello"
    assert [(asked.method, asked.path) for asked in twin.asked] == [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
    ]
    await catalog.close()
