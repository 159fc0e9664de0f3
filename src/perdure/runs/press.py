"""Brings the frames of all streams of this process into the log, batched by time and by size.

A stream that can be resumed is saved at once when nothing else was just saved, and then together with all others every
`WINDOW` seconds; its readers wait for that. Others are saved lazily, since their readers have the frames already;
most short ones go along with the transaction that ends their run and never come here.
"""

import asyncio
from collections.abc import Callable

import structlog

from perdure.domain.errors import PerdureError
from perdure.domain.frames import Batch, Log
from perdure.domain.records import Run
from perdure.runs.tape import Tape

log = structlog.get_logger()

WINDOW = 0.02
"""Seconds between two savings."""
LAZY = 0.5
"""Seconds that frames may stay unsaved which nobody waits for."""
BULK = 64 * 2**10
"""Unsaved bytes of one stream that are saved without further waiting."""
AGAIN = 0.5
"""Seconds before another try when the database is away."""


class Press:
    """One task that saves whatever is due, for as long as there is anything. `on_refused` gets the ids of runs that
    have ended or changed hands.
    """

    def __init__(self, log: Log, on_refused: Callable[[str], None]):
        self._log, self._on_refused = log, on_refused
        self._work: dict[Tape, Run] = {}
        self._dirty: dict[Tape, Run] = {}
        self._urgent = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def serve(self, run: Run, tape: Tape) -> None:
        """Save this tape's frames from now on."""
        self._work[tape] = run
        if tape.last > tape.saved:
            self.more(tape)

    def forget(self, tape: Tape) -> None:
        """Save no more of it."""
        self._work.pop(tape, None)
        self._dirty.pop(tape, None)

    def more(self, tape: Tape) -> None:
        """The tape has unsaved frames."""
        run = self._work.get(tape)
        if run is None:
            return
        self._dirty[tape] = run
        if tape.saved_first or tape.unsaved > BULK:
            self._urgent.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop; what is unsaved stays so."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while self._dirty:
                await self._until_due()
                saved = await self._save()
                await asyncio.sleep(WINDOW if saved else AGAIN)
        finally:
            self._task = None

    async def _until_due(self) -> None:
        try:
            async with asyncio.timeout(LAZY):
                await self._urgent.wait()
        except TimeoutError:
            pass
        self._urgent.clear()

    async def _save(self) -> bool:
        """One transaction with what every stream has; answers whether the database was there."""
        taken: list[tuple[Tape, Batch]] = []
        for tape, run in list(self._dirty.items()):
            frames = None if tape.carried else tape.pending()
            if frames:
                taken.append((tape, Batch(run.id, run.epoch, frames)))
        self._dirty.clear()
        if not taken:
            return True
        saving = asyncio.get_running_loop().create_future()
        for tape, _ in taken:
            tape.saving = saving
        try:
            refused = await self._log.append([batch for _, batch in taken])
        except Exception as error:  # whatever it is, readers wait for these frames: it is tried again
            log.error("could not write to the run log", exc_info=not isinstance(error, PerdureError), reason=str(error))
            for tape, _ in taken:
                self.more(tape)
            return False
        finally:
            for tape, _ in taken:
                tape.saving = None
            saving.set_result(None)
        for tape, batch in taken:
            if batch.run_id in refused:
                self.forget(tape)
                self._on_refused(batch.run_id)
            else:
                tape.mark_saved(batch.frames.last)
        return True
