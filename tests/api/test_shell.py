"""What holds for every request: addresses, bodies, the password, the last answer (api-surface §5.2–5.4)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from api.served import Client, made_deps, serving

from perdure.api.app import create_app

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/agents", 200), ("/v1/agents/", 200), ("/v1/agents//", 200), ("/latest/agents/", 200),
        ("/latest/agents", 200), ("/v1/health", 200), ("/v1/health/", 200), ("/latest/ready", 200),
        ("/v1/models", 200), ("/v1/models/embedding/", 200), ("/v1/no-such-thing", 404), ("/", 404), ("/latest", 404),
        ("/v1/agents/%00", 422), ("/v1/agents/?name=%00", 422), ("/v1/agents/?name=%ED%A0%80", 200),
        ("/openapi.json", 200),
    ],
)  # fmt: skip
async def test_addresses(client: Any, path: str, status: int) -> None:
    """Both slash forms and `/latest` are served directly; nothing is redirected."""
    answer = await client.get(path)
    assert answer.status == status
    assert status == 200 or isinstance(answer.detail, str)


async def test_wrong_method(client: Any) -> None:
    """A known path with another method is 405 and names the right ones."""
    answer = await client.call("PUT", "/v1/agents/")
    assert (answer.status, answer.detail) == (405, "Method Not Allowed")
    assert set(answer.headers["allow"].replace(" ", "").split(",")) >= {"GET"}


@pytest.mark.parametrize("path", ["/v1/agents", "/v1/agents/", "/latest/agents/"])
async def test_post_both_forms(client: Any, path: str) -> None:
    """A body survives either form of the address."""
    assert (await client.post(path, {"name": "Slash", "model": "openai/gpt-4o-mini"})).status == 200


DEEP = b'{"a":' * 101 + b"1" + b"}" * 101
MALFORMED = [
    b"{", b"", b"   ", b"not json", b"[]", b'"text"', b"7", b"\xff\xfe", b'{"label":"a","value":NaN}',
    b'{"label":"a","value":Infinity}', b'{"label":"a","value":"\\ud800"}', b'{"label":"a","value":"\xed\xa0\x80"}',
    b'{"label":"a","value":"x","limit":123456789012345678901234567890}',
    b'{"label":"a","value":"x","metadata":{"n":1e999}}', DEEP, b"[" * 100_000, b'{"a":' * 100_000,
    b'{"label":"a","value":"x"} trailing', b'{"label":"a"}', b'{"label":7,"value":"x"}', b'{"label":null,"value":"x"}',
    b'{"label":"","value":"x"}', b'{"label":"a","value":"x","limit":-1}', b'{"label":"a","value":"x","tags":"t"}',
    b'{"label":"a","value":"x","metadata":[]}',
]  # fmt: skip


@pytest.mark.parametrize("content", MALFORMED)
async def test_malformed_body(client: Any, content: bytes) -> None:
    """What is not a JSON object of the right form is 422 with one string that says what to mend, never 500."""
    answer = await client.post("/v1/blocks/", content=content, headers={"Content-Type": "application/json"})
    assert answer.status == 422
    assert isinstance(answer.detail, str)
    assert answer.detail
    assert answer["trace_id"] == ""


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "application/vnd.api+json"}, 200),
        ({}, 200),
        ({"Origin": "https://evil.test"}, 422),
        ({"Content-Type": "text/plain"}, 422),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 422),
    ],
)
async def test_content_type(client: Any, headers: dict[str, str], status: int) -> None:
    """JSON without a stated type is read, but not from a web page, which could send it to us behind a user's back."""
    answer = await client.post("/v1/blocks/", content=b'{"label":"typed","value":""}', headers=headers)
    assert answer.status == status


async def test_nul_is_stripped(client: Any) -> None:
    """NUL characters vanish from strings and keys (spec §7.1)."""
    made = await client.post(
        "/v1/blocks/", content=b'{"label":"n\\u0000ul","value":"a\\u0000b","metadata":{"k\\u0000":"v\\u0000"}}',
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    assert (made["label"], made["value"], made["metadata"]) == ("nul", "ab", {"k": "v"})


async def test_faithful_text(client: Any) -> None:
    """Any other text comes back as it was sent, whole integers up to 64 bits too."""
    value = "ünï ‮\u2028 𝔘 \\u0000 \t\r\n</human>"
    made = await client.block("faithful", value, metadata={"n": 2**63 - 1, "f": 0.1, "deep": [[[[]]]]})
    again = (await client.get(f"/v1/blocks/{made['id']}")).json
    assert again["value"] == value
    assert again["metadata"] == {"n": 9223372036854775807, "f": 0.1, "deep": [[[[]]]]}


async def test_user_header(client: Any) -> None:
    """A user id of the wrong form is 400; none, or one of the right form, passes."""
    good = {"user_id": "user-00000000-0000-4000-8000-000000000000"}
    assert (await client.get("/v1/agents/", headers=good)).status == 200
    assert (await client.get("/v1/agents/", headers={"user_id": "root"})).status == 400


@pytest.fixture
async def guarded(tmp_path: Any) -> AsyncIterator[Client]:
    """A server with a password and a small body limit."""
    async with (
        made_deps(tmp_path, password="sésame") as deps,
        serving(create_app(deps, max_body=1000)) as base,
        aiohttp.ClientSession() as session,
    ):
        yield Client(base, session)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/agents/", {}, 401),
        ("/v1/agents/", {"Authorization": "Bearer wrong"}, 401),
        ("/v1/agents/", {"Authorization": "Basic sésame"}, 401),
        ("/v1/agents/", {"Authorization": "Bearer"}, 401),
        ("/v1/agents/", {"Authorization": "Bearer sésame"}, 200),
        ("/v1/agents/", {"Authorization": "bearer sésame"}, 200),
        ("/v1/agents/", {"X-BARE-PASSWORD": "password sésame"}, 200),
        ("/v1/agents/", {"X-BARE-PASSWORD": "password wrong"}, 401),
        ("/latest/agents", {}, 401),
        ("/openapi.json", {}, 401),
        ("/v1/nothing", {}, 401),
        ("/v1/health", {}, 200),
        ("/v1/health/", {}, 200),
        ("/latest/health", {}, 200),
        ("/v1/ready/", {}, 200),
    ],
)
async def test_password(guarded: Client, path: str, headers: dict[str, str], status: int) -> None:
    """With a password everything but health and readiness needs it, in either header."""
    answer = await guarded.get(path, headers=headers)
    assert answer.status == status
    assert status == 200 or answer.json == {"detail": "Unauthorized"}


async def test_body_limit(guarded: Client) -> None:
    """A body over the limit is 413, whether it says its length or comes in chunks."""
    right = {"Authorization": "Bearer sésame", "Content-Type": "application/json"}

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"label":"a","value":"'
        for _ in range(20):
            yield b"x" * 100
            await asyncio.sleep(0)
        yield b'"}'

    told = await guarded.post("/v1/blocks/", content=b"x" * 1001, headers=right)
    assert (told.status, "larger" in told.detail) == (413, True)
    assert (await guarded.post("/v1/blocks/", content=chunks(), headers=right)).status == 413
    small = b'{"label":"a","value":"' + b"x" * 900 + b'"}'
    assert (await guarded.post("/v1/blocks/", content=small, headers=right)).status == 200


async def test_unforeseen(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever breaks inside is a 500 that tells nothing, with the traceback in the log."""

    class Broken:
        async def list(self, kind: str) -> None:
            raise ZeroDivisionError("secret words")

    async with (
        made_deps(tmp_path, models=Broken()) as deps,
        serving(create_app(deps)) as base,
        aiohttp.ClientSession() as session,
    ):
        answer = await Client(base, session).get("/v1/models/")
    assert (answer.status, answer.json) == (500, {"detail": "An unknown error occurred"})
    assert "ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/steps/?start_date=0001-01-01T00:00:00%2B14:00", 422),
        ("/v1/steps/?end_date=9999-12-31T23:59:59-14:00", 422),
        ("/v1/steps/?end_date=99999999999999999999", 422), ("/v1/steps/?end_date=0001-01-01", 200),
        ("/v1/blocks/?connected_to_agents_count_gt=99999999999999999999", 422),
        ("/v1/blocks/?connected_to_agents_count_eq=-1", 422),
        ("/v1/blocks/?connected_to_agents_count_eq=1&connected_to_agents_count_eq=2", 501),
        ("/v1/blocks/?label_search=%25_%5C%27%22%3B--", 200), ("/v1/agents/?query_text=%F0%9F%A6%A6", 200),
        (f"/v1/tools/?names={','.join(map(str, range(9000)))}", 200),
    ],
)  # fmt: skip
async def test_hostile_queries(client: Any, path: str, status: int) -> None:
    """Extreme values in a query are refused or find nothing; they break nothing."""
    answer = await client.get(path)
    assert answer.status == status
    assert status != 200 or answer.json == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8283", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:8283", 200), ("[::1]", 200),
        ("agents.lan", 200), ("evil.example:8283", 403), ("127.0.0.1.evil.example", 403), ("[::2]:8283", 403),
    ],
)  # fmt: skip
async def test_a_server_without_a_password_answers_only_under_its_own_names(
    deps: Any, host: str, status: int
) -> None:
    """So that no web page reads a local server through a name of its own (DNS rebinding); health is open."""
    async with serving(create_app(deps, hosts=["agents.lan"])) as base, aiohttp.ClientSession() as session:
        async with session.get(f"{base}/v1/agents/", headers={"Host": host}) as answer:
            assert answer.status == status
        async with session.get(f"{base}/v1/health/", headers={"Host": host}) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/x+json", "text/plain"])
async def test_a_form_of_another_site_cannot_speak_to_an_agent(client: Any, kind: str) -> None:
    """Browsers send forms and plain text to any server without asking it first; nothing but JSON is taken."""
    agent = await client.agent()
    path = f"/v1/agents/{agent['id']}/messages"
    answer = await client.post(path, content=b'{"input":"hi"}', headers={"Content-Type": kind})
    assert answer.status == 422
    assert [m["message_type"] for m in (await client.get(f"/v1/agents/{agent['id']}/messages")).json] == [
        "system_message"
    ]


async def test_a_page_of_another_site_changes_nothing(client: Any) -> None:
    """A request without a body needs no question first either; the browser says where it comes from."""
    cross = {"Sec-Fetch-Site": "cross-site"}
    assert (await client.post("/v1/tools/add-base-tools", headers=cross)).status == 403
    assert (await client.post("/v1/tools/add-base-tools", headers={"Sec-Fetch-Site": "same-origin"})).status == 200
    assert (await client.get("/v1/tools/", headers=cross)).status == 200
