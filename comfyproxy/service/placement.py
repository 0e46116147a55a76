"""Jobs and backends as the scheduler sees them, and its decisions as we carry them out."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice

from comfyproxy.core.jobs import BackendId, Payload
from comfyproxy.core.needs import ANYWHERE, Needs, NeedsPool, read
from comfyproxy.core.options import Options
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.types import Assignment, BackendSpec, Outlook, Request
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.live import LiveJob

log = logging.getLogger(__name__)

LOOK = 8  # backends that are looked at for one that says whether a job is valid, or are named to people
MAX_SHOWN = 2_000  # characters of what one backend lacks


class Placement:
    """The scheduler's ears and mouth.

    Args:
        now: seconds, monotonic.
    """

    def __init__(self, fleet: Fleet, scheduler: Scheduler, *, now: Callable[[], float]) -> None:
        self._fleet, self._now = fleet, now
        self.scheduler = scheduler
        self._pool = NeedsPool()
        self._epochs: dict[BackendId, int] = {}
        self._turn = 0

    # The jobs that wait

    def __len__(self) -> int:
        return len(self.scheduler)

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self.scheduler

    def add(self, live: LiveJob) -> None:
        """Let a job wait; one that waits already keeps its turn, whatever else has changed of it."""
        self.scheduler.enqueue(self._request(live), self._now())

    def discard(self, live: LiveJob) -> None:
        """Let a job wait no longer; unknown ones do not matter."""
        self.scheduler.withdraw(live.prompt_id)

    def take(self) -> Assignment | None:
        """Take out the next job that is to go to a backend now."""
        self._listen()
        return self.scheduler.next(self._now())

    @property
    def wake_in_s(self) -> float | None:
        """When to ask again, if nothing happens before."""
        at_s = self.scheduler.wake_at_s
        return None if at_s is None else max(at_s - self._now(), 0.0)

    def misplaced(self) -> list[tuple[str, BackendId]]:
        """Return jobs that are pending on backends while others, which could run them, have nothing to do."""
        self._listen()
        return self.scheduler.misplaced(self._now())

    # The jobs on backends

    def occupy(self, live: LiveJob) -> None:
        """Note that a job takes a slot of its backend."""
        if live.job.backend is not None:
            self._listen()
            self.scheduler.adopt(self._request(live), live.job.backend, self._now())

    def release(self, live: LiveJob) -> None:
        """Note that a job takes no slot any more, and has not ended there."""
        self.scheduler.released(live.prompt_id)

    def started(self, live: LiveJob) -> None:
        """Note that a job's execution has begun."""
        self.scheduler.started(live.prompt_id, self._now())

    def ended(self, live: LiveJob, *, has_succeeded: bool) -> None:
        """Note that a job has ended on its backend."""
        self.scheduler.finished(live.prompt_id, self._now(), is_typical=has_succeeded and live.is_gapless)

    # Who can run what

    @staticmethod
    def needs(live: LiveJob) -> Needs:
        """Return what a job needs, as far as somebody has looked."""
        if live.needs is not None:
            return live.needs
        return ANYWHERE if live.job.pinned is None else Needs(pinned=live.job.pinned)

    def has_able(self, live: LiveJob) -> bool:
        """Whether some backend is ready that can run the job, with room or not."""
        needs, excluded = self.needs(live), self._excluded(live)
        return any(
            backend.is_ready and backend.id not in excluded and backend.offer.can(needs) for backend in self._fleet
        )

    def is_refused_everywhere(self, live: LiveJob) -> bool:
        """Whether every backend that is configured, or all of which it asks for one, have said no to the job."""
        if live.job.pinned is not None:
            return live.job.pinned in live.refused
        if not live.refused and not self.needs(live).capabilities:
            return False
        wanted = self.needs(live).capabilities  # who does not declare them is never asked
        return all(backend.id in live.refused for backend in self._fleet if backend.declares(wanted))

    def pick_validator(self, live: LiveJob) -> Backend | None:
        """Return the backend that says whether a job is valid, though the job does not go to any now.

        One that is busy: the job is not to begin there. Where those that could run a new job are away, another tells
        its client what it lacks; a job that was promised waits for them.
        """
        self._listen()
        excluded = self._excluded(live)
        able = self.scheduler.able(self.needs(live), excluded)
        ready = list(islice(self._in_turn(able), LOOK))
        if not ready and not live.is_admitted and live.job.pinned is None:
            ready = list(islice((each for each in self._in_turn(None) if each.id not in excluded), LOOK))
        return min(ready, key=lambda backend: (not backend.in_flight, len(backend.visitors)), default=None)

    def is_impossible(self, live: LiveJob) -> bool:
        """Whether no backend can run a job, as far as is known."""
        self._listen()
        return self.scheduler.is_impossible(self.needs(live))

    def lacks(self, live: LiveJob) -> str:
        """Say what each backend lacks of what a job needs, for people."""
        needs = self.needs(live)
        lacks = [
            f"{backend.id} lacks {_some([str(lack) for lack in missing], ', ')}"
            for backend in islice(self._fleet, LOOK + 1)
            if (missing := backend.offer.missing(needs))
        ]
        return _some(lacks, "; ", count=max(len(lacks), len(self._fleet) if len(self._fleet) > LOOK else 0))

    def outlooks(self, live: LiveJob) -> dict[BackendId, Outlook]:
        """Return how long a job would take on each backend, as far as is known."""
        self._listen()
        request, now_s = self._request(live), self._now()
        return {backend.id: self.scheduler.outlook(request, backend.id, now_s) for backend in self._fleet}

    def would_go_to(self, live: LiveJob) -> BackendId | None:
        """Return the backend that a job would go to if it were alone; None if none has room that may have it."""
        self._listen()
        return self.scheduler.would_go_to(self._request(live), self._now())

    def describe(self, live: LiveJob, payload: Payload, options: Options) -> None:
        """Note what a job needs, how urgent and of which kind it is, as far as the fleet's catalogs are known."""
        reading = read(
            payload.graph,
            self._fleet.combos,
            capabilities=options.capabilities,
            pinned=live.job.pinned,
            share=self._pool.share,
        )
        live.needs, live.kind, live.priority = reading.needs, reading.kind, options.priority

    def left(self, backend: Backend) -> None:
        """Forget a backend; none of our jobs is there any more."""
        self._epochs.pop(backend.id, None)
        self.scheduler.remove_backend(backend.id)

    def _in_turn(self, names: Collection[BackendId] | None) -> Iterator[Backend]:
        """Yield the ready backends of some names (None: of all), each time from another one on."""
        backends = list(self._fleet) if names is None else [b for name in sorted(names) if (b := self._fleet.get(name))]
        self._turn += 1
        start = self._turn % len(backends) if backends else 0
        for place in range(len(backends)):
            backend = backends[(start + place) % len(backends)]
            if backend.is_ready:
                yield backend

    def _request(self, live: LiveJob) -> Request:
        return Request(
            prompt_id=live.prompt_id,
            client=live.job.client_id or "",
            number=live.job.number,
            priority=live.priority,
            needs=self.needs(live),
            kind=live.kind,
            excluded=self._excluded(live),
        )

    def _excluded(self, live: LiveJob) -> frozenset[BackendId]:
        """Return who must not have a job just now.

        All of them where those that can run a promised job could not be reached with it, or may still have it: it waits
        for them, instead of asking others that cannot run it.
        """
        if not (live.refused or live.unreachable or live.ghosts):
            return frozenset()
        excluded = live.unreachable.union(live.refused, live.ghosts)
        if live.is_admitted and (live.unreachable or live.ghosts):
            needs = self.needs(live)
            able = {each.id for each in self._fleet if each.id not in live.refused and each.offer.can(needs)}
            if able and able <= excluded:
                return frozenset(each.id for each in self._fleet)
        return excluded

    def _listen(self) -> None:
        """Tell the scheduler what has changed of backends."""
        for backend in self._fleet.take_touched():
            epoch = self._epochs.get(backend.id)
            if backend.takes_other_jobs:
                backend.takes_other_jobs = False
                preference = backend.settings.preference
                self.scheduler.set_backend(
                    BackendSpec(
                        backend=backend.id,
                        max_concurrent=backend.settings.max_concurrent,
                        weight=preference.weight,
                        priority=preference.priority,
                        can=backend.offer.can,
                    )
                )
            if epoch != backend.epoch:
                self._epochs[backend.id] = backend.epoch
                if epoch:
                    self.scheduler.restarted(backend.id)
            self.scheduler.set_foreign(backend.id, backend.foreign)
            self.scheduler.set_ready(backend.id, backend.is_ready)


def _some(texts: Sequence[str], separator: str, *, count: int | None = None) -> str:
    """Join a few of `count` texts, and say how many more there are: a log line is for people."""
    count = len(texts) if count is None else count
    shown = [text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..." for text in texts[:LOOK]]
    return separator.join(shown if count <= LOOK else [*shown, f"and {count - LOOK} more"])
