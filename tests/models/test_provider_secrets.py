"""Keys and passwords: sent where they were meant to go, shown nowhere."""

import traceback

import pytest
from hearing import KEY, Pauses, fails, hear
from twin import HELLO, SSE, Reply, Twin, body, refusal, streamed

from perdure.models.openai import OpenAIProvider

pytestmark = pytest.mark.anyio


async def test_the_key_is_never_shown(twin: Twin, provider: OpenAIProvider) -> None:
    """A provider may quote the key at us, in an error or in garbage; nobody gets to read it."""
    quoted = f"no good: Bearer {KEY}, that is {KEY}"
    for reply in (
        refusal(401, quoted), refusal(400, quoted, code=KEY), body(quoted.encode(), 500), streamed(quoted),
        streamed({"error": {"message": quoted}}), streamed({"error": quoted}), body({"error": quoted}),
        body(f"<html>{KEY}".encode(), 200, {"content-type": "text/html"}),
        Reply(headers={**SSE, "content-encoding": KEY}), body(quoted.encode(), 200, {"content-type": "text/plain"}),
    ):  # fmt: skip
        twin.play(reply)
        error = await fails(provider)
        shown = str(error) + error.detail + "".join(traceback.format_exception(error))
        assert KEY not in shown
        assert "***" in error.detail


async def test_a_password_in_the_address_is_never_shown(twin: Twin, pauses: Pauses) -> None:
    """Neither in errors nor as the endpoint of a model, which clients may read; the server does get it."""
    twin.play(body({"data": [{"id": "m"}]}))
    provider = OpenAIProvider("twin", twin.base_url.replace("//", "//ann:secret-word@"), None, sleep=pauses)
    (info,) = await provider.list_models()
    assert info.endpoint == twin.base_url
    assert twin.asked[0].headers["authorization"] == "Basic YW5uOnNlY3JldC13b3Jk"
    await twin.server.close()
    error = await fails(provider)
    assert "secret-word" not in str(error) + error.detail
    await provider.close()


async def test_a_key_in_the_address_is_never_shown(twin: Twin, pauses: Pauses) -> None:
    """Some gateways take the key as a part of the path."""
    url = f"{twin.base_url}/{KEY}"
    await twin.server.close()
    provider = OpenAIProvider("twin", url, KEY, sleep=pauses)
    assert str(await fails(provider)).startswith("twin cannot be reached at http://127.0.0.1:")
    assert KEY not in str(await fails(provider))
    await provider.close()


async def test_a_key_with_a_line_end_is_that_key(twin: Twin) -> None:
    """Keys are pasted, from files with a last line end too."""
    twin.play(HELLO)
    provider = OpenAIProvider("twin", twin.base_url, f"{KEY}\n")
    await hear(provider)
    assert twin.asked[0].headers["authorization"] == f"Bearer {KEY}"
    await provider.close()


async def test_an_address_that_is_none(pauses: Pauses) -> None:
    """What cannot be asked at all is an error of ours, too."""
    for url, key in (("http://", None), ("ftp://127.0.0.1/v1", None), ("http://a:b@127.0.0.1:9", "both-key-and-name")):
        provider = OpenAIProvider("odd", url, key, sleep=pauses)
        assert "Check" in str(await fails(provider)) or "broke off" in str(await fails(provider))
        await provider.close()


@pytest.mark.parametrize("room", [4, 9, len(KEY)])
async def test_no_part_of_the_key_is_left_where_words_are_cut(twin: Twin, provider: OpenAIProvider, room: int) -> None:
    """A complaint is cut to a length; a key that stands across the cut goes as a whole."""
    for reply in (refusal(400, "x" * (2000 - room) + KEY), streamed("x" * (200 - room) + KEY)):
        twin.play(reply)
        error = await fails(provider)
        assert KEY[:4] not in error.detail
