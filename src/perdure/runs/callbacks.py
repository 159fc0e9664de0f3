"""Callbacks of `messages/async`: who asked to be called when a run is over is called, at least once (spec §9.1).

That a callback is due stands in the run's row since the transaction that ended the run, so it survives whatever happens
to this process; a claim on it is atomic, so several processes share the work. Knows no HTTP and no database: it is
given something that posts, and the runs. The executor `nudge`s it; `signing` makes the headers.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
import structlog

from perdure.domain.clock import Clock
from perdure.domain.errors import Invalid, PerdureError, Unavailable
from perdure.domain.ports import Runs
from perdure.domain.records import Run
from perdure.runs.signing import signed

log = structlog.get_logger()

DELAYS = (5.0, 30.0, 120.0, 480.0)
"""Seconds between one try and the next: five tries within eleven minutes."""
JITTER = 0.2
"""By which part a delay may be longer or shorter, so that a receiver that was down is not called by all at once."""
CLAIM = timedelta(seconds=30)
"""After which a try that nobody recorded is made again: longer than a try with all its writes can take."""
EVERY = 3.0
"""Seconds between two looks for callbacks that other processes, or this one's predecessor, have left."""
SLACK = timedelta(milliseconds=50)
"""How much later than due is looked, lest clocks that disagree look too early."""
AT_ONCE = 16
LINGER = 1.0
"""Seconds that posts under way have when the server stops."""
LARGEST_VALUE = 64 * 1024
"""Bytes of JSON of one entry of the metadata; a larger one, such as a long rejected input, is named and not sent."""
GONE = 410

Shown = Callable[[Run], Mapping[str, Any]]
"""A run as the API shows it, with `status`, `completed_at` and `metadata`."""


class Outbound(Protocol):
    """Posts to addresses that strangers chose."""

    def check_url(self, url: str) -> None:
        """Raises Invalid for a URL that can never be posted to, as far as its text tells."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Post once, within seconds, and answer the status. Raises Invalid (refused), Unavailable (no answer)."""


class Result(msgspec.Struct, frozen=True):
    """What came of one try. `sent` is false if nothing left this machine; `error` is None if all is well."""

    sent: bool = True
    status: int | None = None
    error: str | None = None
    final: bool = False
    """Whether another try cannot do better."""


class Callbacks:
    """Makes the callbacks that are due, as many at once as it may, from `start` to `close`.

    `every`: seconds between two looks that nobody asked for; None: only what this process left undone is looked for.
    Without a `key` it makes none and `check` refuses new ones: an unsigned callback could come from anybody.
    """

    def __init__(
        self, runs: Runs, outbound: Outbound, shown: Shown, clock: Clock, key: bytes | None, *,
        delays: Sequence[float] = DELAYS, every: float | None = EVERY, at_once: int = AT_ONCE,
        chance: Callable[[], float] = random.random,
    ):  # fmt: skip
        self._runs, self._outbound, self._shown, self._clock, self._key = runs, outbound, shown, clock, key
        self._delays, self._every, self._at_once, self._chance = delays, every, at_once, chance
        self._woken, self._posting, self._more = asyncio.Event(), set[asyncio.Task[None]](), False
        self._watch: asyncio.Task[None] | None = None

    def check(self, url: str) -> None:
        """Whether a run may be accepted with this callback_url. Raises Invalid, Unavailable."""
        self._outbound.check_url(url)
        if self._key is None:
            raise Unavailable(
                "This server has no secret to sign callbacks with, so it makes none. The operator can set "
                "callback_secret; without it, poll the run, GET /v1/runs/{id}."
            )

    def start(self) -> None:
        """Begin to look for callbacks that are due."""
        if self._key is not None:
            self._watch = asyncio.create_task(self._look())

    def nudge(self) -> None:
        """Look now: a run that wants a callback has just ended."""
        self._woken.set()

    async def close(self) -> None:
        """Take up nothing more; what is under way may end if it does so soon, or is tried again after the restart."""
        if self._watch:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._posting:
            _, late = await asyncio.wait(self._posting, timeout=LINGER)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self._take_up()
            except PerdureError as error:  # the database is away: the next look may find it
                log.warning("could not look for callbacks that are due", reason=str(error))
            except Exception as error:  # whatever one look met, callbacks must not stop for good
                log.error("could not look for callbacks that are due", exc_info=error)
            try:
                async with asyncio.timeout(self._every):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _take_up(self) -> None:
        """Claim what is due, no more than can be posted right now, and post it."""
        free = self._at_once - len(self._posting)
        if free <= 0:
            return
        now = self._clock.now()
        claimed = await self._runs.due_callbacks(now, now + CLAIM, free)
        self._more = len(claimed) == free
        for run in claimed:
            task = asyncio.create_task(self._call(run))
            self._posting.add(task)
            task.add_done_callback(self._called)

    def _called(self, task: asyncio.Task[None]) -> None:
        self._posting.discard(task)
        if self._more:
            self._woken.set()

    async def _call(self, run: Run) -> None:
        """One try, recorded."""
        begun = self._clock.now()
        result = await self._try(run, begun)
        again_at = self._again_at(run, result)
        if result.error:
            log.info(
                "a callback failed", run_id=run.id, host=_host(run), tries=run.callback_tries + 1, reason=result.error,
                again_at=again_at and again_at.isoformat(timespec="seconds"),
            )  # fmt: skip

        def change(now: Run) -> Run:
            return msgspec.structs.replace(
                now, callback_sent_at=begun if result.sent else now.callback_sent_at,
                callback_status_code=result.status, callback_error=self._told(run, result, again_at),
                callback_tries=run.callback_tries + 1,
            )  # fmt: skip

        try:
            await self._runs.settle_callback(run.id, change, again_at)
        except Exception as error:  # the claim runs out, and the callback is made once more
            log.warning("could not record what came of a callback", run_id=run.id, reason=str(error))
            again_at = begun + CLAIM
        if again_at:
            wait = again_at + SLACK - self._clock.now()
            asyncio.get_running_loop().call_later(wait.total_seconds(), self.nudge)

    async def _try(self, run: Run, at: datetime) -> Result:
        assert self._key is not None, "it is not started without one"
        try:
            body = body_of(run, self._shown)
            headers = {"Content-Type": "application/json", **signed(self._key, run.id, at, body)}
            return judged(await self._outbound.post(run.callback_url or "", headers, body), _host(run))
        except Invalid as error:
            return Result(sent=False, error=str(error), final=True)
        except Unavailable as error:
            log.debug("no answer to a callback", run_id=run.id, cause=type(error.__cause__).__name__)
            return Result(error=str(error))
        except Exception as error:  # a fault of ours must count as a try, or it would come again for ever
            log.error("a callback could not be made", run_id=run.id, exc_info=error)
            return Result(sent=False, error="The server failed to make the callback. Its log says why.")

    def _again_at(self, run: Run, result: Result) -> datetime | None:
        """When the next try is due; None: never."""
        if result.error is None or result.final or run.callback_tries >= len(self._delays):
            return None
        delay = self._delays[run.callback_tries] * (1 + JITTER * (2 * self._chance() - 1))
        return self._clock.now() + timedelta(seconds=delay)

    def _told(self, run: Run, result: Result, again_at: datetime | None) -> str | None:
        """The error as the run shows it: what is wrong, and whether there is another try."""
        if result.error is None:
            return None
        count = f"Try {run.callback_tries + 1} of {len(self._delays) + 1}"
        if again_at is None:
            return f"{result.error} {count}; there is no further one, so read the outcome from the run."
        return f"{result.error} {count}; the next one is due at {again_at.isoformat(timespec='seconds')}."


def judged(status: int, host: str) -> Result:
    """What a status means: 2xx is success, 410 the wish to hear no more, anything else may be better next time."""
    if 200 <= status < 300:
        return Result(status=status)
    if status == GONE:
        return Result(status=status, error=f"{host} answered {GONE}: it wants no callbacks.", final=True)
    if 300 <= status < 400:
        advice = "Redirects are not followed; send messages with the address that it redirects to."
    else:
        advice = "The receiver's log should say why."
    return Result(status=status, error=f"{host} answered {status} instead of 2xx. {advice}")


def body_of(run: Run, shown: Shown) -> bytes:
    """What is posted: nothing that the run would not show, the same in every try."""
    view = shown(run)
    encoded = {key: msgspec.json.encode(value) for key, value in view["metadata"].items()}
    left_out = [key for key, value in encoded.items() if len(value) > LARGEST_VALUE]
    metadata = {key: msgspec.Raw(value) for key, value in encoded.items() if key not in left_out}
    return msgspec.json.encode(
        {
            "run_id": run.id, "status": view["status"], "completed_at": view["completed_at"],
            "metadata": {**metadata, "left_out": left_out} if left_out else metadata,
        }
    )  # fmt: skip


def _host(run: Run) -> str:
    """The receiver as logs and errors name it: the rest of a URL may hold secrets."""
    try:
        return urlsplit(run.callback_url or "").hostname or ""
    except ValueError:  # such a URL is refused before anything is posted
        return ""
