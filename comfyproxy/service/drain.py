"""An operator takes a backend out: no new jobs, what waits there moves, what runs there finishes."""

import json
import logging

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.ports import JobStore
from comfyproxy.service.board import Board
from comfyproxy.service.dispatcher import Dispatcher
from comfyproxy.service.fleet import Backend, Fleet

log = logging.getLogger(__name__)

# A drained backend stays so over restarts of the proxy: somebody may be working on the machine.
META_KEY = "drained"


class Drains:
    """The operator's intent for each backend."""

    def __init__(self, fleet: Fleet, board: Board, store: JobStore, dispatcher: Dispatcher) -> None:
        self._fleet, self._board, self._store, self._dispatcher = fleet, board, store, dispatcher

    async def restore(self) -> None:
        """Drain what was drained before the restart. Raises StoreUnavailable."""
        names = json.loads(await self._store.get_meta(META_KEY) or "[]")
        for backend in self._fleet:
            backend.is_drained = backend.id in names
            if backend.is_drained:
                log.warning("%s is still drained", backend.id)

    async def drain(self, backend: Backend) -> None:
        """Give a backend no more jobs and take back those that wait there. Raises StoreUnavailable."""
        log.warning("%s is being drained", backend.id)
        backend.is_drained = True
        for live in self._board.on(backend.id):
            self._dispatcher.recall(live, backend)
        await self._keep()

    async def undrain(self, backend: Backend) -> None:
        """Give a backend jobs again. Raises StoreUnavailable."""
        log.warning("%s is drained no longer", backend.id)
        backend.is_drained = False
        if backend.is_ready:
            self._fleet.on_restored(backend)
        await self._keep()

    async def _keep(self) -> None:
        names: list[BackendId] = [backend.id for backend in self._fleet if backend.is_drained]
        await self._store.set_meta(META_KEY, json.dumps(names))
