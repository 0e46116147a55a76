"""Strategies side by side on one trace and one fleet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from comfyproxy.planning.bound import completion_bound, makespan_bound
from comfyproxy.planning.engine import Run, Scheduling, simulate
from comfyproxy.planning.figures import Figures, figures
from comfyproxy.planning.fleet import Fleet
from comfyproxy.planning.trace import TraceJob

# Returns a new scheduler with the strategy of this name.
MakeScheduler: TypeAlias = Callable[[str], Scheduling]

YARDSTICK = "model_affinity"  # the strategy with which clients run alone, whatever is compared


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of it, by the strategies' names, and what no strategy can beat (in seconds)."""

    makespan_bound_s: float
    completion_bound_s: float
    runs: Mapping[str, Run]
    figures: Mapping[str, Figures]


def compare(
    jobs: Sequence[TraceJob], fleet: Fleet, strategies: Sequence[str], make_scheduler: MakeScheduler
) -> Comparison:
    """Run the trace once with each strategy.

    Raises BadPlan if a job can run nowhere.
    """
    fleet.check(jobs)
    bound_s = makespan_bound(jobs, fleet)
    alone_on_all: dict[str, Run] = {}  # by client: the same for all strategies

    def run_alone(own: Sequence[TraceJob], share: Fleet) -> Run:
        if share is not fleet:
            return simulate(own, share, make_scheduler(YARDSTICK))
        client = own[0].client
        if client not in alone_on_all:
            alone_on_all[client] = simulate(own, fleet, make_scheduler(YARDSTICK))
        return alone_on_all[client]

    runs = {name: simulate(jobs, fleet, make_scheduler(name)) for name in strategies}
    return Comparison(
        makespan_bound_s=bound_s,
        completion_bound_s=completion_bound(jobs, fleet),
        runs=runs,
        figures={name: figures(run, bound_s=bound_s, run_alone=run_alone) for name, run in runs.items()},
    )
