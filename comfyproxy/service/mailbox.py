"""What a client missed while it was away, kept until it is back.

Only what helps it to catch up: the story of its prompts in order, of each prompt's progress the latest word alone.
All of it is bounded, and none of it is durable: a client that comes back too late asks the history.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from comfyproxy.core.messages import OUTCOMES
from comfyproxy.service.outbox import TextEvent

log = logging.getLogger(__name__)

# True now and worthless later, and not about the client's prompts.
NEVER_KEPT = frozenset({"status", "logs", "feature_flags"})
# Each of these makes the one before it obsolete. The `executing` that ends a prompt is the last of its kind.
LATEST_ONLY = frozenset({"executing", "progress", "progress_state"})
# What a client waits for; events of custom nodes make room for it.
STORY = LATEST_ONLY | OUTCOMES | {"execution_start", "execution_cached", "executed"}

# One client may fill this part of the whole, so that it does not push out all others.
_SHARE = 8


@dataclass(slots=True)
class _Box:
    touched_s: float
    serial: int = 0
    size: int = 0
    events: OrderedDict[int, TextEvent] = field(default_factory=OrderedDict)
    latest: dict[tuple[str, str | None], int] = field(default_factory=dict)
    extras: deque[int] = field(default_factory=deque)  # those outside STORY, oldest first

    def add(self, event: TextEvent) -> None:
        if event.event in LATEST_ONLY:
            key = (event.event, event.prompt_id)
            if key in self.latest:
                self._remove(self.latest[key])
            # The newer one goes to the end, not to its predecessor's place: it is true after all that came before.
            self.latest[key] = self.serial
        elif event.event not in STORY:
            self.extras.append(self.serial)
        self.events[self.serial] = event
        self.serial += 1
        self.size += _size(event)

    def drop_one(self) -> None:
        self._remove(self.extras[0] if self.extras else next(iter(self.events)))

    def _remove(self, serial: int) -> None:
        event = self.events.pop(serial)
        self.size -= _size(event)
        if event.event in LATEST_ONLY:
            del self.latest[event.event, event.prompt_id]
        elif event.event not in STORY:
            self.extras.popleft()


class Mailboxes:
    """A bounded mailbox for each client that is away.

    Args:
        clock: seconds, monotonic.
        max_clients: beyond it the mailbox goes that was not added to for the longest time.
        max_messages: per client; events of custom nodes go first, then the oldest.
        max_bytes: of all clients together; a single client gets an eighth of it.
        max_age_s: a mailbox that nothing was added to for so long is forgotten, as a whole: half a story misleads.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        max_clients: int = 10_000,
        max_messages: int = 1_000,
        max_bytes: int = 64 * 1024 * 1024,
        max_age_s: float = 3600.0,
    ) -> None:
        self._clock = clock
        self._max_clients, self._max_messages = max_clients, max_messages
        self._max_bytes, self._max_age_s = max_bytes, max_age_s
        self._boxes: OrderedDict[str, _Box] = OrderedDict()  # the one added to last is last
        self.bytes_kept = 0

    def __len__(self) -> int:
        return len(self._boxes)

    def keep(self, client_id: str, message: str, *, event: str, prompt_id: str | None) -> None:
        """Keep an event for a client that has no socket.

        Also for one that never had: scripts send a prompt first and connect afterwards, and after a restart of the
        proxy every client is yet to come.
        """
        kept = TextEvent(message, event, prompt_id)
        share = self._max_bytes // _SHARE
        if event in NEVER_KEPT or _size(kept) > share:
            return
        now_s = self._clock()
        self._expire(now_s)
        box = self._boxes.setdefault(client_id, _Box(now_s))
        self._boxes.move_to_end(client_id)
        box.touched_s = now_s
        before = box.size
        box.add(kept)
        while len(box.events) > self._max_messages or box.size > share:
            box.drop_one()
        self.bytes_kept += box.size - before
        while len(self._boxes) > self._max_clients or self.bytes_kept > self._max_bytes:
            oldest = next(iter(self._boxes))
            log.debug("mailboxes are full: what client %s missed is forgotten", oldest)
            self.forget(oldest)

    def take(self, client_id: str) -> list[TextEvent]:
        """Return what the client missed, in order, and forget it."""
        self._expire(self._clock())
        box = self._boxes.get(client_id)
        self.forget(client_id)
        return list(box.events.values()) if box is not None else []

    def forget(self, client_id: str) -> None:
        """Drop a client's mailbox, if it has one."""
        box = self._boxes.pop(client_id, None)
        if box is not None:
            self.bytes_kept -= box.size

    def _expire(self, now_s: float) -> None:
        while self._boxes:
            client_id, box = next(iter(self._boxes.items()))
            if now_s - box.touched_s <= self._max_age_s:
                return
            self.forget(client_id)


def _size(event: TextEvent) -> int:
    return len(event.message) if event.message.isascii() else len(event.message.encode())
