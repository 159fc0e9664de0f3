"""History: lists, cursors, images and full-text search, on both databases."""

import json

import msgspec
import pytest
from making import at, make_agent, said, take_turn

from perdure.domain.errors import NotFound
from perdure.domain.messages import Approval, Image, Message, Reasoning, ToolReturn
from perdure.domain.ports import MessageQuery, Page
from perdure.store import SqlStore

pytestmark = pytest.mark.anyio
CONVERSATION = "conv-11111111-1111-4111-8111-111111111111"


@pytest.fixture
async def agent_id(store: SqlStore) -> str:
    """An agent with no messages at all."""
    return (await make_agent(store, messages=[])).agent.id


async def texts(store: SqlStore, page: Page = Page(), **query) -> list[str]:  # noqa: B008
    found = await store.messages.find(MessageQuery(**query), page)
    return [stored.message.content[0].text for stored in found]


async def search(store: SqlStore, agent_id: str, query: str | None, **how) -> list[str]:
    asked = {"roles": None, "start": None, "end": None, "limit": 10, **how}
    hits = await store.messages.search(agent_id, query, **asked)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    return [hit.message.content[0].text if hit.message.content else "" for hit in hits]


async def test_descending_lists_give_the_newest_and_ascending_the_oldest(store: SqlStore, agent_id: str):
    """Cursors mean greater and smaller numbers, whatever the order (spec §9.3)."""
    spoken = [said(str(n)) for n in range(5)]
    await take_turn(store, agent_id, *spoken)
    ids = [message.id for message in spoken]
    assert await texts(store, Page(limit=2), agent_id=agent_id) == ["4", "3"]
    assert await texts(store, Page(limit=2, ascending=True), agent_id=agent_id) == ["0", "1"]
    assert await texts(store, Page(limit=2, after=ids[1]), agent_id=agent_id) == ["4", "3"]
    assert await texts(store, Page(limit=2, after=ids[1], ascending=True), agent_id=agent_id) == ["2", "3"]
    assert await texts(store, Page(limit=2, before=ids[3]), agent_id=agent_id) == ["2", "1"]
    assert await texts(store, Page(before=ids[3], after=ids[0], ascending=True), agent_id=agent_id) == ["1", "2"]
    assert await texts(store, Page(after=ids[4]), agent_id=agent_id) == []


async def test_an_unknown_or_foreign_cursor_is_not_found(store: SqlStore, agent_id: str):
    """Another agent's message is no place in this list."""
    foreign = (await make_agent(store, "Bob")).message_ids[0]
    for cursor in ("message-x", foreign, "\0"):
        with pytest.raises(NotFound, match=r"[Mm]essage not found"):
            await texts(store, Page(after=cursor), agent_id=agent_id)
    assert await texts(store, Page(before=foreign)) == []


async def test_messages_are_filtered_by_where_they_belong(store: SqlStore, agent_id: str):
    """Run, step, group, conversation; messages about errors only when asked for."""
    run = await take_turn(store, agent_id, said("plain", step_id="s-1"), said("group", group_id="g-1"))
    await take_turn(store, agent_id, said("oops", is_err=True), minutes=2)
    assert await texts(store, run_id=run.id, page=Page(ascending=True)) == ["plain", "group"]
    assert await texts(store, step_id="s-1") == ["plain"]
    assert await texts(store, group_id="g-1") == ["group"]
    assert await texts(store, agent_id=agent_id) == ["group", "plain"]
    assert await texts(store, agent_id=agent_id, include_err=True) == ["oops", "group", "plain"]
    assert await texts(store, agent_id=agent_id, conversation_id="default") == ["group", "plain"]
    assert await texts(store, agent_id=agent_id, conversation_id=CONVERSATION) == []


async def test_one_message_is_read_with_its_number(store: SqlStore, agent_id: str):
    """The number is given by saving and grows."""
    one, two = said("1"), said("2")
    await take_turn(store, agent_id, one, two)
    first, second = await store.messages.get(one.id), await store.messages.get(two.id)
    assert first.sequence_id < second.sequence_id
    assert msgspec.json.encode(first.message) == msgspec.json.encode(
        msgspec.structs.replace(one, agent_id=agent_id, run_id=first.message.run_id)
    )
    with pytest.raises(NotFound, match="message-x"):
        await store.messages.get("message-x")


async def test_an_image_is_found_by_the_id_lists_show_for_it(store: SqlStore, agent_id: str):
    """Also one that a tool returned, or a client in an approval (★S18)."""
    images = [Image(media_type="image/png", data="aGk=", file_id=f"file-{n}") for n in range(3)]
    returned = [ToolReturn(tool_call_id="c", content=(image,)) for image in images]
    approval = Approval(tool_call_id="c", returned=returned[2])
    await take_turn(
        store, agent_id, said("look", images[0]),
        Message(id="message-tool", role="tool", created_at=at(0), tool_returns=(returned[1],)),
        Message(id="message-approval", role="approval", created_at=at(0), approvals=(approval,)),
    )  # fmt: skip
    assert [await store.messages.image(f"file-{n}") for n in range(3)] == images
    assert await store.messages.image("file-x") is None


async def test_words_are_found_whatever_their_form(store: SqlStore, agent_id: str):
    """Any of the words, best first; case, accents and English endings do not matter."""
    await take_turn(
        store, agent_id, said("I like dogs."), said("Dogs and cats: a dog, a cat.", role="assistant"),
        said("Über Zürich; ΑΘΗΝΑ; हिन्दी; 我喜欢猫"), said("user_name=foo@example.com"),
    )  # fmt: skip
    assert await search(store, agent_id, "dog cat") == ["Dogs and cats: a dog, a cat.", "I like dogs."]
    assert await search(store, agent_id, "LIKING") == ["I like dogs."]
    zurich = ["Über Zürich; ΑΘΗΝΑ; हिन्दी; 我喜欢猫"]
    for query in ("zurich", "ZÜRICH", "αθηνα", "हिन्दी", "猫"):
        assert await search(store, agent_id, query) == zurich
    assert await search(store, agent_id, "example") == ["user_name=foo@example.com"]
    assert await search(store, agent_id, "name") == ["user_name=foo@example.com"]
    assert await search(store, agent_id, "elephant") == []


@pytest.mark.parametrize(
    "query",
    ['"', "'", "dog AND", "dog OR (", "NEAR(dog, 2)", "agent_id : dog", "dog*", "^dog", "-dog", "{dog} : dog",
     "a:* & !dog | <->", "\\", "dog\0", "dog \ud83d", "🙂 dog", "%", "dog" * 5, "dog " * 5000],
)  # fmt: skip
async def test_a_query_is_words_and_never_syntax(store: SqlStore, agent_id: str, query: str):
    """Operators of either search engine are punctuation; nothing that is asked can fail."""
    await take_turn(store, agent_id, said("I like dogs."))
    expected = ["I like dogs."] if "dog" in query and query != "dog" * 5 else []
    assert await search(store, agent_id, query) == expected


async def test_what_a_search_shows_and_what_not(store: SqlStore, agent_id: str):
    """User, assistant and its thoughts; no system or tool messages, no notes of the server (spec §7.3)."""
    heartbeat = json.dumps({"type": "heartbeat", "reason": "whale"})
    packed = json.dumps({"type": "user_message", "message": "whale song"})
    await take_turn(
        store, agent_id, said("whale rules", role="system"), said(heartbeat), said(packed),
        said(Reasoning("A whale."), "Fine.", role="assistant"), said('{"whale": 1}'),
        Message(id="message-t", role="tool", created_at=at(0), tool_returns=(ToolReturn("c", "whale"),)),
    )  # fmt: skip
    hits = await store.messages.search(agent_id, "whale", roles=None, start=None, end=None, limit=10)
    assert sorted(msgspec.json.encode(hit.message.content[0]).decode()[:28] for hit in hits) == [
        '{"type":"reasoning","reasoni', '{"type":"text","text":"{\\"ty', '{"type":"text","text":"{\\"wh',
    ]  # fmt: skip
    assert await search(store, agent_id, "user_message") == []


async def test_search_is_limited_to_agent_roles_dates_and_number(store: SqlStore, agent_id: str):
    """Both dates are inclusive."""
    other = (await make_agent(store, "Bob")).agent.id
    await take_turn(store, other, said("tea of another"))
    spoken = [said(f"tea {n}", minutes=n, role="assistant" if n % 2 else "user") for n in range(4)]
    await take_turn(store, agent_id, *spoken)
    assert sorted(await search(store, agent_id, "tea")) == ["tea 0", "tea 1", "tea 2", "tea 3"]
    assert sorted(await search(store, agent_id, "tea", start=at(1), end=at(2))) == ["tea 1", "tea 2"]
    assert sorted(await search(store, agent_id, "tea", roles=["assistant"])) == ["tea 1", "tea 3"]
    assert await search(store, agent_id, "tea", roles=[]) == []
    assert await search(store, agent_id, "tea", limit=0) == []
    assert len(await search(store, agent_id, "tea", limit=3)) == 3


async def test_without_a_query_the_newest_come_first(store: SqlStore, agent_id: str):
    """Blank counts as none; a message without any word is shown too; punctuation alone finds nothing."""
    await take_turn(store, agent_id, said("one"), said("🙂"), said("two", role="assistant"), said("x", role="tool"))
    assert await search(store, agent_id, None) == ["two", "🙂", "one"]
    assert await search(store, agent_id, "  \n", limit=1) == ["two"]
    assert await search(store, agent_id, "?!") == []


async def test_a_huge_message_is_stored_and_its_beginning_found(store: SqlStore, agent_id: str):
    """A megabyte of different words is more than PostgreSQL would index in one row."""
    huge = "needle " + " ".join(f"w{n}x" for n in range(200_000)) + " " + "z" * 100_000
    await take_turn(store, agent_id, said(huge))
    assert await search(store, agent_id, "needle") == [huge]
    assert (await store.messages.find(MessageQuery(agent_id=agent_id), Page()))[0].message.content[0].text == huge
