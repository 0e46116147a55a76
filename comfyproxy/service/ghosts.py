"""Prompts of ours that run where they should not: their job has moved on while their backend was away.

They are deleted or interrupted by id. What others put on a backend is never touched: a prompt is ours only if the
board or the store knows its id.
"""

import logging

from comfyproxy.core.jobs import BackendId, JobState
from comfyproxy.core.ports import JobStore
from comfyproxy.service.board import Board
from comfyproxy.service.fleet import Backend
from comfyproxy.service.live import LiveJob
from comfyproxy.service.ports import QueueView
from comfyproxy.service.recent import Recent

log = logging.getLogger(__name__)


class Ghosts:
    """Finds and removes them."""

    def __init__(self, board: Board, store: JobStore) -> None:
        self._board, self._store = board, store
        self._jobs: dict[BackendId, set[LiveJob]] = {}  # those that may have a ghost there
        self._minted: Recent[bool] = Recent()  # (backend, id) of left prompts, by the ids of their backends
        self._known: Recent[bool] = Recent()  # whether the store knows an id that a backend has

    def leave(self, live: LiveJob, backend: BackendId) -> None:
        """Note that a run of a job may still be on a backend; until it is known not to be, none is sent there."""
        live.ghosts.add(backend)
        self._board.relist(live)
        self._jobs.setdefault(backend, set()).add(live)
        self._minted.put((backend, live.job.id_on_backend), True)

    async def lay(self, backend: Backend, view: QueueView) -> bool:
        """Remove those that a backend has; return whether there were any.

        Args:
            view: its queue, asked for after the last `leave`.

        Raises UpstreamError, StoreUnavailable.
        """
        suspected = set(self._jobs.get(backend.id, ()))
        for prompt_id in (*view.running, *view.pending):
            await self._look_up(prompt_id)
        running = [prompt_id for prompt_id in view.running if self._is_ghost(backend.id, prompt_id)]
        pending = [prompt_id for prompt_id in view.pending if self._is_ghost(backend.id, prompt_id)]
        for prompt_id in (*running, *pending):
            if (live := self._board.get(prompt_id)) is not None:
                self.leave(live, backend.id)  # nor shall it be sent there while it is being removed
        if running:
            await self._write_those_that_wait(backend.id)
        if pending:
            log.info("%s has %d prompts that have moved on: deleted", backend.id, len(pending))
            await backend.client.delete_pending(pending)
        for prompt_id in running:
            log.info("%s runs %s, which has moved on: interrupted", backend.id, prompt_id)
            await backend.client.interrupt(prompt_id)
        if running or pending:
            return True
        for live in suspected:
            live.ghosts.discard(backend.id)
            self._board.relist(live)
        self._jobs[backend.id] = self._jobs.get(backend.id, set()) - suspected
        return False

    async def _write_those_that_wait(self, backend: BackendId) -> None:
        """Let the store know who is not there any more, before an interrupt ends them there.

        A proxy that starts after it would find the interrupted run, and take it for the end of the job. Raises
        StoreUnavailable.
        """
        for live in tuple(self._jobs.get(backend, ())):
            if live.job.state is JobState.QUEUED:
                await self._store.update(live.job)

    async def _look_up(self, prompt_id: str) -> None:
        """Find out whether a prompt is a stranger's. Raises StoreUnavailable."""
        if self._board.get(prompt_id) is None and self._known.get(prompt_id) is None:
            self._known.put(prompt_id, await self._store.get(prompt_id) is not None)

    def _is_ghost(self, backend: BackendId, prompt_id: str) -> bool:
        if self._board.find(backend, prompt_id) is not None:
            return False
        if self._minted.get((backend, prompt_id)):
            return True
        live = self._board.get(prompt_id)
        if live is not None:
            return live.moving is None
        return bool(self._known.get(prompt_id))
