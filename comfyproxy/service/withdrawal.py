"""Taking prompts back from a backend's queue, and finding out which of them had started meanwhile.

ComfyUI answers 200 to every deletion and says nothing; only its queue and history tell what it came to. What is to be
taken back from one backend at the same time shares these questions.
"""

import asyncio
import logging
from dataclasses import dataclass
from enum import Enum

from comfyproxy.core.errors import BadAnswer, ConnectionRefused, UpstreamError
from comfyproxy.core.jobs import BackendId
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.ports import Spawn

log = logging.getLogger(__name__)

RETRY_S = 1.0
MAX_BAD_ANSWERS = 10  # until a backend that answers with something else than its queue counts as silent


class Fate(Enum):
    """What became of a prompt that was to be taken back."""

    GONE = "gone"  # it is not there, and never ran
    STARTED = "started"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """A prompt's fate; its history entry if it has ended."""

    fate: Fate
    entry: bytes | None = None
    is_certain: bool = True  # else nobody answers there, and it may come to light later


GONE = Whereabouts(Fate.GONE)
GIVEN_UP = Whereabouts(Fate.GONE, is_certain=False)
STARTED = Whereabouts(Fate.STARTED)


class Withdrawals:
    """Takes prompts back; one conversation with each backend at a time.

    Args:
        retry_s: seconds until a backend that failed to answer is asked again.
    """

    def __init__(self, fleet: Fleet, spawn: Spawn, *, heartbeat_timeout_s: float, retry_s: float = RETRY_S) -> None:
        self._fleet, self._spawn = fleet, spawn
        self.heartbeat_timeout_s, self._retry_s = heartbeat_timeout_s, retry_s
        self._wanted: dict[BackendId, dict[str, asyncio.Future[Whereabouts]]] = {}

    async def take_back(self, backend: Backend, id_on_backend: str) -> Whereabouts:
        """Delete a pending prompt; return what became of it.

        A dead backend has nothing any more, and one that is silent for the heartbeat timeout is taken for dead.
        """
        wanted = self._wanted.get(backend.id)
        if wanted is None:
            wanted = self._wanted[backend.id] = {}
            self._spawn(self._converse(backend), name=f"withdrawals from {backend.id}")
        future = wanted.get(id_on_backend)
        if future is None:
            future = wanted[id_on_backend] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(future)

    async def _converse(self, backend: Backend) -> None:
        """Take back all that is wanted, batch by batch, until nothing is."""
        while batch := self._wanted[backend.id]:
            self._wanted[backend.id] = {}
            try:
                found = await self._take_back(backend, list(batch))
            except BaseException:
                for future in batch.values():
                    future.cancel()
                raise
            for prompt_id, future in batch.items():
                if not future.done():
                    future.set_result(found[prompt_id])
        del self._wanted[backend.id]

    async def _take_back(self, backend: Backend, prompt_ids: list[str]) -> dict[str, Whereabouts]:
        bad = 0
        while True:
            try:
                return await self._ask(backend, prompt_ids)
            except ConnectionRefused as exc:
                self._fleet.note_failure(backend, exc)
                return dict.fromkeys(prompt_ids, GONE)
            except UpstreamError as exc:
                self._fleet.note_failure(backend, exc)
                bad += isinstance(exc, BadAnswer)
                if bad >= MAX_BAD_ANSWERS or self._fleet.silent_for_s(backend) > self.heartbeat_timeout_s:
                    log.warning(
                        "%s does not answer: %d prompts to take back are given up there", backend.id, len(prompt_ids)
                    )
                    return dict.fromkeys(prompt_ids, GIVEN_UP)
            await asyncio.sleep(self._retry_s)

    async def _ask(self, backend: Backend, prompt_ids: list[str]) -> dict[str, Whereabouts]:
        await backend.client.delete_pending(prompt_ids)
        view = await backend.client.queue()
        self._fleet.note_alive(backend)
        found = {}
        for prompt_id in prompt_ids:
            if prompt_id in view.running or prompt_id in view.pending:
                found[prompt_id] = STARTED
            else:
                entry = await backend.client.history_entry(prompt_id)
                found[prompt_id] = GONE if entry is None else Whereabouts(Fate.ENDED, entry)
        return found
