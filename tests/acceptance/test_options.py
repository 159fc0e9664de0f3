"""The options and fields of a request: other models, other system texts, names, pictures (behaviour spec §2)."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
from acceptance.stage import PIXEL, Stage
from aiohttp import web

from perdure.domain.messages import Image, text_of
from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio


async def test_a09_another_model_for_one_request(stage: Stage) -> None:
    """`override_model` is used once and leaves the agent as it is; unknown ones are 404 and leave no run."""
    agent = await stage.agent()
    before = (await stage.get(f"/v1/agents/{agent}")).json
    await stage.send(agent, "hi", Say("Hello."), override_model="other/large")
    (run,) = await stage.runs(agent)
    (step,) = (await stage.get(f"/v1/runs/{run['id']}/steps")).json
    assert (step["model"], step["model_handle"], step["provider_name"]) == ("large", "other/large", "other")
    assert step["context_window_limit"] == 1_000_000
    assert stage.requests[0].model == "large"
    after = (await stage.get(f"/v1/agents/{agent}")).json
    assert (after["model"], after["llm_config"]) == (before["model"], before["llm_config"])
    unknown = await stage.send(agent, "hi", override_model="other/none")
    nowhere = await stage.send(agent, "hi", override_model="elsewhere/large")
    nameless = await stage.send(agent, "hi", override_model="large")
    assert (unknown.status, nowhere.status, nameless.status) == (404, 404, 400)
    assert len(await stage.runs(agent)) == 1


async def test_an_embedding_model_cannot_talk(stage: Stage) -> None:
    """`override_model` must name a model that talks."""
    agent = await stage.agent()
    answer = await stage.send(agent, "hi", override_model="other/embedder")
    assert (answer.status, await stage.runs(agent)) == (400, [])
    assert "other/embedder" in answer["detail"]


@pytest.mark.parametrize("field", ["override_system", "system"])
async def test_a10_another_system_text_for_one_request(stage: Stage, field: str) -> None:
    """`override_system`, also under its alias, is all the model is told; the stored system message stays."""
    agent = await stage.agent(memory_blocks=[{"label": "skills/go", "value": "How to go."}])
    stored = (await stage.get(f"/v1/agents/{agent}/messages")).json[0]["content"]
    skill = {"name": "fly", "description": "How to fly.", "location": "/fly.md"}
    await stage.send(agent, "hi", Say("Hello."), **{field: "X"}, client_skills=[skill])
    await stage.send(agent, "hi", Say("Hello."))
    assert stage.requests[0].system == "X"
    assert stage.requests[1].system.startswith(stored)
    assert (await stage.get(f"/v1/agents/{agent}/messages")).json[0]["content"] == stored


async def test_skills_of_the_client(stage: Stage) -> None:
    """Skills of the client are told for one request, beside the agent's own, which win; nothing of it is stored."""
    agent = await stage.agent(memory_blocks=[{"label": "skills/go", "value": "…", "description": "How to go.\nMore."}])
    skills = [
        {"name": "fly", "description": "How to fly.\nLong.", "location": "/fly.md"},
        {"name": "go", "description": "Another way.", "location": "/go.md"},
    ]
    await stage.send(agent, "hi", Say("Hello."), client_skills=skills)
    await stage.send(agent, "hi", Say("Hello."))
    first, second = (request.system for request in stage.requests)
    told = "- go: How to go. (location: block skills/go)\n- fly: How to fly. (location: /fly.md)"
    assert first.endswith(f"<available_skills>\n{told}\n</available_skills>")
    assert "fly" not in second
    assert "available_skills" not in (await stage.get(f"/v1/agents/{agent}/messages")).json[0]["content"]


async def test_fields_of_a_message_are_kept(stage: Stage) -> None:
    """name, otid and sender_id are echoed by the list; group_id filters it; type null means a message."""
    agent = await stage.agent()
    said = {
        "type": None, "role": "user", "content": "hi", "name": "Ann", "otid": "o-1", "sender_id": "someone",
        "group_id": "group-7", "batch_item_id": "b-1",
    }  # fmt: skip
    await stage.send(agent, {"messages": [said]}, Say("Hello."))
    await stage.send(agent, "bye", Say("Bye."))
    (listed,) = await stage.history(agent, group_id="group-7")
    assert {key: listed[key] for key in ("name", "otid", "sender_id")} == {
        "name": "Ann", "otid": "o-1", "sender_id": "someone",
    }  # fmt: skip
    assert stage.requests[0].messages[0].name == "Ann"
    stored = (await stage.running.store.messages.get(listed["id"])).message
    assert (stored.group_id, stored.batch_item_id) == ("group-7", "b-1")


async def test_the_run_keeps_what_was_asked(stage: Stage) -> None:
    """The run shows the options it was asked with, unknown fields are ignored, a null option is its default."""
    agent = await stage.agent()
    options: dict[str, Any] = {
        "use_assistant_message": False, "assistant_message_tool_name": "say", "assistant_message_tool_kwarg": "words",
        "include_return_message_types": ["assistant_message"], "nonsense": {"a": 1}, "enable_thinking": True,
        "return_logprobs": True, "top_logprobs": 3, "client_tools": None, "override_model": None,
    }  # fmt: skip
    answer = await stage.send(agent, "hi", Say("Hello."), **options)
    (run,) = await stage.runs(agent)
    assert (answer.status, answer["logprobs"]) == (200, None)
    assert run["request_config"] == {
        "use_assistant_message": False, "assistant_message_tool_name": "say", "assistant_message_tool_kwarg": "words",
        "include_return_message_types": ["assistant_message"],
    }  # fmt: skip
    assert run["metadata"] == {"run_type": "send_message"}


async def test_a_buffer_that_clears_itself(stage: Stage) -> None:
    """With `message_buffer_autoclear` the model sees this request only, through all its steps; history keeps all."""
    agent = await stage.agent(message_buffer_autoclear=True, memory_blocks=[{"label": "human", "value": ""}])
    await stage.send(agent, "one", Say("1"))
    insert = Call("memory_insert", {"label": "human", "new_string": "two"})
    await stage.send(agent, "two", Say(calls=[insert]), Say("2"))
    seen = [[message.role for message in request.messages] for request in stage.requests]
    assert seen == [["user"], ["user"], ["user", "assistant", "tool"]]
    assert text_of(stage.requests[1].messages[0].content) == "two"
    assert len(await stage.history(agent)) == 6


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def gallery(anyio_backend: str) -> AsyncIterator[str]:
    """A web server with one picture, `/pixel.png`; answers its URL."""

    async def pixel(_: web.Request) -> web.Response:
        return web.Response(body=base64.b64decode(PIXEL), content_type="image/png")

    app = web.Application()
    app.router.add_get("/pixel.png", pixel)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def _picture(**source: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image", "source": source}]
    return {"messages": [{"role": "user", "content": parts}]}


async def test_a07_a_picture_by_url(stage: Stage, gallery: str) -> None:
    """A picture is fetched at once: the model gets its data, lists show it with data under a file id."""
    agent = await stage.agent()
    await stage.send(agent, _picture(type="url", url=f"{gallery}/pixel.png"), Say("A pixel."))
    _, image = stage.requests[0].messages[0].content
    assert isinstance(image, Image)
    assert (image.media_type, image.data) == ("image/png", PIXEL)
    text, shown = (await stage.history(agent))[0]["content"]
    assert text == {"type": "text", "text": "what is it?", "signature": None}
    assert shown == {
        "type": "image",
        "source": {
            "type": "letta", "file_id": image.file_id, "media_type": "image/png", "data": PIXEL, "detail": None,
        },
    }  # fmt: skip


async def test_a07_a_picture_that_is_not_there(stage: Stage, gallery: str) -> None:
    """A picture that cannot be had is refused and nothing is stored."""
    agent = await stage.agent()
    for url in (f"{gallery}/none.png", "file:///etc/passwd", "http://169.254.169.254/latest/meta-data/"):
        answer = await stage.send(agent, _picture(type="url", url=url))
        assert answer.status == 400, url
    assert (await stage.history(agent), await stage.runs(agent)) == ([], [])


async def test_a_picture_in_the_request(stage: Stage) -> None:
    """Base64 and data URLs carry their picture; a stored one can be sent again by its file id alone."""
    agent = await stage.agent()
    first = _picture(type="base64", media_type="image/png", data=PIXEL, detail="low")
    await stage.send(agent, first, Say("A pixel."))
    await stage.send(agent, _picture(type="url", url=f"data:image/png;base64,{PIXEL}"), Say("Another."))
    listed = await stage.history(agent)
    file_id = listed[0]["content"][1]["source"]["file_id"]
    assert listed[0]["content"][1]["source"]["detail"] == "low"
    await stage.send(agent, _picture(type="letta", file_id=file_id), Say("The first again."))
    await stage.send(agent, _picture(type="letta", file_id="mine", media_type="image/png", data=PIXEL), Say("Yours."))
    last = [message.content[1] for message in stage.requests[3].messages if message.role == "user"]
    assert [image.data for image in last if isinstance(image, Image)] == [PIXEL] * 4
    assert [image.file_id for image in last if isinstance(image, Image)][2:] == [file_id, "mine"]
    unknown = await stage.send(agent, _picture(type="letta", file_id="file-none"))
    assert (unknown.status, "file-none" in unknown["detail"]) == (400, True)
