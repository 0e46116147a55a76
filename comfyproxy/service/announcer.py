"""Tells all clients how many jobs are unfinished, as often as it changes, but not oftener than they can read it."""

import asyncio
from collections.abc import Callable

from comfyproxy.core import messages
from comfyproxy.service.ports import Streams

# A burst of a thousand prompts must not become a thousand messages to each of ten thousand clients.
MIN_INTERVAL_S = 0.05


class Announcer:
    """Broadcasts `status` messages: the first change at once, those that follow it as one."""

    def __init__(
        self, streams: Streams, queue_remaining: Callable[[], int], *, min_interval_s: float = MIN_INTERVAL_S
    ) -> None:
        self._streams, self._queue_remaining = streams, queue_remaining
        self._min_interval_s = min_interval_s
        self._timer: asyncio.Handle | None = None
        self._is_due = self._is_closed = False

    def changed(self) -> None:
        """Note that the count, or what it stands for, has changed.

        It is told behind what else is being said of the change: that a prompt has ended comes first, as at a ComfyUI.
        """
        if self._timer is not None:
            self._is_due = True
        elif not self._is_closed:
            self._timer = asyncio.get_running_loop().call_soon(self._say)

    def close(self) -> None:
        """Say nothing more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _say(self) -> None:
        self._is_due = False
        self._timer = asyncio.get_running_loop().call_later(self._min_interval_s, self._rested)
        self._streams.broadcast_text(messages.status(self._queue_remaining()), coalesce_key="status")

    def _rested(self) -> None:
        self._timer = None
        if self._is_due:
            self._say()
