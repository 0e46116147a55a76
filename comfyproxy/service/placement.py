"""Where a job may go: which backends can run it, in the order in which to try them."""

import logging
from collections import OrderedDict
from collections.abc import Iterable

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.selection import rank_least_loaded
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.live import LiveJob

log = logging.getLogger(__name__)

REMEMBERED_CLIENTS = 20_000


class Placement:
    """Chooses backends by the strategy, and remembers who ran a client's last prompt."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._turn = 0
        self._last: OrderedDict[str, BackendId] = OrderedDict()  # client id -> backend

    def pick(self, live: LiveJob) -> Backend | None:
        """Return the backend that gets the job now; None if all that may have it are full or away."""
        warm = self._last.get(live.job.client_id) if live.job.client_id is not None else None
        candidates = [backend.candidate(is_warm=backend.id == warm) for backend in self._able(live)]
        ranked = rank_least_loaded(candidates, turn=self._turn)
        return self._fleet.get(ranked[0]) if ranked else None

    def pick_validator(self, live: LiveJob) -> Backend | None:
        """Return the backend that says whether the job is valid, though none has room for it."""
        able = self._able(live)
        if not able:
            return None
        self._turn += 1
        shifted = able[self._turn % len(able) :] + able[: self._turn % len(able)]
        return min(shifted, key=lambda backend: len(backend.visitors))

    def has_able(self, live: LiveJob) -> bool:
        """Whether some backend is ready that can run the job, with room or not."""
        return any(_has_classes(backend, live) for backend in self._able(live))

    def has_room(self) -> bool:
        """Whether any backend could take a job."""
        return any(backend.candidate().is_available for backend in self._fleet if backend.is_ready)

    def is_refused_everywhere(self, live: LiveJob) -> bool:
        """Whether every backend that is configured, or the one that it asks for, has said no to the job."""
        if live.job.pinned is not None:
            return live.job.pinned in live.refused
        return all(backend.id in live.refused for backend in self._fleet)

    def placed(self, live: LiveJob, backend: Backend) -> None:
        """Note that the job goes to a backend: the client's next one finds it warm, and ties rotate."""
        client_id = live.job.client_id
        if client_id is None or self._last.get(client_id) != backend.id:
            self._turn += 1  # one that stays where it was took nobody's turn
        if client_id is None:
            return
        self._last[client_id] = backend.id
        self._last.move_to_end(client_id)
        if len(self._last) > REMEMBERED_CLIENTS:
            self._last.popitem(last=False)

    def missing(self, live: LiveJob) -> dict[BackendId, list[str]]:
        """Return which node classes of a job each backend lacks, for people."""
        return {
            backend.id: sorted(backend.catalog.missing(live.classes or ()))
            for backend in self._fleet
            if backend.catalog is not None
        }

    def _able(self, live: LiveJob) -> list[Backend]:
        """Return the ready backends that can run the job.

        Where none of the fleet could, all of them: the client reads ComfyUI's own error. Where one could that is away
        just now, a job that was promised waits for it, and a new one is told by another what is missing.
        """
        if live.job.pinned is not None:
            pinned = self._fleet.get(live.job.pinned)
            return _reachable([pinned], live) if pinned is not None and pinned.id not in live.refused else []
        open_to_it = [backend for backend in self._fleet if backend.id not in live.refused]
        able = [backend for backend in open_to_it if _has_classes(backend, live)]
        found = _reachable(able, live)
        if found or (able and live.is_admitted):
            return found
        if live.classes and not able:
            log.debug("prompt %s can run nowhere: %s", live.prompt_id, self.missing(live))
        return _reachable(open_to_it, live)


def _reachable(backends: Iterable[Backend], live: LiveJob) -> list[Backend]:
    return [
        backend
        for backend in backends
        if backend.is_ready and backend.id not in live.unreachable and backend.id not in live.ghosts
    ]


def _has_classes(backend: Backend, live: LiveJob) -> bool:
    """Whether a backend has all node classes of a job, as far as is known of both."""
    return backend.catalog is None or not live.classes or not backend.catalog.missing(live.classes)
