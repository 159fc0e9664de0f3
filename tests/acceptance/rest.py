"""When a server in the test's own loop has come to rest: nothing is left of what was asked of it."""

import asyncio
from collections.abc import Sequence, Set
from typing import Any

Tasks = Set["asyncio.Task[Any]"]
REQUESTS = ("/uvicorn/",)
EVERYTHING = ("/uvicorn/", "/perdure/")
"""Where the coroutines come from that carry out requests; and all that the server began."""


def tasks_of_the_server(places: Sequence[str] = EVERYTHING) -> set["asyncio.Task[Any]"]:
    """Its tasks, as against those of the twin, the story and its clients in the same loop."""
    codes = {task: getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()}
    return {task for task, code in codes.items() if code and any(place in code.co_filename for place in places)}


async def at_rest(but: Tasks, places: Sequence[str] = EVERYTHING, seconds: float = 5) -> None:
    """Wait until the server has no tasks from these places `but` these. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while left := tasks_of_the_server(places) - but:
            await asyncio.wait(left, timeout=0.05)
