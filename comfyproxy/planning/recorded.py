"""A trace and a fleet out of what a proxy has recorded.

A job's record tells how long it ran in all, on one backend, with a load or without. What a plan needs is estimated:

    speed   of a backend: how long each kind took on all, compared with how long it took there (medians)
    load_s  of a model: by how much longer jobs took that found another model in memory (medians)
    run_s   what is left, times the backend's speed

Like the plan, this takes it that a backend has one model in memory, that of the job before.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from comfyproxy.core import rawjson
from comfyproxy.core.history import outcome
from comfyproxy.core.jobs import BackendId, Job, JobState
from comfyproxy.core.needs import read
from comfyproxy.planning.fleet import LOAD_S, Fleet, FleetBackend, FleetModel
from comfyproxy.planning.trace import BadPlan, TraceJob

_SHORTEST_S = 0.001  # what was all in a cache


@dataclass(frozen=True, slots=True)
class _Ran:
    job: Job
    backend: BackendId
    model: str
    kind: str
    began_s: float
    took_s: float
    is_cold: bool = False


@dataclass(frozen=True)
class Recorded:
    """What was made of the records.

    Attributes:
        left_out: how many jobs did not end well, or do not tell when they ran.
    """

    jobs: Sequence[TraceJob]
    fleet: Fleet
    left_out: int


def from_records(records: Iterable[tuple[Job, bytes]], *, keep_clients: bool = False) -> Recorded:
    """Return the trace and the fleet that the records tell of.

    Args:
        records: jobs that have ended, with their history entries.
        keep_clients: name the clients as they are; else they become client-1, client-2 and so on.
    Raises BadPlan if there is nothing to make a trace of.
    """
    ran: list[_Ran] = []
    left_out = 0
    for job, entry in records:
        if (found := _ran(job, entry)) is not None:
            ran.append(found)
        else:
            left_out += 1
    if not ran:
        raise BadPlan("no job in the store has run to its end, so there is nothing to plan with")
    ran = list(_with_loads(ran))
    speeds = _speeds(ran)
    loads = _loads(ran, speeds)
    first_s = min(each.job.created_s for each in ran)
    names: dict[str, str] = {}
    jobs = []
    for each in sorted(ran, key=lambda each: (each.job.created_s, each.job.number)):
        client = each.job.client_id or ""
        if client and not keep_clients:
            client = names.setdefault(client, f"client-{len(names) + 1}")
        speed = speeds[each.backend]
        load_s = loads.get(each.model, 0.0) if each.is_cold else 0.0
        jobs.append(
            TraceJob(
                at_s=each.job.created_s - first_s,
                client=client,
                model=each.model,
                kind=each.kind,
                run_s=max((each.took_s - load_s) * speed, _SHORTEST_S),
                front=each.job.number < 0,
            )
        )
    backends = [FleetBackend(name=name, speed=round(speed, 3)) for name, speed in sorted(speeds.items())]
    models = {model: FleetModel(load_s=load_s) for model, load_s in sorted(loads.items())}
    return Recorded(jobs, Fleet(tuple(backends), models), left_out)


def _ran(job: Job, entry: bytes) -> _Ran | None:
    """Return how a job ran; None if it did not run well, or that is not known."""
    if job.state is not JobState.SUCCEEDED or job.backend is None:
        return None
    try:
        ended = outcome(entry)
        prompt = rawjson.items(rawjson.members(entry).get("prompt", b"null"))
    except ValueError:
        return None
    # The backend's own times leave out how long the end took to be noticed.
    if ended.started_ms is not None and ended.ended_ms is not None:
        began_s, end_s = ended.started_ms / 1000, ended.ended_ms / 1000
    elif job.started_s is not None and job.finished_s is not None:
        began_s, end_s = job.started_s, job.finished_s
    else:
        return None
    if len(prompt) < 3 or end_s < began_s:
        return None
    found = read(prompt[2], {})
    # What a graph loads is in a memory together.
    return _Ran(job, job.backend, " + ".join(sorted(found.needs.models)), found.kind, began_s, end_s - began_s)


def _with_loads(ran: Iterable[_Ran]) -> Iterator[_Ran]:
    """Yield them with a word on whether they found another model in memory; the first ones found none."""
    in_memory: dict[BackendId, str] = {}
    for each in sorted(ran, key=lambda each: each.began_s):
        is_cold = bool(each.model) and in_memory.get(each.backend) != each.model
        if each.model:
            in_memory[each.backend] = each.model
        yield _Ran(each.job, each.backend, each.model, each.kind, each.began_s, each.took_s, is_cold)


def _speeds(ran: Iterable[_Ran]) -> dict[BackendId, float]:
    """Return each backend's speed; 1 where nothing can be compared."""
    times: dict[str, dict[BackendId, list[float]]] = defaultdict(lambda: defaultdict(list))
    ratios: dict[BackendId, list[float]] = {}
    for each in ran:
        ratios.setdefault(each.backend, [])
        if not each.is_cold:
            times[each.kind][each.backend].append(each.took_s)
    for of_kind in times.values():
        medians = {backend: statistics.median(took) for backend, took in of_kind.items()}
        common = statistics.median(medians.values())
        for backend, median in medians.items():
            if median > 0 and common > 0 and len(medians) > 1:
                # A kind that ran often says more.
                ratios[backend] += [common / median] * len(of_kind[backend])
    return {backend: statistics.median(found) if found else 1.0 for backend, found in ratios.items()}


def _loads(ran: Iterable[_Ran], speeds: dict[BackendId, float]) -> dict[str, float]:
    """Return each model's load_s; `LOAD_S` where it was never seen both with and without."""
    warm: dict[str, list[float]] = defaultdict(list)
    cold: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in ran:
        if not each.is_cold:
            warm[each.kind].append(each.took_s * speeds[each.backend])
        else:
            cold[each.model][each.kind].append(each.took_s - _SHORTEST_S)
    loads = {}
    for model, of_kind in cold.items():
        longer = []
        for kind, took in of_kind.items():
            if kind in warm:
                longer += [statistics.median(took) - statistics.median(warm[kind])] * len(took)
        shortest = min(min(took) for took in of_kind.values())
        # A guess must not be longer than what it is part of.
        loads[model] = max(statistics.median(longer), 0.0) if longer else min(LOAD_S, max(shortest, 0.0) / 2)
    return loads
