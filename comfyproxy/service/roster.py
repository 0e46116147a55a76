"""Backends that come and go while the proxy runs: whoever is configured joins, whoever is not finishes and leaves."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from comfyproxy.core.jobs import BackendId, JobState
from comfyproxy.service.board import Board
from comfyproxy.service.dispatcher import Dispatcher
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.live import LiveJob
from comfyproxy.service.mirroring import Mirror
from comfyproxy.service.placement import Placement
from comfyproxy.service.prober import Prober
from comfyproxy.service.reconciler import Reconciler
from comfyproxy.service.sources import Sources

if TYPE_CHECKING:
    from comfyproxy.settings import NodeSettings

log = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks whether a backend that leaves is done


class Loop(Protocol):
    """Starts a task that goes on until it is cancelled."""

    def __call__(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]: ...


class Roster:
    """Who belongs to the fleet, with the tasks of each.

    Args:
        loop: starts what goes on for as long as a backend belongs to it.
        make: makes a backend with its link.
    """

    def __init__(
        self,
        fleet: Fleet,
        board: Board,
        placement: Placement,
        dispatcher: Dispatcher,
        reconciler: Reconciler,
        prober: Prober,
        sources: Sources,
        mirror: Mirror,
        loop: Loop,
        *,
        make: "Callable[[NodeSettings], Backend]",
    ) -> None:
        self._fleet, self._board, self._placement = fleet, board, placement
        self._dispatcher, self._reconciler, self._prober = dispatcher, reconciler, prober
        self._sources, self._mirror, self._loop, self._make = sources, mirror, loop, make
        self._tasks: dict[BackendId, list[asyncio.Task[None]]] = {}
        self._leaving: set[BackendId] = set()  # those whose end somebody waits for
        self._coming: dict[str, NodeSettings] = {}  # they wait until their name or their server is free

    def open(self) -> None:
        """Begin to look after those who are there from the start."""
        for backend in self._fleet:
            self._look_after(backend)

    def apply(self, nodes: "Sequence[NodeSettings]") -> None:
        """Let these be the fleet, in this order.

        A backend whose address is another one now is another backend: the old one leaves before the new one joins.
        """
        wanted = {node.node_id: node for node in nodes}
        for backend in list(self._fleet):
            node = wanted.get(backend.id)
            if node is None or node.url != backend.settings.url:
                self._dismiss(backend)
            else:
                self._keep(backend)
                if node != backend.settings:
                    backend.settings = node
        there = {backend.id: backend for backend in self._fleet}
        self._coming = {
            name: node for name, node in wanted.items() if name not in there or there[BackendId(name)].is_leaving
        }
        self._let_in()
        self._fleet.arrange([BackendId(name) for name in wanted])
        self._dispatcher.wake()
        self._loop(self._give_up(), name="end of what nobody may run any more")

    def _let_in(self) -> None:
        """Take in those that need not wait for another one to leave.

        Two links to one server would take each other's events away, so it must not have two names at a time.
        """
        taken = {backend.settings.url for backend in self._fleet}
        for name, node in list(self._coming.items()):
            if self._fleet.get(name) is None and node.url not in taken:
                del self._coming[name]
                backend = self._make(node)
                log.info("%s joins: %s", backend.id, node.url)
                self._fleet.add(backend)
                self._reconciler.haunt(backend)
                self._look_after(backend)

    def _look_after(self, backend: Backend) -> None:
        tasks = [self._loop(self._prober.watch(backend), name=f"prober of {backend.id}")]
        if backend.link is not None:
            tasks.append(self._loop(backend.link.run(), name=f"link {backend.link!r}"))
        self._tasks[backend.id] = tasks

    def _keep(self, backend: Backend) -> None:
        """Let a backend stay that was about to leave, if it was."""
        if backend.is_leaving:
            log.info("%s is configured again, and stays", backend.id)
            backend.is_leaving = False
            if backend.is_ready:
                self._fleet.on_restored(backend)

    def _dismiss(self, backend: Backend) -> None:
        """Give a backend nothing new, and let it go once it is done."""
        if backend.is_leaving:
            return
        log.warning("%s is configured no longer: it leaves once it has finished what it has", backend.id)
        backend.is_leaving = True
        for live in self._board.on(backend.id):
            if live.job.pinned != backend.id:  # no other may run it
                self._dispatcher.recall(live, backend)
        if backend.id not in self._leaving:
            self._leaving.add(backend.id)
            self._loop(self._leave(backend), name=f"leave of {backend.id}")

    async def _leave(self, backend: Backend) -> None:
        while backend.is_leaving and self._board.on(backend.id):  # noqa: ASYNC110  (rare; nobody need tell us)
            await asyncio.sleep(LOOK_S)
        self._leaving.discard(backend.id)
        if not backend.is_leaving:
            return
        self._fleet.remove(backend)
        tasks = self._tasks.pop(backend.id)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._prober.forget(backend)
        self._sources.forget(backend)
        self._mirror.forget(backend)
        log.warning("%s has left", backend.id)
        self._let_in()
        if (successor := self._fleet.get(backend.id)) is not None:
            successor.is_drained = backend.is_drained  # it is the name that an operator drains
        self._dispatcher.wake()
        await self._give_up()

    async def _give_up(self) -> None:
        """End the jobs that wait for what is not configured any more, and that no other may run."""
        for prompt_id in [job.prompt_id for job in self._board.unfinished()]:
            live = self._board.get(prompt_id)
            if live is None or not self._is_hopeless(live):
                continue
            await live.at_rest()
            if self._board.get(prompt_id) is not live or live.job.state is not JobState.QUEUED:
                continue
            if not self._is_hopeless(live):
                continue  # configured again
            if live.job.pinned is not None:
                self._reconciler.abandon(live)
            else:
                await self._dispatcher.end_if_refused(live)

    def _is_hopeless(self, live: LiveJob) -> bool:
        pinned = live.job.pinned
        if pinned is not None:
            return self._fleet.get(pinned) is None and pinned not in self._coming
        return self._placement.is_refused_everywhere(live)
