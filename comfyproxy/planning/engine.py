"""Runs a trace through a scheduler on simulated backends, event by event.

A simulated backend holds one model in memory. It runs the jobs that came to it one after the other: loads the model if
another one is in memory, then runs. The scheduler learns of beginnings and ends, as in the proxy, and never of what is
to come.
"""

import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.types import Assignment, BackendSpec, Request
from comfyproxy.planning.fleet import Fleet, FleetBackend
from comfyproxy.planning.trace import TraceJob


class Scheduling(Protocol):
    """What a run needs of the scheduler; see `comfyproxy.core.scheduling.scheduler`."""

    def set_backend(self, spec: BackendSpec) -> None: ...

    def set_ready(self, backend: BackendId, is_ready: bool) -> None: ...

    def enqueue(self, request: Request, now_s: float) -> None: ...

    def next(self, now_s: float) -> Assignment | None: ...

    @property
    def wake_at_s(self) -> float | None: ...

    def started(self, prompt_id: str, now_s: float) -> None: ...

    def finished(self, prompt_id: str, now_s: float, *, is_typical: bool = True) -> None: ...

    def misplaced(self, now_s: float) -> list[tuple[str, BackendId]]: ...

    def released(self, prompt_id: str) -> None: ...


class Stranded(Exception):
    """The scheduler leaves jobs waiting although nothing runs and nothing is to come: a bug of it."""


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one job. All times are seconds after the trace's beginning.

    Attributes:
        start_s: when its backend began with it, with the loading if there was any.
        load_s: how long it loaded; 0 if the model was in memory, or there is none.
    """

    job: TraceJob
    backend: BackendId
    assigned_s: float
    start_s: float
    load_s: float
    end_s: float
    has_loaded: bool
    why: str

    @property
    def wait_s(self) -> float:
        """How long it waited: for its turn, and on its backend for the one before it."""
        return self.start_s - self.job.at_s

    @property
    def completion_s(self) -> float:
        """How long it took from its arrival to its end."""
        return self.end_s - self.job.at_s


@dataclass(frozen=True)
class Run:
    """All jobs of a trace, in the trace's order, and where they ran."""

    fleet: Fleet
    records: Sequence[Record]

    @cached_property
    def timelines(self) -> Mapping[BackendId, Sequence[Record]]:
        """What each backend did, in order."""
        lines: dict[BackendId, list[Record]] = {backend.id: [] for backend in self.fleet.backends}
        for record in sorted(self.records, key=lambda record: record.start_s):
            lines[record.backend].append(record)
        return lines


def simulate(jobs: Sequence[TraceJob], fleet: Fleet, scheduler: Scheduling) -> Run:
    """Run a trace on a fleet.

    Args:
        jobs: in order of their time; each can run on some backend (`Fleet.check`).
        scheduler: a new one.
    Raises Stranded if the scheduler does not bring all jobs to their end.
    """
    return _Simulation(jobs, fleet, scheduler).run()


@dataclass(slots=True)
class _Backend:
    about: FleetBackend
    assigned: deque[int] = field(default_factory=deque)  # the first one runs
    in_memory: str | None = None


# What happens at one time happens in this order: a slot is free before the next job asks for it.
_END, _ARRIVAL, _WAKE = range(3)
_MAX_WAKES = 10_000  # in a row: whoever asks to be woken for longer than that waits in vain


class _Simulation:
    def __init__(self, jobs: Sequence[TraceJob], fleet: Fleet, scheduler: Scheduling) -> None:
        self._jobs, self._fleet, self._scheduler = jobs, fleet, scheduler
        self._backends = {backend.id: _Backend(backend) for backend in fleet.backends}
        self._events: list[tuple[float, int, int, BackendId]] = []
        self._given: dict[int, tuple[float, Assignment]] = {}  # since when, by the job's place in the trace
        self._records: dict[int, Record] = {}
        self._wake_at_s = math.inf

    def run(self) -> Run:
        for backend in self._fleet.backends:
            self._scheduler.set_backend(backend.spec())
            self._scheduler.set_ready(backend.id, True)
        nowhere = BackendId("")
        self._events = [(job.at_s, _ARRIVAL, index, nowhere) for index, job in enumerate(self._jobs)]
        heapq.heapify(self._events)
        wakes = 0  # since something last happened
        while self._events:
            now_s = self._events[0][0]
            while self._events and self._events[0][0] == now_s:
                _, what, index, backend_id = heapq.heappop(self._events)
                if what == _END:
                    self._end(self._backends[backend_id], index, now_s)
                elif what == _ARRIVAL:
                    self._scheduler.enqueue(_request(index, self._jobs[index]), now_s)
                wakes = wakes + 1 if what == _WAKE else 0
            if wakes > _MAX_WAKES:
                break
            self._assign(now_s)
        if len(self._records) < len(self._jobs):
            raise Stranded(f"{len(self._jobs) - len(self._records)} jobs wait, and the scheduler does nothing about it")
        return Run(self._fleet, [self._records[index] for index in range(len(self._jobs))])

    def _assign(self, now_s: float) -> None:
        self._give(now_s)
        # Taken back from where they wait, as the dispatcher does, when another backend has nothing to do.
        moved = False
        for prompt_id, backend_id in self._scheduler.misplaced(now_s):
            index, assigned = int(prompt_id), self._backends[backend_id].assigned
            if index in assigned and assigned[0] != index:
                assigned.remove(index)
                self._scheduler.released(prompt_id)
                self._scheduler.enqueue(_request(index, self._jobs[index]), now_s)
                moved = True
        if moved:
            self._give(now_s)
        self._wake(now_s)

    def _give(self, now_s: float) -> None:
        while (assignment := self._scheduler.next(now_s)) is not None:
            index = int(assignment.prompt_id)
            backend = self._backends[assignment.backend]
            self._given[index] = now_s, assignment
            backend.assigned.append(index)
            if len(backend.assigned) == 1:
                self._start(backend, now_s)

    def _wake(self, now_s: float) -> None:
        if len(self._records) == len(self._jobs):
            return
        wake_at_s = self._scheduler.wake_at_s
        # One that is due already would be asked for ever; what it has to say, it said just now.
        if wake_at_s is not None and now_s < wake_at_s and not now_s < self._wake_at_s <= wake_at_s:
            self._wake_at_s = wake_at_s
            heapq.heappush(self._events, (wake_at_s, _WAKE, 0, BackendId("")))

    def _start(self, backend: _Backend, now_s: float) -> None:
        index = backend.assigned[0]
        job = self._jobs[index]
        must_load = bool(job.model) and job.model != backend.in_memory
        load_s = self._fleet.load_s(job.model, backend.about) if must_load else 0.0
        backend.in_memory = job.model or backend.in_memory
        end_s = now_s + load_s + job.run_s / backend.about.speed
        assigned_s, assignment = self._given.pop(index)
        self._records[index] = Record(
            job, backend.about.id, assigned_s, now_s, load_s, end_s, must_load, assignment.why
        )
        self._scheduler.started(str(index), now_s)
        heapq.heappush(self._events, (end_s, _END, index, backend.about.id))

    def _end(self, backend: _Backend, index: int, now_s: float) -> None:
        backend.assigned.popleft()
        self._scheduler.finished(str(index), now_s)
        if backend.assigned:
            self._start(backend, now_s)


def _request(index: int, job: TraceJob) -> Request:
    """Return a job as the proxy would describe it: numbered as they come, those for the front below zero."""
    number = float(index + 1)
    return Request(
        prompt_id=str(index),
        client=job.client,
        number=-number if job.front else number,
        priority=job.priority,
        needs=Needs(models=frozenset({job.model} if job.model else ())),
        kind=f"{job.kind} {job.model}",
    )
