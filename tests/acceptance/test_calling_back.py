"""Callbacks of `messages/async`, from the request to the receiver (spec §9.1, acceptance 67; docs/callbacks.md)."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from acceptance.stage import Cast, Stage
from acceptance.test_crash import served
from acceptance.twin import HANG, twin
from aiohttp import web
from letta_client import AsyncLetta
from pydantic import SecretStr
from runs.receiver import SECRET, receiving

from perdure.domain.errors import ModelError, Unavailable
from perdure.program import assembled
from perdure.runs.signing import key_of
from perdure.settings import Settings
from perdure.testing import Say, server

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text(encoding="utf-8")
FIELDS = ("callback_status_code", "callback_error")


class Watch:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        self.time += timedelta(microseconds=1)  # runs of one test must not begin at the same moment
        return self.time


async def send(stage: Stage, agent: str, *turns: Say, **fields: Any) -> str:
    """The id of a run that nobody waits for."""
    stage.play(*turns)
    run = await stage.call("POST", f"/v1/agents/{agent}/messages/async", {"input": "hi", **fields})
    assert run.status == 200, run.json
    return str(run["id"])


async def tried(stage: Stage, run_id: str, status: int | None = 200) -> Any:
    """The run, once the last try of its callback is recorded."""
    async with asyncio.timeout(20):
        while True:
            run = (await stage.get(f"/v1/runs/{run_id}")).json
            if run["callback_sent_at"] and run["callback_status_code"] == status:
                return run
            await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Stage]:
    """A server of the story's own that may call back on this machine."""
    cast = Cast()
    usual = {"egress_allow": ["127.0.0.1"], "callback_secret": SECRET}
    async with server(script=cast, **(usual | options)) as running, aiohttp.ClientSession() as http:
        yield Stage(running, http, cast)


async def test_a_run_completes(stage: Stage) -> None:
    """Acceptance 67: the receiver is told once what the run shows, and the run shows that it was told."""
    async with receiving() as receiver:
        run_id = await send(stage, await stage.agent(), Say("Hello."), callback_url=receiver.url)
        run = await tried(stage, run_id)
        stage.running.program.callbacks.nudge()
        await stage.get(f"/v1/runs/{run_id}")
    [call] = receiver.calls
    assert call.json == {key: run[key] for key in ("status", "completed_at", "metadata")} | {"run_id": run_id}
    assert (run["status"], run["callback_url"], run["callback_error"]) == ("completed", receiver.url, None)
    assert run["callback_sent_at"] >= run["completed_at"]
    assert call.headers["webhook-id"] == run_id


async def test_a_run_fails(stage: Stage) -> None:
    """The receiver learns why."""
    broken = Say(fail=ModelError("The model is broken."))
    async with receiving() as receiver:
        run_id = await send(stage, await stage.agent(), broken, callback_url=receiver.url)
        run = await tried(stage, run_id)
    assert (receiver.calls[0].json["status"], run["status"]) == ("failed", "failed")
    assert receiver.calls[0].json["metadata"]["error"] == run["metadata"]["error"]


async def test_a_run_is_cancelled(stage: Stage) -> None:
    """Whoever waits for the callback need not know who cancelled."""
    gate = asyncio.Event()
    async with receiving() as receiver:
        agent = await stage.agent()
        run_id = await send(stage, agent, Say("never", gate=gate), callback_url=receiver.url)
        while not stage.requests:
            await asyncio.sleep(0.005)
        await stage.call("POST", f"/v1/agents/{agent}/messages/cancel", {"run_ids": [run_id]})
        await tried(stage, run_id)
    assert receiver.calls[0].json["status"] == "cancelled"


async def test_runs_that_wait_their_turn(stage: Stage) -> None:
    """Each calls its own receiver when it is over."""
    gate = asyncio.Event()
    async with receiving() as one, receiving() as two:
        agent = await stage.agent()
        first = await send(stage, agent, Say("One.", gate=gate), callback_url=one.url)
        second = await send(stage, agent, Say("Two."), callback_url=two.url, on_busy="enqueue")
        gate.set()
        await tried(stage, first)
        await tried(stage, second)
    assert [call.json["run_id"] for call in one.calls + two.calls] == [first, second]


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("hooks.example/x", 400, "must begin with http:// or https://"),
        ("ftp://hooks.example/", 400, "must begin with http:// or https://"),
        ("http://me:pw@hooks.example/", 400, "holds a user name or password"),
        ("http://10.0.0.1/", 400, "The host 10.0.0.1 is not on the open internet"),
        ("http://169.254.169.254/latest/meta-data", 400, "not on the open internet"),
        ("http://2130706433/", 400, "four decimal numbers"),
        ("http://hooks.example/\x07", 400, "control characters"),
        ("http://hooks.example/" + "x" * 9000, 400, "longer than 8192"),
        (["http://hooks.example/"], 422, "callback_url"),
        (7, 422, "callback_url"),
    ],
)
async def test_an_address_that_cannot_be_called(stage: Stage, url: Any, status: int, words: str) -> None:
    """It is refused with words before anything is stored."""
    agent = await stage.agent()
    refused = await stage.call("POST", f"/v1/agents/{agent}/messages/async", {"input": "hi", "callback_url": url})
    assert refused.status == status
    assert words in refused["detail"]
    assert (await stage.runs(agent), await stage.history(agent)) == ([], [])


@pytest.mark.parametrize("url", [None, ""])
async def test_no_address_no_callback(stage: Stage, url: str | None) -> None:
    """An empty one counts as none, as clients send it."""
    run_id = await send(stage, await stage.agent(), Say("Hello."), callback_url=url)
    assert (await stage.get(f"/v1/runs/{run_id}"))["callback_url"] is None
    async with asyncio.timeout(20):
        while (await stage.get(f"/v1/runs/{run_id}"))["status"] != "completed":
            await asyncio.sleep(0.01)


async def test_a_name_that_leads_nowhere(stage: Stage) -> None:
    """Found out only when it is called: the run says what is wrong, and that there is another try."""
    run_id = await send(stage, await stage.agent(), Say("Hello."), callback_url="http://nowhere.invalid/hook")
    run = await tried(stage, run_id, None)
    assert run["status"] == "completed"
    assert run["callback_error"].startswith("The host nowhere.invalid cannot be found. Check the address. Try 1 of 5;")


async def test_with_the_sdk_and_a_secret_of_the_operators() -> None:
    """The unchanged SDK sends it and shows what came of it; the signature is that of the setting."""
    async with receiving() as receiver, opened() as stage, AsyncLetta(base_url=stage.running.base_url) as client:
        agent = await client.agents.create(model=stage.running.handle)
        stage.play(Say("Hello."))
        run = await client.agents.messages.create_async(agent.id, input="hi", callback_url=receiver.url)
        [call] = await receiver.heard()
        await tried(stage, run.id)
        shown = await client.runs.retrieve(run.id)
    assert call.is_signed()
    assert (shown.callback_url, shown.callback_status_code, shown.callback_error) == (receiver.url, 200, None)
    assert shown.callback_sent_at is not None


async def test_an_error_a_restart_and_success(tmp_path: Path) -> None:
    """The receiver fails, the server is stopped before the next try, and the next server makes it."""
    clock, options = Watch(), {"database_url": f"sqlite:///{tmp_path / 'perdure.db'}"}
    async with receiving(500, 200) as receiver:
        async with opened(clock=clock, **options) as stage:
            run_id = await send(stage, await stage.agent(), Say("Hello."), callback_url=receiver.url)
            failed = await tried(stage, run_id, 500)
        clock.time += timedelta(seconds=10)
        async with opened(clock=clock, **options) as stage:
            run = await tried(stage, run_id)
    assert "127.0.0.1 answered 500 instead of 2xx" in failed["callback_error"]
    assert run["callback_error"] is None
    assert [call.headers["webhook-id"] for call in receiver.calls] == [run_id, run_id]
    assert receiver.calls[0].body == receiver.calls[1].body
    assert all(call.is_signed() for call in receiver.calls)


async def test_stopped_while_the_receiver_was_silent(tmp_path: Path) -> None:
    """Nobody knows whether it heard, so it is told again after the restart; the id shows that it is the same."""

    async def sleep(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError("it is cut before")

    clock, options = Watch(), {"database_url": f"sqlite:///{tmp_path / 'perdure.db'}"}
    async with receiving(sleep, 200) as receiver:
        async with opened(clock=clock, **options) as stage:
            run_id = await send(stage, await stage.agent(), Say("Hello."), callback_url=receiver.url)
            await receiver.heard()
        clock.time += timedelta(seconds=31)
        async with opened(clock=clock, **options) as stage:
            await tried(stage, run_id)
    assert [call.headers["webhook-id"] for call in receiver.calls] == [run_id, run_id]


async def test_killed_while_the_model_speaks(tmp_path: Path) -> None:
    """After the restart the run is ended and its receiver told, signed with the secret in the data directory."""
    (tmp_path / "perdure.toml").write_text('egress_allow = ["127.0.0.1"]\n')
    async with twin() as model, receiving() as receiver:
        async with served(tmp_path, model) as running:
            agent = (await running.call("POST", "/v1/agents/", {"model": "openai/twin"}))["id"]
            model.play(HANG)
            body = {"input": "hi", "callback_url": receiver.url}
            run = await running.call("POST", f"/v1/agents/{agent}/messages/async", body)
            await model.fell_silent()
            secret = (tmp_path / "callback_secret").read_text().strip()
            await running.kill()
        async with served(tmp_path, model):
            [call] = await receiver.heard()
    assert (call.json["run_id"], call.json["status"]) == (run["id"], "failed")
    assert call.json["metadata"]["error"]["message"].startswith("The server stopped while this run was under way.")
    assert call.is_signed(key_of(secret))
    assert (tmp_path / "callback_secret").stat().st_mode & 0o777 == 0o600


async def test_two_servers_make_each_try_once(postgres_url: str) -> None:
    """Both look at the same moment for what is due; each of forty calls is made by one of them."""
    clock = Watch()
    async with receiving(*[500] * 40, 200) as receiver, AsyncExitStack() as at_end:
        one, two = [
            await at_end.enter_async_context(opened(clock=clock, database_url=postgres_url)) for _ in range(2)
        ]  # fmt: skip
        one.cast.improvise(lambda _: Say("Hello."))
        runs = [await send(one, await one.agent(), callback_url=receiver.url) for _ in range(40)]
        for run_id in runs:
            await tried(one, run_id, 500)
        clock.time += timedelta(seconds=20)
        async with asyncio.timeout(20):
            while len(receiver.calls) < 80:
                one.running.program.callbacks.nudge()
                two.running.program.callbacks.nudge()
                await asyncio.sleep(0)
        for run_id in runs:
            await tried(two, run_id)
    assert sorted(call.headers["webhook-id"] for call in receiver.calls[40:]) == sorted(runs)
    assert len(receiver.calls) == 80


async def test_without_a_place_for_a_secret(tmp_path: Path, postgres_url: str) -> None:
    """The server starts and does everything else; a callback is refused with words."""
    (tmp_path / "file").write_text("")
    settings = Settings(data_dir=tmp_path / "file", database_url=SecretStr(postgres_url))
    async with assembled(settings, []) as program:
        with pytest.raises(Unavailable, match="The operator can set callback_secret"):
            program.callbacks.check("https://hooks.example/")


async def test_the_receiver_of_the_page(tmp_path: Path) -> None:
    """docs/callbacks.md: its receiver takes what the server sends, once, and nothing that somebody else made up."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    [talk] = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    (tmp_path / "secret").write_text(SECRET + "\n")
    async with receiving() as free:
        pass
    code = code.replace("~/.perdure/callback_secret", str(tmp_path / "secret")).replace("9000", str(free.port))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert child.stdout
    try:
        async with opened() as stage:
            async with asyncio.timeout(20):
                while (forged := await forge(stage.http, free.port)) is None:
                    await asyncio.sleep(0.02)
            stage.play(Say("Hello."))
            agent = await stage.agent()
            talk = talk.replace("http://127.0.0.1:8283", stage.running.base_url).replace("9000", str(free.port))
            curl = await asyncio.create_subprocess_exec(
                "bash", "-euo", "pipefail", "-c", talk, stdout=asyncio.subprocess.DEVNULL,
                env={"AGENT": agent, "PATH": "/usr/bin:/bin", "NO_PROXY": "127.0.0.1"},
            )  # fmt: skip
            assert await curl.wait() == 0
            [run] = await stage.runs(agent)
            ended = await tried(stage, run["id"], 204)
        async with asyncio.timeout(20):
            said = await child.stdout.readline()
    finally:
        child.kill()
        await child.communicate()
    assert (forged, said.decode()) == (401, f"{run['id']} completed\n")
    assert ended["callback_error"] is None


async def forge(http: aiohttp.ClientSession, port: int) -> int | None:
    """What a call without the right signature is answered; None if nobody listens yet."""
    headers = {"webhook-id": "run-1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
    try:
        async with http.post(f"http://127.0.0.1:{port}/hook", json={}, headers=headers) as answer:
            return answer.status
    except aiohttp.ClientConnectionError:
        return None
