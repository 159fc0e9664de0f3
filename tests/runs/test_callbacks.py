"""Callbacks over real sockets: real posts through the real guard to a receiver on this machine; time is set by hand.

The runs are those of a store that keeps them in memory, so that a story can look at every claim and every record.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from aiohttp import web
from runs.receiver import KEY, receiving
from store.making import a_run

from perdure.api.views import run_view
from perdure.domain.clock import Clock, SystemClock
from perdure.domain.errors import Invalid, Unavailable
from perdure.domain.records import Run
from perdure.runs.callbacks import Callbacks, body_of, judged
from perdure.tools.egress import Egress, Limits

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
AGENT = "agent-00000000-0000-4000-8000-000000000000"


class Watch:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = NOON

    def now(self) -> datetime:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class Ended:
    """Runs that have ended, in memory, and what is done with their callbacks."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.due: dict[str, datetime | None] = {}
        self.looks = self.settled = 0
        self.troubles: list[Exception] = []
        self._changed = asyncio.Condition()

    def add(self, url: str, **fields: Any) -> Run:
        known = {
            "status": "completed", "stop_reason": "end_turn", "completed_at": NOON, "callback_url": url,
            "metadata": {"run_type": "send_message_async"},
        }  # fmt: skip
        run = a_run(AGENT, **{**known, **fields})
        self.runs[run.id], self.due[run.id] = run, NOON
        return run

    async def due_callbacks(self, now: datetime, again_at: datetime, limit: int) -> list[Run]:
        async with self._changed:
            self.looks += 1
            self._changed.notify_all()
        if self.troubles:
            raise self.troubles.pop()
        found = [run_id for run_id, due in self.due.items() if due and due <= now][:limit]
        self.due.update(dict.fromkeys(found, again_at))
        return [self.runs[run_id] for run_id in found]

    async def settle_callback(self, run_id: str, change: Callable[[Run], Run], again_at: datetime | None) -> None:
        async with self._changed:
            self.settled += 1
            self._changed.notify_all()
        if self.troubles:
            raise self.troubles.pop()
        if run_id in self.runs:
            self.runs[run_id], self.due[run_id] = change(self.runs[run_id]), again_at

    async def wait(self, done: Callable[["Ended"], bool]) -> None:
        async with self._changed, asyncio.timeout(20):
            await self._changed.wait_for(lambda: done(self))
        await asyncio.sleep(0)  # what was counted at its beginning is over

    async def tried(self, run: Run, count: int = 1) -> Run:
        """The run, once its callback was tried so often and that is recorded."""
        async with asyncio.timeout(20):
            while self.runs[run.id].callback_tries < count:
                async with self._changed:
                    await self._changed.wait()
                await asyncio.sleep(0)
        return self.runs[run.id]


class Office:
    """Callbacks at work, with what they work on."""

    def __init__(self, callbacks: Callbacks, ended: Ended, clock: Clock):
        self.callbacks, self.ended, self.clock = callbacks, ended, clock

    async def look(self) -> None:
        """Have it look once more, and wait until it has."""
        looks = self.ended.looks
        self.callbacks.nudge()
        await self.ended.wait(lambda ended: ended.looks > looks)


@pytest.fixture
def clock() -> Watch:
    return Watch()


@pytest.fixture
async def ended(anyio_backend: str) -> Ended:
    return Ended()


@asynccontextmanager
async def open_office(
    ended: Ended, clock: Clock, *, timeout: float = 5.0, allow: tuple[str, ...] = ("127.0.0.1",), resolver: Any = None,
    **options: Any,
) -> AsyncIterator[Office]:  # fmt: skip
    """Looks only when it is told to, and its delays have no chance in them."""
    names = {"resolver": resolver} if resolver else {}
    egress = Egress(Limits(timeout=timeout), allow=allow, **names)
    usual: dict[str, Any] = {"every": None, "chance": lambda: 0.5}
    runs: Any = ended
    callbacks = Callbacks(runs, egress, run_view, clock, KEY, **(usual | options))
    callbacks.start()
    try:
        yield Office(callbacks, ended, clock)
    finally:
        await callbacks.close()


async def test_a_run_has_ended(ended: Ended, clock: Watch) -> None:
    """Acceptance 67: the receiver is told once, with a signature, and the run shows that it was."""
    async with receiving() as receiver, open_office(ended, clock) as office:
        clock.forward(0.25)
        run = ended.add(receiver.url)
        office.callbacks.nudge()
        after = await ended.tried(run)
        await office.look()
        clock.forward(86_400)
        await office.look()
    [call] = receiver.calls
    assert call.json == {
        "run_id": run.id, "status": "completed", "completed_at": "2026-03-01T12:00:00.000000+00:00",
        "metadata": {"run_type": "send_message_async"},
    }  # fmt: skip
    assert call.headers["Content-Type"] == "application/json"
    assert (call.headers["webhook-id"], call.headers["webhook-timestamp"]) == (run.id, "1772366400")
    assert call.is_signed()
    assert not call.is_signed(b"another key of some length")
    assert "Cookie" not in call.headers
    assert "Authorization" not in call.headers
    assert (after.callback_sent_at, after.callback_status_code) == (NOON + timedelta(seconds=0.25), 200)
    assert (after.callback_error, ended.due[run.id]) == (None, None)


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_however_it_ended(ended: Ended, clock: Watch, status: str) -> None:
    """Failures and cancels are told like any other end."""
    error = {"error_type": "llm_timeout", "message": "The model is silent.", "detail": "-"}
    async with receiving() as receiver, open_office(ended, clock):
        run = ended.add(receiver.url, status=status, metadata={"error": error})
        [call] = await receiver.heard()
        await ended.tried(run)
    assert (call.json["status"], call.json["metadata"]) == (status, {"error": error})


@pytest.mark.parametrize("status", [500, 503, 400, 401, 404, 408, 429])
async def test_an_error_and_then_success(ended: Ended, clock: Watch, status: int) -> None:
    """Whatever the first answer, the second try comes five seconds later and not sooner: the same, signed anew."""
    async with receiving(status, 204) as receiver, open_office(ended, clock) as office:
        run = ended.add(receiver.url)
        office.callbacks.nudge()
        first = await ended.tried(run)
        clock.forward(4.9)
        await office.look()
        assert len(receiver.calls) == 1
        clock.forward(0.1)
        office.callbacks.nudge()
        second = await ended.tried(run, 2)
    one, two = receiver.calls
    assert (first.callback_status_code, first.callback_sent_at) == (status, NOON)
    assert first.callback_error == (
        f"127.0.0.1 answered {status} instead of 2xx. The receiver's log should say why. "
        "Try 1 of 5; the next one is due at 2026-03-01T12:00:05+00:00."
    )
    assert (one.body, one.headers["webhook-id"]) == (two.body, two.headers["webhook-id"])
    assert int(two.headers["webhook-timestamp"]) - int(one.headers["webhook-timestamp"]) == 5
    assert two.is_signed()
    assert (second.callback_status_code, second.callback_error) == (204, None)
    assert second.callback_sent_at == NOON + timedelta(seconds=5)
    assert ended.due[run.id] is None


async def test_down_and_up_again(ended: Ended, clock: Watch) -> None:
    """Nobody listens at first."""
    async with receiving() as gone:
        pass
    async with open_office(ended, clock) as office:
        run = ended.add(gone.url)
        office.callbacks.nudge()
        first = await ended.tried(run)
        assert first.callback_status_code is None
        assert first.callback_error == (
            "No answer came from 127.0.0.1, or a broken one. Check that it listens there. "
            "Try 1 of 5; the next one is due at 2026-03-01T12:00:05+00:00."
        )
        async with receiving(port=gone.port) as back:
            clock.forward(5)
            office.callbacks.nudge()
            second = await ended.tried(run, 2)
    assert len(back.calls) == 1
    assert (second.callback_status_code, second.callback_error) == (200, None)


async def test_never_up(ended: Ended, clock: Watch) -> None:
    """Five tries within eleven minutes, each later than the one before, then the last error stays."""
    async with receiving(500) as receiver, open_office(ended, clock) as office:
        run, waited = ended.add(receiver.url), []
        for count in range(1, 6):
            office.callbacks.nudge()
            last = await ended.tried(run, count)
            if due := ended.due[run.id]:
                waited.append((due - clock.now()).total_seconds())
                clock.time = due
        clock.forward(86_400)
        await office.look()
    assert waited == [5, 30, 120, 480]
    assert len(receiver.calls) == 5
    assert last.callback_error == (
        "127.0.0.1 answered 500 instead of 2xx. The receiver's log should say why. "
        "Try 5 of 5; there is no further one, so read the outcome from the run."
    )


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 4.0), (1.0, 6.0)])
async def test_delays_vary(ended: Ended, clock: Watch, chance: float, seconds: float) -> None:
    """A receiver that was down is not called by all at the same moment."""
    async with receiving(500) as receiver, open_office(ended, clock, chance=lambda: chance):
        run = ended.add(receiver.url)
        await ended.tried(run)
    assert ended.due[run.id] == NOON + timedelta(seconds=seconds)


async def test_a_receiver_that_wants_no_more(ended: Ended, clock: Watch) -> None:
    """410 is the last word."""
    async with receiving(410) as receiver, open_office(ended, clock):
        run = await ended.tried(ended.add(receiver.url))
    assert (run.callback_status_code, ended.due[run.id]) == (410, None)
    assert run.callback_error == (
        "127.0.0.1 answered 410: it wants no callbacks. "
        "Try 1 of 5; there is no further one, so read the outcome from the run."
    )


async def test_a_slow_receiver(ended: Ended, clock: Watch) -> None:
    """It counts as failed when its time is over; it may have heard it all the same, so the id of the next try is the
    same."""

    async def sleep(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError("it is cut before")

    async with receiving(sleep, 200) as receiver, open_office(ended, clock, timeout=0.2) as office:
        run = ended.add(receiver.url)
        first = await ended.tried(run)
        clock.forward(5)
        office.callbacks.nudge()
        await ended.tried(run, 2)
    assert (first.callback_error or "").startswith("127.0.0.1 did not answer within 0.2 seconds. Try 1 of 5")
    assert {call.headers["webhook-id"] for call in receiver.calls} == {run.id}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
async def test_redirects_are_not_followed(ended: Ended, clock: Watch, status: int) -> None:
    """A redirect could lead anywhere, and a POST must not be made twice."""
    async with receiving() as elsewhere:

        async def redirect(_: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": elsewhere.url})

        async with receiving(redirect) as receiver, open_office(ended, clock):
            run = await ended.tried(ended.add(receiver.url))
    assert (len(receiver.calls), elsewhere.calls) == (1, [])
    assert run.callback_status_code == status
    assert "Redirects are not followed; send messages with the address that it redirects to." in str(run.callback_error)


async def test_a_huge_answer(ended: Ended, clock: Watch) -> None:
    """Its status counts; the endless rest is not heard."""

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65_536)

    async with receiving(flood) as receiver, open_office(ended, clock):
        run = await ended.tried(ended.add(receiver.url))
    assert (run.callback_status_code, run.callback_error) == (200, None)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("10.0.0.1", "10.0.0.1"), ("169.254.169.254", "169.254.169.254"), ("[::1]", "::1"), ("inside.example", "")],
)
async def test_an_address_inside_is_refused_for_good(ended: Ended, clock: Watch, host: str, shown: str) -> None:
    """However it got there: the operator may have changed the list, or the name leads elsewhere by now."""

    async def inside(_host: str, _port: int) -> list[str]:
        return ["93.184.216.34", "192.168.1.5"]

    async with open_office(ended, clock, resolver=inside):
        run = await ended.tried(ended.add(f"http://{host}/latest/meta-data"))
    assert (run.callback_sent_at, run.callback_status_code, ended.due[run.id]) == (None, None, None)
    assert run.callback_error == (
        f"The host {shown or host} is not on the open internet, so nothing is asked of it. The operator can allow "
        "private hosts by name or range: setting egress_allow. "
        "Try 1 of 5; there is no further one, so read the outcome from the run."
    )


async def test_a_name_that_is_not_found(ended: Ended, clock: Watch) -> None:
    """Name servers fail for a while, so there is another try."""

    async def nowhere(_host: str, _port: int) -> list[str]:
        raise OSError("no such name")

    async with open_office(ended, clock, resolver=nowhere):
        run = await ended.tried(ended.add("https://nowhere.example/hook"))
    assert str(run.callback_error).startswith("The host nowhere.example cannot be found. Check the address. Try 1 of 5")
    assert ended.due[run.id] == NOON + timedelta(seconds=5)


async def test_nothing_of_the_url_but_the_host_is_told(ended: Ended, clock: Watch) -> None:
    """A path or a query may hold a secret."""
    async with receiving(500) as receiver, open_office(ended, clock):
        run = await ended.tried(ended.add(f"{receiver.url}/s3cret?token=s3cret"))
    assert receiver.calls[0].path == "/hook/s3cret?token=s3cret"
    assert "s3cret" not in str(run.callback_error)


async def test_stopped_before_it_was_called(ended: Ended, clock: Watch) -> None:
    """What is due when the server stops is called by the next one."""
    async with receiving() as receiver:
        async with open_office(ended, clock) as office:
            await ended.wait(lambda ended: ended.looks > 0)
            run = ended.add(receiver.url)
            del office  # never told
        assert receiver.calls == []
        async with open_office(ended, clock):
            await ended.tried(run)
    assert len(receiver.calls) == 1


async def test_stopped_while_it_was_called(ended: Ended, clock: Watch) -> None:
    """A call that the stop cut off is made again, once its claim has run out, with the same id."""

    async def sleep(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError("it is cut before")

    async with receiving(sleep, 200) as receiver:
        run = ended.add(receiver.url)
        async with open_office(ended, clock):
            await receiver.heard()
        assert ended.runs[run.id].callback_tries == 0
        clock.forward(29.9)
        async with open_office(ended, clock) as office:
            await office.look()
            assert len(receiver.calls) == 1
            clock.forward(0.1)
            office.callbacks.nudge()
            after = await ended.tried(run)
    assert [call.headers["webhook-id"] for call in receiver.calls] == [run.id, run.id]
    assert (after.callback_status_code, after.callback_error) == (200, None)


async def test_a_stop_waits_for_an_answer_on_its_way(ended: Ended, clock: Watch) -> None:
    """So an ordinary restart does not call twice."""
    gate = asyncio.Event()

    async def wait(_: web.Request) -> web.Response:
        await gate.wait()
        return web.Response()

    async with receiving(wait) as receiver:
        run = ended.add(receiver.url)
        async with open_office(ended, clock) as office:
            await receiver.heard()
            closing = asyncio.create_task(office.callbacks.close())
            await asyncio.sleep(0)
            gate.set()
            await closing
    assert ended.runs[run.id].callback_status_code == 200


async def test_many_at_once(ended: Ended, clock: Watch) -> None:
    """All are called, no more than so many at the same time, without waiting for the next look."""
    most = now = 0

    async def count(_: web.Request) -> web.Response:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return web.Response()

    async with receiving(count) as receiver:
        runs = [ended.add(receiver.url) for _ in range(50)]
        async with open_office(ended, clock, at_once=4):
            for run in runs:
                await ended.tried(run)
    assert sorted(call.json["run_id"] for call in receiver.calls) == sorted(run.id for run in runs)
    assert most == 4


async def test_its_own_tries_need_no_looking_about(ended: Ended) -> None:
    """What this process has to try again is tried when it is due."""
    async with (
        receiving(500, 500, 200) as receiver,
        open_office(ended, SystemClock(), every=None, delays=[0.01, 0.02]) as office,
    ):
        run = ended.add(receiver.url)
        office.callbacks.nudge()
        await ended.tried(run, 3)
    assert ended.looks <= 4


async def test_it_looks_by_itself(ended: Ended, clock: Watch) -> None:
    """A run that another process ended, or a try that is due again: nobody nudges then."""
    async with receiving(500, 200) as receiver, open_office(ended, clock, every=0.01):
        await ended.wait(lambda ended: ended.looks > 1)
        run = ended.add(receiver.url)
        await ended.tried(run)
        clock.forward(5)
        await ended.tried(run, 2)


@pytest.mark.parametrize("trouble", [Unavailable("The database is away."), RuntimeError("a fault")])
async def test_the_database_is_away(ended: Ended, clock: Watch, trouble: Exception) -> None:
    """The next look finds what this one could not."""
    ended.troubles = [trouble]
    async with receiving() as receiver:
        run = ended.add(receiver.url)
        async with open_office(ended, clock) as office:
            await ended.wait(lambda ended: ended.looks == 1)
            ended.troubles = []
            office.callbacks.nudge()
            await ended.tried(run)


async def test_a_call_that_could_not_be_recorded(ended: Ended, clock: Watch) -> None:
    """It is made again when its claim has run out: better twice than never."""

    async def fail(_: web.Request) -> web.Response:
        ended.troubles = [Unavailable("The database is away.")]
        return web.Response()

    async with receiving(fail, 200) as receiver, open_office(ended, clock) as office:
        run = ended.add(receiver.url)
        await ended.wait(lambda ended: ended.settled == 1)
        clock.forward(30)
        office.callbacks.nudge()
        await ended.tried(run)
    assert [call.headers["webhook-id"] for call in receiver.calls] == [run.id, run.id]


async def test_a_run_that_is_deleted_meanwhile(ended: Ended, clock: Watch) -> None:
    """There is nothing to record then, and nothing breaks."""

    async def delete(_: web.Request) -> web.Response:
        ended.runs.clear()
        ended.due.clear()
        return web.Response()

    async with receiving(delete) as receiver, open_office(ended, clock) as office:
        ended.add(receiver.url)
        await ended.wait(lambda ended: ended.settled == 1)
        await office.look()
    assert len(receiver.calls) == 1


async def test_a_fault_of_ours_counts_as_a_try(ended: Ended, clock: Watch) -> None:
    """Or the same run would be taken up for ever."""
    async with open_office(ended, clock):
        run = await ended.tried(ended.add("http://127.0.0.1:1/", metadata={"odd": object()}))
    assert str(run.callback_error).startswith("The server failed to make the callback. Its log says why. Try 1 of 5")
    assert (run.callback_sent_at, ended.due[run.id]) == (None, NOON + timedelta(seconds=5))


async def test_without_a_secret(ended: Ended, clock: Watch) -> None:
    """A callback that anybody could have sent is not made, and none is promised."""
    runs: Any = ended
    callbacks = Callbacks(runs, Egress(), run_view, clock, None)
    callbacks.start()
    with pytest.raises(Unavailable, match="no secret to sign callbacks with"):
        callbacks.check("https://hooks.example/")
    await callbacks.close()
    assert ended.looks == 0


async def test_urls_that_are_refused_at_once(ended: Ended, clock: Watch) -> None:
    """Before there is a run."""
    async with open_office(ended, clock, allow=()) as office:
        office.callbacks.check("https://hooks.example/a?b=c")
        for url in ("hooks.example", "ftp://hooks.example/", "http://127.0.0.1/", "http://me:pw@hooks.example/"):
            with pytest.raises(Invalid):
                office.callbacks.check(url)


def test_the_body_shows_what_the_run_shows() -> None:
    """And no more: the same four fields in every try."""
    run = a_run(
        AGENT, status="completed", completed_at=NOON, callback_url="http://x.example/?token=s3cret", worker="worker-1",
        otids=("otid",), metadata={"run_type": "send_message_async", "täg": ["\u2028", None, 1.5]},
    )  # fmt: skip
    first = body_of(run, run_view)
    assert json.loads(first)["metadata"] == run_view(run)["metadata"]
    assert list(json.loads(first)) == ["run_id", "status", "completed_at", "metadata"]
    tried = msgspec.structs.replace(run, callback_tries=3, callback_error="no", callback_status_code=500)
    assert body_of(tried, run_view) == first
    assert body_of(msgspec.structs.replace(run, metadata={}), run_view).endswith(b'"metadata":{}}')


def test_what_is_too_long_is_named_and_left_out() -> None:
    """Nobody takes a webhook of ten megabytes."""
    metadata = {"run_type": "send_message_async", "rejected_input": ["x" * 10_000_000]}
    body = body_of(a_run(AGENT, status="failed", metadata=metadata), run_view)
    assert json.loads(body)["metadata"] == {"run_type": "send_message_async", "left_out": ["rejected_input"]}


def test_every_2xx_is_success() -> None:
    """And nothing else."""
    assert [status for status in range(100, 600) if judged(status, "h").error is None] == list(range(200, 300))
    assert [status for status in range(100, 600) if judged(status, "h").final] == [410]
