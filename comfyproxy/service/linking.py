"""What the proxy does when a link comes, goes, or has gone deaf."""

import asyncio
import logging
from collections.abc import Callable

from comfyproxy.service.fleet import Backend
from comfyproxy.service.live import LiveJob
from comfyproxy.service.prober import Prober
from comfyproxy.service.relay import Relay

log = logging.getLogger(__name__)

# A server tells every change of its queue at once; one that took a prompt and is silent for so long tells us nothing.
DEAF_AFTER_S = 5.0


class LinkKeeper:
    """Reacts to the links' state.

    The deaf link: a server that still holds a dead predecessor of our socket forgets the new one the moment the old
    one ends. It stays open and receives nothing, for ever.
    """

    def __init__(self, relay: Relay, prober: Prober, *, deaf_after_s: float = DEAF_AFTER_S) -> None:
        self._relay, self._prober = relay, prober
        self._deaf_after_s = deaf_after_s
        self.on_connected: Callable[[Backend], None] = lambda backend: None
        self.on_disconnected: Callable[[Backend], None] = lambda backend: None

    def connected(self, backend: Backend) -> None:
        """A new socket stands: the server may be another process than before, and events may be missing."""
        log.info("link to %s is up", backend.id)
        backend.epoch += 1
        self._prober.relearn(backend)
        self.on_connected(backend)

    def disconnected(self, backend: Backend, reason: str) -> None:
        """A socket was lost, perhaps with its server."""
        log.warning("link to %s is lost: %s", backend.id, reason)
        self.on_disconnected(backend)
        self._prober.suspect(backend)

    def expect_news(self, backend: Backend, live: LiveJob) -> None:
        """Look after a while whether the link has told that the backend took a job."""
        loop = asyncio.get_running_loop()
        loop.call_later(self._deaf_after_s, self._check, backend, live.sent_s)

    def _check(self, backend: Backend, sent_s: float) -> None:
        link = backend.link
        if link is None or not link.connected or self._relay.heard_s(backend.id) >= sent_s:
            return
        log.warning("link to %s is deaf: it told nothing of a prompt that was accepted", backend.id)
        link.drop("deaf")
        self._prober.suspect(backend)
