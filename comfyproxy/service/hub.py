"""The clients' side of live events: which sockets a client has, and what goes to them.

Nothing here waits: a message is put into outboxes, and each socket's own task sends it. So whoever reads a backend's
link is never held up by a client, nor one client by another.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from comfyproxy.core import frames
from comfyproxy.core.messages import encode
from comfyproxy.service.mailbox import NEVER_KEPT, Mailboxes
from comfyproxy.service.outbox import ClientSession, Close, Outbox, TextEvent

log = logging.getLogger(__name__)

GOING_AWAY = 1001


class StreamObserver(Protocol):
    """Who counts what clients lose; metrics implement it."""

    def preview_dropped(self) -> None: ...
    def slow_client_closed(self) -> None: ...


class _Unobserved:
    def preview_dropped(self) -> None: ...
    def slow_client_closed(self) -> None: ...


class ClientHub:
    """All sockets of all clients.

    Args:
        client_buffer: bytes that may wait for one socket before it is closed.
        preview_buffer: bytes waiting for one socket beyond which its oldest previews are dropped.
        mailbox: keeps what clients without a socket miss.
        mint_sid: makes the id of a client that brings none; as ComfyUI's, 32 hex digits.
    """

    def __init__(
        self,
        *,
        client_buffer: int,
        preview_buffer: int,
        mailbox: Mailboxes,
        mint_sid: Callable[[], str],
        observer: StreamObserver | None = None,
    ) -> None:
        self._client_buffer, self._preview_buffer = client_buffer, preview_buffer
        self._mailbox, self._mint_sid = mailbox, mint_sid
        self._observer: StreamObserver = observer or _Unobserved()
        self._clients: dict[str, list[ClientSession]] = {}
        self._connected = 0
        self._stopping: Close | None = None

    @property
    def connected(self) -> int:
        """How many sockets are open."""
        return self._connected

    def is_connected(self, client_id: str) -> bool:
        """Whether a client has a socket."""
        return client_id in self._clients

    def clients(self) -> Mapping[str, int]:
        """Return how many sockets each client has."""
        return {client_id: len(sessions) for client_id, sessions in self._clients.items()}

    def open(
        self, client_id: str | None, *, running_node: Callable[[str], str | None] = lambda _: None
    ) -> ClientSession:
        """Add a socket. What its client missed is in its outbox already, all that comes later goes behind it.

        Args:
            client_id: None or empty: a new one is minted, good for ever.
            running_node: the node that a client's running job is at. As ComfyUI does on reconnect, the socket is told
                of it, without a prompt id, unless a missed `executing` tells it already.
        """
        client_id = client_id or self._mint_sid()
        session = ClientSession(
            client_id,
            Outbox(
                client_buffer=self._client_buffer,
                preview_buffer=self._preview_buffer,
                on_preview_dropped=self._observer.preview_dropped,
            ),
        )
        # A second socket of a client that has one missed nothing: the mailbox is empty while there is a socket.
        missed = self._fitting(client_id, self._mailbox.take(client_id))
        for event in missed:
            session.outbox.put_text(event.message, event=event)
        if all(event.event != "executing" for event in missed):
            node = running_node(client_id)
            if node is not None:
                session.outbox.put_text(encode("executing", {"node": node}))
        if self._stopping is not None:
            session.outbox.finish(self._stopping)
        self._clients.setdefault(client_id, []).append(session)
        self._connected += 1
        session.wake()
        return session

    def close(self, session: ClientSession) -> None:
        """Remove a socket; a second time is nothing. What it did not send waits for the client's next one."""
        sessions = self._clients.get(session.client_id, [])
        if session not in sessions:
            return
        sessions.remove(session)
        self._connected -= 1
        undelivered = session.outbox.abandon(Close(GOING_AWAY))
        session.wake()
        if sessions:
            return  # the other socket has it all
        del self._clients[session.client_id]
        for event in undelivered:
            self._mailbox.keep(session.client_id, event.message, event=event.event, prompt_id=event.prompt_id)

    def close_all(self, code: int = GOING_AWAY, reason: str = "the server is stopping") -> None:
        """Let every socket send what waits and then close; one opened from now on is closed at once."""
        self._stopping = Close(code, reason)
        for session in self._everybody():
            session.outbox.finish(self._stopping)
            session.wake()

    def send(self, session: ClientSession, message: str) -> None:
        """Say something to one socket alone, such as the answer to its feature flags."""
        self._put_text([session], message, None, None)

    def deliver_text(self, client_id: str | None, message: str, *, event: str, prompt_id: str | None) -> None:
        """Send a message to every socket of a client, or keep it until there is one.

        Without a client it is dropped, as ComfyUI drops the messages of prompts that name none.
        """
        if not client_id:
            return
        sessions = self._clients.get(client_id)
        if sessions:
            kept = None if event in NEVER_KEPT else TextEvent(message, event, prompt_id)
            self._put_text(sessions, message, kept, None)
        else:
            self._mailbox.keep(client_id, message, event=event, prompt_id=prompt_id)

    def deliver_binary(self, client_id: str | None, frame: bytes, *, prompt_id: str | None = None) -> None:
        """Send a binary message to every socket of a client; if it has none, it is dropped.

        Args:
            prompt_id: the prompt that it is of, for who counts or holds; a frame that is kept for nobody needs none.
        """
        if client_id:
            self._put_binary(self._clients.get(client_id, ()), frame)

    def deliver_preview(self, client_id: str | None, frame: bytes, progress: str, *, prompt_id: str) -> None:
        """Send a preview with metadata and the `progress` that came behind it.

        To those who know only the older form ComfyUI sends the two the other way round (0.25.0, `main.py`,
        `hijack_progress`), and scripts go by the order.
        """
        sessions = list(self._clients.get(client_id, ())) if client_id else []
        self._put_binary([session for session in sessions if session.supports_preview_metadata], frame)
        self.deliver_text(client_id, progress, event="progress", prompt_id=prompt_id)
        self._put_binary([session for session in sessions if not session.supports_preview_metadata], frame)

    def broadcast_text(self, message: str, *, coalesce_key: str | None = None) -> None:
        """Send a message to every socket there is.

        Args:
            coalesce_key: an older message of this key that still waits for a socket is dropped in favour of this one,
                so that a slow socket does not pile up what is obsolete.
        """
        self._put_text(self._everybody(), message, None, coalesce_key)

    def broadcast_binary(self, frame: bytes) -> None:
        """Send a binary message to every socket there is."""
        self._put_binary(self._everybody(), frame)

    def _everybody(self) -> Iterable[ClientSession]:
        return (session for sessions in self._clients.values() for session in sessions)

    def _put_text(
        self, sessions: Iterable[ClientSession], message: str, event: TextEvent | None, coalesce_key: str | None
    ) -> None:
        slow = []
        for session in sessions:
            if not session.outbox.put_text(message, event=event, coalesce_key=coalesce_key):
                slow.append(session)
            session.wake()
        self._close_slow(slow)

    def _put_binary(self, sessions: Iterable[ClientSession], frame: bytes) -> None:
        slow, is_preview, plain = [], _is_preview(frame), None
        for session in sessions:
            form = frame
            if not session.supports_preview_metadata:
                plain = _without_metadata(frame) if plain is None else plain
                form = plain
            if not session.outbox.put_binary(form, is_preview=is_preview):
                slow.append(session)
            session.wake()
        self._close_slow(slow)

    def _close_slow(self, slow: list[ClientSession]) -> None:
        for session in slow:
            log.warning(
                "client %s does not read: more than %d bytes wait for its socket, which is closed",
                session.client_id,
                self._client_buffer,
            )
            self._observer.slow_client_closed()
            self.close(session)

    def _fitting(self, client_id: str, missed: list[TextEvent]) -> list[TextEvent]:
        # Half the buffer at most: with a full one the next live event would close the socket that just came back.
        room = self._client_buffer // 2
        for index in range(len(missed) - 1, -1, -1):
            room -= len(missed[index].message.encode())
            if room < 0:
                log.warning("client %s missed more than its buffer holds: %d events are dropped", client_id, index + 1)
                return missed[index + 1 :]
        return missed


def _is_preview(frame: bytes) -> bool:
    try:
        return frames.is_droppable(frame)
    except frames.BadFrame:  # a custom node's own; it passes as it is
        return False


def _without_metadata(frame: bytes) -> bytes:
    try:
        if frames.kind(frame) == frames.FrameKind.PREVIEW_WITH_METADATA:
            return frames.without_metadata(frame)
    except frames.BadFrame:
        pass
    return frame
