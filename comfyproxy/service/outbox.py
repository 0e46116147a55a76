"""What waits to be sent to one websocket client, bounded in bytes; what gives way when it is too much.

A client that does not read costs memory, so little may wait for it. Previews give way first, the oldest of them
before the newer: a person looks at the latest one, and taking from the middle reorders nothing. Beyond
`client_buffer` the client loses its connection; whatever text it did not get can be kept for its return.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# RFC 6455's registry: 1013 "try again later". The client is welcome back; it was only too slow.
TRY_AGAIN_LATER = 1013


@dataclass(frozen=True, slots=True)
class Close:
    """The last thing a session says: close the socket."""

    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TextEvent:
    """A text message with what the relay knows of it."""

    message: str
    event: str
    prompt_id: str | None


@dataclass(frozen=True, slots=True)
class _Waiting:
    payload: str | bytes
    size: int
    event: TextEvent | None = None
    is_preview: bool = False
    coalesce_key: str | None = None


class Outbox:
    """A bounded queue of text and binary messages in the order in which they came. Synchronous; sends nothing.

    Args:
        client_buffer: bytes that may wait behind the message that is next. That one is not counted, so that a single
            image larger than the buffer does not cost a healthy client its connection.
        preview_buffer: bytes of all that waits beyond which previews are dropped. The newest preview stays.
        on_preview_dropped: called for each preview that is dropped to make room.
    """

    def __init__(
        self, *, client_buffer: int, preview_buffer: int, on_preview_dropped: Callable[[], None] = lambda: None
    ) -> None:
        self._client_buffer, self._preview_buffer = client_buffer, preview_buffer
        self._on_preview_dropped = on_preview_dropped
        self._serial = 0
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()
        self._previews: deque[int] = deque()
        self._coalesced: dict[str, int] = {}
        self._undelivered: list[TextEvent] = []
        self.bytes_waiting = 0
        self.closed: Close | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<Outbox {len(self)} messages, {self.bytes_waiting} bytes, closed={self.closed}>"

    def put_text(self, message: str, *, event: TextEvent | None = None, coalesce_key: str | None = None) -> bool:
        """Add a text message; return whether there was room. If not, the outbox has closed.

        Args:
            event: what to remember of the message if it cannot be delivered; None if it is worth nothing later.
            coalesce_key: an older message with this key that still waits is dropped in favour of this one. It does
                not take the older one's place: a count of the queue must not be seen before what changed it.
        """
        # json.dumps writes ASCII, where characters are bytes; str knows it without looking.
        size = len(message) if message.isascii() else len(message.encode())
        return self._put(_Waiting(message, size, event, coalesce_key=coalesce_key))

    def put_binary(self, frame: bytes, *, is_preview: bool) -> bool:
        """Add a binary message, which may be dropped if it is a preview; return whether there was room."""
        return self._put(_Waiting(frame, len(frame), is_preview=is_preview))

    def take(self) -> str | bytes | Close | None:
        """Return what is to be sent next; None if there is nothing. After the last message: Close, again and again."""
        if self._waiting:
            return self._remove(next(iter(self._waiting))).payload
        return self.closed

    def finish(self, close: Close) -> None:
        """Take no more; what waits is still sent, then the socket is closed."""
        if self.closed is None:
            self.closed = close

    def abandon(self, close: Close) -> list[TextEvent]:
        """Take and send no more; return the text events, oldest first, that were not sent. A second time: none."""
        if self.closed is None:
            self.closed = close
        lost = [item.event for item in self._waiting.values() if item.event is not None]
        lost, self._undelivered = self._undelivered + lost, []
        self._waiting.clear()
        self._previews.clear()
        self._coalesced.clear()
        self.bytes_waiting = 0
        return lost

    def _put(self, item: _Waiting) -> bool:
        if self.closed is not None:
            return True
        if item.coalesce_key is not None:
            older = self._coalesced.get(item.coalesce_key)
            if older is not None:
                self._remove(older)
            self._coalesced[item.coalesce_key] = self._serial
        if item.is_preview:
            self._previews.append(self._serial)
        self._waiting[self._serial] = item
        self._serial += 1
        self.bytes_waiting += item.size
        while len(self._previews) > 1 and self.bytes_waiting > self._preview_buffer:
            self._drop_preview()
        while self._previews and self._backlog() > self._client_buffer:
            self._drop_preview()
        if self._backlog() <= self._client_buffer:
            return True
        # What was refused is among the undelivered: the client did not get it either.
        self._undelivered = self.abandon(Close(TRY_AGAIN_LATER, "too slow: messages are not being read"))
        return False

    def _backlog(self) -> int:
        if not self._waiting:
            return 0
        return self.bytes_waiting - self._waiting[next(iter(self._waiting))].size

    def _drop_preview(self) -> None:
        self._remove(self._previews[0])
        self._on_preview_dropped()

    def _remove(self, serial: int) -> _Waiting:
        item = self._waiting.pop(serial)
        self.bytes_waiting -= item.size
        if item.is_preview:  # previews go oldest first, taken or dropped, so it is the first one
            self._previews.popleft()
        if item.coalesce_key is not None:
            del self._coalesced[item.coalesce_key]
        return item


class ClientSession:
    """One socket of a client: its outbox, and what it said it can read. Made by the hub."""

    def __init__(self, client_id: str, outbox: Outbox) -> None:
        self.client_id = client_id
        self.outbox = outbox
        self.flags: dict[str, Any] = {}
        self.closing = asyncio.Event()  # set once the outbox takes no more
        self._ready = asyncio.Event()

    def __repr__(self) -> str:
        return f"<ClientSession {self.client_id} {self.outbox!r}>"

    @property
    def supports_preview_metadata(self) -> bool:
        """Whether previews go out as type 4; `is True` as ComfyUI tests it (0.25.0, `feature_flags.py`)."""
        return self.flags.get("supports_preview_metadata") is True

    def wake(self) -> None:
        """Let `get` look at the outbox again; to be called after every change."""
        if self.outbox.closed is not None:
            self.closing.set()
        self._ready.set()

    async def get(self) -> str | bytes | Close:
        """Wait for what is to be sent next. Close is the last."""
        while (item := self.outbox.take()) is None:
            self._ready.clear()
            await self._ready.wait()
        return item
