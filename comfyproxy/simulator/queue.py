"""The queue of a simulated server: what waits, what runs, and who is told.

Source: ComfyUI 0.25.0, `execution.py` (`PromptQueue`).
"""

import asyncio
import copy
import heapq
from collections.abc import Callable
from typing import Any

# number, prompt_id, graph, extra_data, outputs to execute, secrets. A plain tuple, since ComfyUI's heap compares those:
# two prompts of one number run in the order of their ids, and of one id and number cannot be compared at all.
Item = tuple[float, str, dict[str, Any], dict[str, Any], list[str], dict[str, Any]]


class Queue:
    """Prompts that wait, lowest number first, and those that run (at most one)."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._waiting: list[Item] = []
        self._running: dict[int, Item] = {}
        self._taken = 0
        self._news = asyncio.Event()
        self._flags: dict[str, Any] = {}

    def remaining(self) -> int:
        """How many prompts wait or run."""
        return len(self._waiting) + len(self._running)

    def put(self, item: Item) -> None:
        """Let a prompt wait for its turn."""
        heapq.heappush(self._waiting, item)
        self._changed()
        self._news.set()

    async def get(self) -> tuple[Item, int] | None:
        """Wait for the next prompt, and count it as running; None if only flags were set."""
        if not self._waiting:
            self._news.clear()
            await self._news.wait()
            if not self._waiting:
                return None
        item = heapq.heappop(self._waiting)
        key = self._taken
        # Running changes the graph: what is shown is as it was submitted.
        self._running[key] = copy.deepcopy(item)
        self._taken += 1
        self._changed()
        return item, key

    def done(self, key: int) -> Item:
        """Take a prompt out of those that run, and return it as it was submitted; tell with `announce`."""
        return self._running.pop(key)

    def announce(self) -> None:
        """Tell everybody how many prompts remain."""
        self._changed()

    def running(self) -> list[Item]:
        return list(self._running.values())

    def waiting(self) -> list[Item]:
        """Return what waits, in the heap's order rather than in the order of execution, as ComfyUI does."""
        return list(self._waiting)

    def clear(self) -> None:
        """Forget all that wait."""
        self._waiting = []
        self._changed()

    def delete(self, prompt_id: Any) -> bool:
        """Forget the first waiting prompt with an id; tell whether there was one."""
        for position, item in enumerate(self._waiting):
            if item[1] == prompt_id:
                if len(self._waiting) == 1:
                    self.clear()
                else:
                    self._waiting.pop(position)
                    heapq.heapify(self._waiting)
                self._changed()
                return True
        return False

    def set_flag(self, name: str, value: Any) -> None:
        """Leave a wish for the executor, for when it is next idle."""
        self._flags[name] = value
        self._news.set()

    def take_flags(self) -> dict[str, Any]:
        """Return and forget the wishes."""
        flags, self._flags = self._flags, {}
        return flags
