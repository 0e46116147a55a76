"""What a run was worth: how soon the jobs were done, how many loads that took, and how fair it was.

Fairness is finish-time fairness, rho, of Themis (Mahajan et al., NSDI 2020): how long a client's jobs took on the
shared fleet, divided by how long they take on the client's fair share. With N clients that is a fleet of its own on
which everything takes N times as long; N is how many clients had unfinished jobs, on average while this one had some.
A rho of 1 or less means that a client was done no worse by sharing.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from comfyproxy.planning.engine import Record, Run
from comfyproxy.planning.fleet import Fleet
from comfyproxy.planning.trace import TraceJob

# Runs one client's jobs alone on a fleet. The same strategy for all, or the yardstick would change with the measured.
RunAlone: TypeAlias = Callable[[Sequence[TraceJob], Fleet], Run]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of one run; times in seconds.

    Attributes:
        makespan_s: the end of the last job, after the trace's beginning.
        bound_ratio: that, divided by what no schedule can beat.
        mean_wait_s, p99_wait_s: from a job's arrival to its start.
        mean_completion_s: from a job's arrival to its end.
        loads: how often a model was loaded.
        worst_rho: the largest of any client.
        worst_slowdown: as rho, compared with the whole fleet for oneself.
    """

    makespan_s: float
    bound_ratio: float
    mean_wait_s: float
    p99_wait_s: float
    mean_completion_s: float
    loads: int
    worst_rho: float
    worst_slowdown: float


def figures(run: Run, *, bound_s: float, run_alone: RunAlone) -> Figures:
    """Return the figures of a run with at least one job.

    Args:
        bound_s: `bound.makespan_bound` of the same trace and fleet.
    """
    records = run.records
    waits = sorted(record.wait_s for record in records)
    makespan_s = max(record.end_s for record in records)
    of_client: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        of_client[record.job.client].append(record)
    sharing = sharers(of_client)
    rhos, slowdowns = [], []
    for client, own in of_client.items():
        jobs = [record.job for record in own]
        shared = _mean_completion_s(own)
        rhos.append(shared / _mean_completion_s(run_alone(jobs, run.fleet.slowed(sharing[client])).records))
        slowdowns.append(shared / _mean_completion_s(run_alone(jobs, run.fleet).records))
    return Figures(
        makespan_s=makespan_s,
        bound_ratio=makespan_s / bound_s,
        mean_wait_s=sum(waits) / len(waits),
        p99_wait_s=waits[min(len(waits) - 1, int(len(waits) * 0.99))],
        mean_completion_s=_mean_completion_s(records),
        loads=sum(record.has_loaded for record in records),
        worst_rho=max(rhos),
        worst_slowdown=max(slowdowns),
    )


def sharers(of_client: Mapping[str, Iterable[Record]]) -> dict[str, float]:
    """Return for each client how many clients had unfinished jobs, on average while it had some itself; at least 1."""
    changes: list[tuple[float, int, str]] = []
    for client, records in of_client.items():
        for begin_s, end_s in _busy(records):
            changes += [(begin_s, 1, client), (end_s, -1, client)]
    shared_s: dict[str, float] = defaultdict(float)
    busy_s: dict[str, float] = defaultdict(float)
    count, area, before_s = 0, 0.0, 0.0  # area: clients times seconds so far
    since: dict[str, tuple[float, float]] = {}
    for at_s, change, client in sorted(changes):
        area += count * (at_s - before_s)
        before_s = at_s
        count += change
        if change > 0:
            since[client] = at_s, area
        else:
            begin_s, begin_area = since.pop(client)
            busy_s[client] += at_s - begin_s
            shared_s[client] += area - begin_area
    return {client: max(1.0, shared_s[client] / busy_s[client]) for client in of_client}


def _busy(records: Iterable[Record]) -> list[tuple[float, float]]:
    """Return the times at which some of these jobs were unfinished, those that touch as one."""
    times: list[tuple[float, float]] = []
    for begin_s, end_s in sorted((record.job.at_s, record.end_s) for record in records):
        if times and begin_s <= times[-1][1]:
            times[-1] = times[-1][0], max(times[-1][1], end_s)
        else:
            times.append((begin_s, end_s))
    return times


def _mean_completion_s(records: Sequence[Record]) -> float:
    return sum(record.completion_s for record in records) / len(records)
