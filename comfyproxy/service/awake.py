"""A clock that stands still while this process does.

Backends are given up for their silence. While the machine is suspended, the process stopped, or its loop held up,
nobody here could have heard them: that time must not count against them.
"""

import asyncio
from collections.abc import Callable

PERIOD_S = 1.0
# A busy loop ticks late; only what is longer than this many periods is time that was slept.
LATE = 3


class AwakeClock:
    """Seconds that the event loop was awake.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float], *, period_s: float = PERIOD_S) -> None:
        self._clock, self._period_s = clock, period_s
        self._ticked_s = clock()
        self._asleep_s = 0.0

    async def run(self) -> None:
        """Tick, for ever."""
        while True:
            await asyncio.sleep(self._period_s)
            self._asleep_s += self._overslept_s()
            self._ticked_s = self._clock()

    def now(self) -> float:
        """Return the time; right after a sleep, too, before the loop has come round to the next tick."""
        return self._clock() - self._asleep_s - self._overslept_s()

    def _overslept_s(self) -> float:
        since_s = self._clock() - self._ticked_s
        return since_s - self._period_s if since_s > LATE * self._period_s else 0.0
