"""What no schedule can beat, not even one that knows all that is to come.

Finding the best schedule on unequal backends with loads is NP-hard, so strategies are measured against lower bounds
(Graham, Bounds on Multiprocessing Timing Anomalies, 1969, began that). That on the makespan T is the larger of two.

The last end of a job on its own: it cannot end before it has come, its model has been loaded somewhere, and it has run
where it is fastest.

The work: minimising T over fractional schedules is a linear program for unrelated machines (Lenstra, Shmoys and Tardos
1990), here with each model that is used somewhere loaded there once. By weak duality every choice of weights u > 0
gives a bound. Let all jobs that come from r on run on whichever able backend b makes u_b * p_jb least, and each model
be loaded where u_b * l_mb is least; the backends have sum(u) * (T - r) of weighted time for that:

    T >= r + (sum over jobs of min_b u_b * p_jb  +  sum over models of min_b u_b * l_mb) / sum(u)

Where backends outnumber models, each backend's first load is the better count: it loads something, or stays idle for no
less time. At a later r each may still hold one model of the time before, so as many loads are left out, the dearest.

Good weights are found by the multiplicative-weights method (Plotkin, Shmoys and Tardos 1995): what has too much to do
gets dearer.
"""

import heapq
import math
from collections.abc import Iterator, Sequence

from comfyproxy.planning.fleet import Fleet
from comfyproxy.planning.trace import TraceJob

_QUANTILES = 20  # of the arrivals, to be tried as r
_STEPS = 60
_STEP = 0.3  # the first; they get smaller


def makespan_bound(jobs: Sequence[TraceJob], fleet: Fleet) -> float:
    """Return a time (seconds after the trace's beginning) before which no schedule has ended all jobs.

    Args:
        jobs: in order of their time, at least one.
    """
    last = _last_end(jobs, fleet)
    return max(last, *_by_work(jobs, fleet, last))


def completion_bound(jobs: Sequence[TraceJob], fleet: Fleet) -> float:
    """Return a mean time from arrival to end that no schedule beats; it is loose, as loads are left out.

    The larger of two: every job runs at once where it is fastest; and all backends are one that is as fast as all
    together and may change jobs at any time, for which the shortest remaining job first is best (Schrage 1968).
    """
    alone = sum(min(job.run_s / b.speed for b in fleet.backends if b.has(job.model)) for job in jobs)
    return max(alone, _shortest_first(jobs, fleet.capacity)) / len(jobs)


def _last_end(jobs: Sequence[TraceJob], fleet: Fleet) -> float:
    ready: dict[str, float] = {}  # model -> when it can first be in a memory
    last = 0.0
    for job in jobs:
        able = [backend for backend in fleet.backends if backend.has(job.model)]
        ready.setdefault(job.model, job.at_s + min(fleet.load_s(job.model, backend) for backend in able))
        last = max(last, max(job.at_s, ready[job.model]) + job.run_s / max(backend.speed for backend in able))
    return last


def _by_work(jobs: Sequence[TraceJob], fleet: Fleet, last_s: float) -> Iterator[float]:
    places = sorted({len(jobs) * step // _QUANTILES for step in range(_QUANTILES)})
    for r in sorted({jobs[place].at_s for place in places}):
        work: dict[str, float] = {}
        held = set()
        for job in jobs:
            if job.at_s >= r:
                work[job.model] = work.get(job.model, 0.0) + job.run_s
            else:
                held.add(job.model)
        first = _first_loads(work, fleet, last_s - r) if not held else [0.0] * len(fleet.backends)
        for weights in _weights(work, fleet):
            run, loads = _weighted(work, held, fleet, weights)
            loads = max(loads, sum(u * load for u, load in zip(weights, first, strict=True)))
            yield r + (run + loads) / sum(weights)


def _first_loads(work: dict[str, float], fleet: Fleet, least_s: float) -> list[float]:
    """Return for each backend, empty at first, how long it does not run: it loads, or it has nothing to do at all."""
    return [
        min([least_s, *(fleet.load_s(model, backend) for model in work if backend.has(model))])
        for backend in fleet.backends
    ]


def _weighted(work: dict[str, float], held: set[str], fleet: Fleet, weights: Sequence[float]) -> tuple[float, float]:
    """Return the sums over jobs and over models. All jobs of a model are able to run on the same backends."""
    run = 0.0
    loads: dict[str, float] = {}
    for model, run_s in work.items():
        able = [(u, b) for u, b in zip(weights, fleet.backends, strict=True) if b.has(model)]
        loads[model] = min(u * fleet.load_s(model, b) for u, b in able)
        run += run_s * min(u / b.speed for u, b in able)
    spared = heapq.nlargest(len(fleet.backends), (load for model, load in loads.items() if model in held))
    return run, sum(loads.values()) - sum(spared)


def _weights(work: dict[str, float], fleet: Fleet) -> Iterator[list[float]]:
    """Yield weights that are worth trying."""
    yield [1.0 for _ in fleet.backends]
    weights = [backend.speed for backend in fleet.backends]
    yield weights
    if all(backend.models is None for backend in fleet.backends):
        return  # every backend can be as busy as the others, for which these weights are the best ones
    for step in range(_STEPS):
        loads = [0.0] * len(weights)
        for model, run_s in work.items():
            costs = [u / b.speed if b.has(model) else math.inf for u, b in zip(weights, fleet.backends, strict=True)]
            # Those that are hardly dearer than the cheapest share the work: else all of it jumps to and fro.
            near = [math.exp(-20.0 * (cost / min(costs) - 1.0)) if cost < math.inf else 0.0 for cost in costs]
            for index, backend in enumerate(fleet.backends):
                loads[index] += run_s * near[index] / sum(near) / backend.speed
        top = max(loads)
        rate = _STEP / (step + 1) ** 0.25
        weights = [u * math.exp(rate * load / top) for u, load in zip(weights, loads, strict=True)]
        yield weights


def _shortest_first(jobs: Sequence[TraceJob], speed: float) -> float:
    """Return the sum of all times from arrival to end on one backend that always runs what is nearest its end."""
    total, now_s = 0.0, 0.0
    left: list[tuple[float, float]] = []  # (seconds to run, arrival)
    arrivals = [*((job.at_s, job.run_s / speed) for job in jobs), (math.inf, 0.0)]
    for at_s, run_s in arrivals:
        while left and now_s < at_s:
            rest, came_s = heapq.heappop(left)
            if now_s + rest > at_s:
                heapq.heappush(left, (rest - (at_s - now_s), came_s))
                now_s = at_s
            else:
                now_s += rest
                total += now_s - came_s
        if run_s:
            now_s = max(now_s, at_s)
            heapq.heappush(left, (run_s, at_s))
    return total
