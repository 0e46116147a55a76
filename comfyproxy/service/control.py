"""Ending jobs before their time, and freeing memory: over the whole fleet."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from comfyproxy.core.errors import BadRequest, UpstreamError, UpstreamFailed
from comfyproxy.core.jobs import JobState, advance
from comfyproxy.core.ports import JobStore
from comfyproxy.service.board import Board
from comfyproxy.service.dispatcher import Dispatcher
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.live import LiveJob
from comfyproxy.service.ports import Observer
from comfyproxy.service.settling import Settler
from comfyproxy.service.withdrawal import Fate, Withdrawals

log = logging.getLogger(__name__)


class Control:
    """Cancels, interrupts and frees.

    Args:
        wall_clock: seconds since the epoch.
        may_interrupt_all: whether an interrupt that names no prompt stops all that run.
    """

    def __init__(
        self,
        board: Board,
        store: JobStore,
        fleet: Fleet,
        withdrawals: Withdrawals,
        settler: Settler,
        dispatcher: Dispatcher,
        observer: Observer,
        *,
        wall_clock: Callable[[], float],
        may_interrupt_all: bool,
    ) -> None:
        self._board, self._store, self._fleet = board, store, fleet
        self._withdrawals, self._settler, self._dispatcher = withdrawals, settler, dispatcher
        self._observer = observer
        self._wall_clock = wall_clock
        self.may_interrupt_all = may_interrupt_all

    async def known(self, prompt_id: str) -> bool:
        """Whether there is, or was, such a job."""
        return self._board.job(prompt_id) is not None or await self._store.get(prompt_id) is not None

    async def cancel(self, prompt_ids: Sequence[str]) -> set[str]:
        """Cancel what waits or runs; return the ids of those that did and are being cancelled."""
        jobs = self._admitted(prompt_ids)
        done = await asyncio.gather(*(self._cancel(live) for live in jobs))
        return {live.prompt_id for live, is_cancelled in zip(jobs, done, strict=True) if is_cancelled}

    async def delete_pending(self, prompt_ids: Iterable[str]) -> None:
        """Cancel those that wait; what runs goes on, and unknown ids do not matter, as in ComfyUI."""
        await asyncio.gather(*(self._cancel_pending(live) for live in self._admitted(prompt_ids)))

    async def clear_pending(self) -> None:
        """Cancel all that wait."""
        await self.delete_pending([job.prompt_id for job in self._board.pending()])

    async def interrupt(self, prompt_id: str | None) -> None:
        """Stop a prompt if it runs; without an id, all of ours that run.

        Raises UpstreamFailed if a backend could not be told, BadRequest where an id is demanded.
        """
        if prompt_id is not None:
            await self._interrupt(self._admitted([prompt_id]))
            return
        if not self.may_interrupt_all:
            raise BadRequest(
                "prompt_id_required",
                "An interrupt must name its prompt here",
                details="this server is shared, and its operator set interrupt_without_id: reject",
            )
        await self._interrupt([live for backend in self._fleet if (live := self._board.running_on(backend.id))])

    async def free(self, body: bytes) -> None:
        """Ask every ready backend to free memory. Raises UpstreamFailed if none could be told."""
        backends = self._fleet.ready() or [self._fleet.home()]
        failures = [failure for failure in await asyncio.gather(*(self._free(b, body) for b in backends)) if failure]
        if len(failures) == len(backends):
            raise UpstreamFailed("No backend could be told", details="; ".join(map(str, failures)))

    async def _free(self, backend: Backend, body: bytes) -> UpstreamError | None:
        try:
            await backend.client.free(body)
        except UpstreamError as exc:
            log.warning("%s could not be told to free memory: %s", backend.id, exc)
            self._fleet.note_failure(backend, exc)
            return exc
        return None

    def _admitted(self, prompt_ids: Iterable[str]) -> list[LiveJob]:
        found = (self._board.get(prompt_id) for prompt_id in dict.fromkeys(prompt_ids))
        return [live for live in found if live is not None and live.is_admitted]

    async def _cancel(self, live: LiveJob) -> bool:
        if await self._cancel_pending(live):
            return True
        if self._board.get(live.prompt_id) is not live or live.is_settling:
            return False
        await self._interrupt([live])
        return True

    async def _cancel_pending(self, live: LiveJob) -> bool:
        """Cancel a job unless it runs; return whether it is cancelled."""
        async with live.transition():
            if self._board.get(live.prompt_id) is not live or live.is_settling or live.is_running:
                return False
            self._board.unqueue(live)
            if not await self._is_taken_back(live):
                return False
            if live.job.state is not JobState.QUEUED:
                self._board.move(live, JobState.QUEUED)
            finished_s = self._wall_clock()
            try:
                await self._store.cancel(advance(live.job, JobState.CANCELLED, finished_s=finished_s))
            except BaseException:
                self._board.queue(live)
                self._dispatcher.wake()
                raise
            self._board.move(live, JobState.CANCELLED, finished_s=finished_s)
            self._board.remove(live)
        log.info("prompt %s is cancelled", live.prompt_id)
        self._observer.finished(live.job)
        self._dispatcher.wake()
        return True

    async def _interrupt(self, jobs: Iterable[LiveJob]) -> None:
        """Stop those that run, whether or not an event has told that they do."""
        failures = await asyncio.gather(*(self._interrupt_on(live) for live in jobs))
        if failed := [failure for failure in failures if failure is not None]:
            raise UpstreamFailed("A backend could not be told to interrupt", details="; ".join(map(str, failed)))

    async def _interrupt_on(self, live: LiveJob) -> UpstreamError | None:
        backend = self._fleet.get(live.job.backend)
        if backend is None or live.is_settling:
            return None
        if not live.is_running and not backend.interrupts_by_id:
            return None  # it would stop whatever runs there
        log.info("prompt %s is being interrupted on %s", live.prompt_id, backend.id)
        try:
            await backend.client.interrupt(live.job.id_on_backend)
        except UpstreamError as exc:
            self._fleet.note_failure(backend, exc)
            return exc
        return None

    async def _is_taken_back(self, live: LiveJob) -> bool:
        """Make sure that a job is on no backend; False if it has started there."""
        backend = self._fleet.get(live.job.backend)
        if live.job.state is JobState.QUEUED or backend is None:
            return True
        whereabouts = await self._withdrawals.take_back(backend, live.job.id_on_backend)
        if live.is_settling or live.is_running:
            return False
        if whereabouts.fate is Fate.ENDED:
            self._settler.begin(live, entry=whereabouts.entry)
        elif whereabouts.fate is Fate.STARTED:
            self._board.started(live, now_s=self._wall_clock())  # no event told of it, or not yet
        return whereabouts.fate is Fate.GONE
