"""The terminal of the web page: who wants the home backend's log lines, and bringing them there.

A server sends them to the client ids that it was told, and forgets one whose socket it has not. Clients have no sockets
there, so the link is what subscribes, and the proxy knows for whom.
"""

import json
import logging
from collections.abc import AsyncIterator
from typing import Protocol

from comfyproxy.core.errors import BadAnswer, NoBackend, UpstreamError
from comfyproxy.core.jobs import BackendId
from comfyproxy.service.file_ports import client_of
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.ports import Spawn

log = logging.getLogger(__name__)

EVENT = "logs"
PATH = "/internal/logs/subscribe"
ANSWER_WITHIN_S = 10.0


class Sockets(Protocol):
    """The clients' sockets."""

    def is_connected(self, client_id: str) -> bool: ...
    def deliver_text(self, client_id: str | None, message: str, *, event: str, prompt_id: str | None) -> None: ...


class LogSubscriptions:
    """The clients that see the home backend's log.

    Args:
        client_id: of the links.
    """

    def __init__(self, fleet: Fleet, sockets: Sockets, spawn: Spawn, *, client_id: str) -> None:
        self._fleet, self._sockets, self._spawn = fleet, sockets, spawn
        self._client_id = client_id
        self._subscribers: set[str] = set()
        self._source: BackendId | None = None  # the backend that was told last

    async def subscribe(self, client_id: str) -> None:
        """Let a client see the log. Raises NoBackend, UpstreamError."""
        home = self._fleet.home()
        await self._tell(home, enabled=True)
        self._source = home.id
        self._subscribers.add(client_id)

    async def unsubscribe(self, client_id: str) -> None:
        """Let a client see it no longer. Raises UpstreamError."""
        self._subscribers.discard(client_id)
        await self._stop_if_unwanted()

    def deliver(self, backend: Backend, message: str) -> None:
        """Pass log lines on to those who want them."""
        for client_id in list(self._subscribers):
            if self._sockets.is_connected(client_id):
                if backend.id == self._source:
                    self._sockets.deliver_text(client_id, message, event=EVENT, prompt_id=None)
            else:
                self._subscribers.discard(client_id)
        if not self._subscribers and self._source is not None:
            self._spawn(self._stop_quietly(), name="end of the log subscription")

    def renew(self, backend: Backend) -> None:
        """Subscribe again where a link is new, or another backend is home."""
        if self._subscribers:
            self._spawn(self._renew(), name=f"log subscription at {backend.id}")

    async def _renew(self) -> None:
        try:
            home = self._fleet.home()
            await self._tell(home, enabled=True)
            self._source = home.id
        except (NoBackend, UpstreamError) as exc:
            log.info("the log cannot be subscribed to: %s", exc)

    async def _stop_quietly(self) -> None:
        try:
            await self._stop_if_unwanted()
        except UpstreamError as exc:
            log.debug("the log subscription could not be ended: %s", exc)

    async def _stop_if_unwanted(self) -> None:
        source = self._fleet.get(self._source)
        if self._subscribers or source is None:
            return
        self._source = None
        await self._tell(source, enabled=False)

    async def _tell(self, backend: Backend, *, enabled: bool) -> None:
        body = json.dumps({"clientId": self._client_id, "enabled": enabled}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        async with client_of(backend).request(
            "PATCH", PATH, headers=headers, data=_once(body), idle_timeout_s=ANSWER_WITHIN_S
        ) as answer:
            if answer.status != 200:
                raise BadAnswer(f"{backend.id}: PATCH {PATH} was answered with {answer.status}")


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
