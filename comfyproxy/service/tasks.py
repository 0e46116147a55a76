"""Background work: every task is named and owned, and what one of them dies of ends the process."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """The tasks of one process, in a TaskGroup."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._loops: set[asyncio.Task[None]] = set()
        self._works: set[asyncio.Task[None]] = set()

    def loop(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Start what goes on until the process stops, or somebody cancels it."""
        return self._start(work, name, self._loops)

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Start what ends by itself."""
        return self._start(work, name, self._works)

    async def finish(self, timeout_s: float) -> list[str]:
        """Wait for what ends by itself; return the names of what did not within the time."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._works and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(set(self._works), timeout=left)
        return sorted(task.get_name() for task in self._works)

    def cancel(self) -> None:
        """Stop everything."""
        for task in (*self._loops, *self._works):
            task.cancel()

    def _start(self, work: Coroutine[Any, Any, None], name: str, among: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        among.add(task)
        task.add_done_callback(among.discard)
        return task
