"""Queue numbers that never come twice, given out without waiting for the disk."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from comfyproxy.core.ports import StoreUnavailable

BLOCK: Final = 1000  # numbers reserved at once; a killed process wastes at most two blocks
_LOW: Final = BLOCK * 3 // 4  # extended long before the reserve runs out
_WAIT_S: Final = 1.0


class Numbers:
    """Gives out numbers below a limit that is already durable, and has the limit raised in time.

    Args:
        path: of the store, for messages.
        start: the first number; all from here to `limit` must be reserved durably.
        extend: begins to reserve durably up to a new limit; `extended` or `failed` must be called then, from any
            thread.
    """

    def __init__(self, path: Path, *, start: int, limit: int, extend: Callable[[int], None]) -> None:
        self._path, self._extend = path, extend
        self._next, self._limit = start, limit
        self._extending = False
        self._stalled = False  # the extension takes too long
        self._changed = threading.Condition()

    @property
    def unused(self) -> int:
        """The first number that was not given out."""
        return self._next

    def take(self) -> int:
        """Return the next number.

        A burst that outruns the disk waits for it, for up to a second: rare, and better than to turn prompts away.
        Raises StoreUnavailable if the reserve is used up and cannot be extended; the next call tries again.
        """
        with self._changed:
            if self._limit - self._next < _LOW and not self._extending:
                self._extending = True
                self._extend(self._limit + BLOCK)
            if self._next >= self._limit and not self._stalled:
                self._changed.wait_for(lambda: self._next < self._limit or not self._extending, timeout=_WAIT_S)
            if self._next >= self._limit:
                self._stalled = self._extending  # while the disk hangs, only one caller waits in vain
                raise StoreUnavailable(f"the store {self._path} cannot reserve more queue numbers")
            self._next += 1
            return self._next - 1

    def extended(self, limit: int) -> None:
        """Note that all numbers below `limit` are reserved."""
        with self._changed:
            self._limit = max(self._limit, limit)
            self._extending = self._stalled = False
            self._changed.notify_all()

    def failed(self) -> None:
        """Note that an extension came to nothing."""
        with self._changed:
            self._extending = False
            self._changed.notify_all()
