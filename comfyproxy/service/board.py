"""The unfinished jobs in memory: every question of the form "which job is this?" has its answer here.

State is read and changed without an `await` in between, so there are no locks. The store is told afterwards.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from comfyproxy.core.jobs import BackendId, Job, JobState, advance
from comfyproxy.service.fleet import Fleet
from comfyproxy.service.live import LiveJob
from comfyproxy.service.payloads import PayloadCache
from comfyproxy.service.placement import Placement

log = logging.getLogger(__name__)


class Board:
    """Unfinished jobs by id, by backend, and in the order in which they wait."""

    def __init__(self, fleet: Fleet, payloads: PayloadCache, placement: Placement) -> None:
        self._fleet = fleet
        self._waiting = placement
        self.payloads = payloads
        self.version = 0  # grows with every change that /queue shows
        self.on_change: Callable[[], None] = lambda: None
        self._live: dict[str, LiveJob] = {}
        self._by_backend: dict[BackendId, dict[str, LiveJob]] = {}  # by the ids that the backend knows
        self._judged: dict[str, float] = {}  # numbers of those that are on their way between a backend and the queue
        self._running_on: dict[BackendId, str] = {}
        self._running_of: dict[str, list[str]] = {}  # client id -> prompt ids, in order of their start
        self._count = 0

    # What there is

    def get(self, prompt_id: str) -> LiveJob | None:
        """Return an unfinished job."""
        return self._live.get(prompt_id)

    def job(self, prompt_id: str) -> Job | None:
        """Return an unfinished job that its client knows of."""
        live = self._live.get(prompt_id)
        return live.job if live is not None and live.is_admitted else None

    def find(self, backend: BackendId, id_on_backend: str) -> LiveJob | None:
        """Return the job that a backend calls so."""
        return self._by_backend.get(backend, {}).get(id_on_backend)

    def on(self, backend: BackendId) -> list[LiveJob]:
        """Return the jobs bound to a backend."""
        return list(self._by_backend.get(backend, {}).values())

    def running_on(self, backend: BackendId) -> LiveJob | None:
        """Return the job of ours that a backend runs."""
        prompt_id = self._running_on.get(backend)
        return self._live.get(prompt_id) if prompt_id is not None else None

    def running_node(self, client_id: str) -> str | None:
        """Return the node that runs for a client, of the job that started last."""
        for prompt_id in reversed(self._running_of.get(client_id, [])):
            if (live := self._live.get(prompt_id)) is not None and live.node is not None:
                return live.node
        return None

    def is_running(self, prompt_id: str) -> bool:
        """Whether the job's execution has begun."""
        live = self._live.get(prompt_id)
        return live is not None and live.is_running

    def unfinished(self) -> Iterator[Job]:
        """Yield all jobs that their clients know of."""
        return (live.job for live in self._live.values() if live.is_admitted)

    def running(self) -> list[Job]:
        """Return the jobs whose execution has begun."""
        return [live.job for live in self._live.values() if live.is_running]

    def pending(self) -> list[Job]:
        """Return the jobs that wait, here or on a backend, by number."""
        jobs = [live.job for live in self._live.values() if live.is_admitted and not live.is_running]
        return sorted(jobs, key=lambda job: job.number)

    @property
    def count(self) -> int:
        """How many jobs are unfinished: what `queue_remaining` says."""
        return self._count

    @property
    def waiting_count(self) -> int:
        """How many jobs wait here, on no backend."""
        return len(self._waiting)

    # Changes

    def add(self, live: LiveJob) -> None:
        """Take a job in; bound to its backend if it has one."""
        self._live[live.job.prompt_id] = live
        self._bind(live)
        self._place(live)
        if live.is_admitted:
            self._admitted(live)

    def admit(self, live: LiveJob) -> None:
        """Let the job count and show: it will be run."""
        if not live.is_admitted and live.job.prompt_id in self._live:
            live.is_admitted = True
            self._admitted(live)

    def _admitted(self, live: LiveJob) -> None:
        self._count += 1
        self._changed()

    def queue(self, live: LiveJob) -> None:
        """Put a job in state QUEUED where the dispatcher takes from."""
        self._judged.pop(live.prompt_id, None)
        self._waiting.add(live)

    def relist(self, live: LiveJob) -> None:
        """Let a job that waits stand where it belongs, after what keeps it from some backend has changed."""
        if live.prompt_id in self._waiting:
            self._waiting.add(live)

    def unqueue(self, live: LiveJob) -> None:
        """Keep the dispatcher from taking a waiting job; `queue` puts it back."""
        self._waiting.discard(live)

    def take(self) -> tuple[LiveJob, BackendId, str] | None:
        """Take out the job that is to go to a backend now, with that backend and the reason, for people."""
        while (found := self._waiting.take()) is not None:
            if (live := self._live.get(found.prompt_id)) is not None:
                return live, found.backend, found.why
        return None

    def is_anybody_before(self, number: float) -> bool:
        """Whether a job that is being judged, and is about to wait, comes before a job of this number."""
        return bool(self._judged) and min(self._judged.values()) < number

    def move(self, live: LiveJob, to: JobState, **changes: Any) -> Job:
        """Advance a job by the state table and keep the indexes true. Raises InvalidTransition."""
        job = advance(live.job, to, **changes)
        if to.is_terminal:
            self._waiting.ended(live, has_succeeded=to is JobState.SUCCEEDED)
        self._unbind(live)
        self._waiting.discard(live)
        if to is JobState.QUEUED:
            job = replace(job, backend=None, backend_prompt_id=None, started_s=None)
            self._stopped(live)
            live.forget_run()
        live.job = job
        self._bind(live)
        self._place(live)
        if live.is_admitted:
            self._changed()
        return job

    def stay(self, live: LiveJob) -> None:
        """Let a job that came to be judged take a slot: it has started, so this is its dispatch."""
        if live.is_visitor:
            self._unbind(live)
            live.is_visitor = False
            self._judged.pop(live.prompt_id, None)
            self.count_run(live)
            self._bind(live)
            self._place(live)
            live.why = "it began there while it was judged"
            log.info("prompt %s is on %s: %s", live.prompt_id, live.job.backend, live.why)

    def count_run(self, live: LiveJob) -> None:
        """Count that a backend took the job on, once for each time that it does."""
        if not live.is_counted:
            live.is_counted = True
            live.job = replace(live.job, attempts=live.job.attempts + 1)

    def started(self, live: LiveJob, *, now_s: float) -> None:
        """Note that the job's execution has begun."""
        if live.is_running:
            return
        self.stay(live)
        live.is_running = True
        self._waiting.started(live)
        live.job = replace(live.job, started_s=now_s)
        if live.job.backend is not None:
            self._running_on[live.job.backend] = live.job.prompt_id
        if live.job.client_id is not None:
            self._running_of.setdefault(live.job.client_id, []).append(live.job.prompt_id)
        self.admit(live)
        self._changed()

    def remove(self, live: LiveJob) -> None:
        """Forget a job: it is terminal, or was never accepted."""
        if self._live.pop(live.job.prompt_id, None) is None:
            return
        self._unbind(live)
        self._stopped(live)
        self._waiting.discard(live)
        self._waiting.release(live)
        self._judged.pop(live.prompt_id, None)
        self.payloads.forget(live.job.prompt_id)
        if live.is_admitted:
            self._count -= 1
            self._changed()

    def _stopped(self, live: LiveJob) -> None:
        prompt_id, client_id = live.job.prompt_id, live.job.client_id
        live.is_running, live.node = False, None
        if live.job.backend is not None and self._running_on.get(live.job.backend) == prompt_id:
            del self._running_on[live.job.backend]
        if client_id is not None and prompt_id in (running := self._running_of.get(client_id, [])):
            running.remove(prompt_id)
            if not running:
                del self._running_of[client_id]

    def _bind(self, live: LiveJob) -> None:
        job = live.job
        if job.backend is None:
            return
        self._by_backend.setdefault(job.backend, {})[job.id_on_backend] = live
        if live.is_visitor:
            self._judged[job.prompt_id] = job.number
        else:
            self._judged.pop(job.prompt_id, None)
        if (backend := self._fleet.get(job.backend)) is not None:
            (backend.visitors if live.is_visitor else backend.in_flight).add(job.prompt_id)
            backend.touch()

    def _place(self, live: LiveJob) -> None:
        """Let the scheduler know whether the job takes a slot."""
        if live.job.backend is None or live.is_visitor or live.job.state.is_terminal:
            self._waiting.release(live)
        else:
            self._waiting.occupy(live)

    def _unbind(self, live: LiveJob) -> None:
        job = live.job
        if job.backend is None:
            return
        self._by_backend.get(job.backend, {}).pop(job.id_on_backend, None)
        if (backend := self._fleet.get(job.backend)) is not None:
            backend.in_flight.discard(job.prompt_id)
            backend.visitors.discard(job.prompt_id)
            backend.touch()

    def _changed(self) -> None:
        self.version += 1
        self.on_change()
