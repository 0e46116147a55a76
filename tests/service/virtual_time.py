"""Time that passes only when nothing else is left to do: a test of timeouts takes no time, and always the same."""

import asyncio
import selectors
from typing import Any

_STUCK_AFTER_S = 5.0  # of real time: only another thread could still wake the loop


class VirtualTime:
    """Takes over the clock of a loop: where it would wait for a timer, the clock jumps to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now_s = 1000.0
        inner: Any = loop
        selector: selectors.BaseSelector = inner._selector
        self._select = selector.select
        inner.time = self
        selector.select = self._jump  # type: ignore[method-assign]

    def __call__(self) -> float:
        return self.now_s

    def _jump(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._select(0)
        if not ready and timeout is None:
            ready = self._select(_STUCK_AFTER_S)
            if not ready:
                raise RuntimeError("everybody waits, and no timer is set")
        elif not ready and timeout is not None:
            self.now_s += max(0.0, timeout)
        return ready


async def all_quiet() -> None:
    """Let everything happen that needs no time."""
    await asyncio.sleep(1e-6)
