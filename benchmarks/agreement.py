"""Whether the simulation agrees with reality: one trace, predicted in no time, and played through the proxy.

    python benchmarks/agreement.py [--strategy NAME ...] [--workload NAME ...] [--seed N ...]
                                   [--scale S] [--jobs N] [--report FILE]

The prediction is what `comfyproxy plan` would make of the trace. Then `comfyproxy serve` and simulated backends run as
processes, and each job is submitted at its time; that takes one to four minutes for each run. Both know the same
speeds, loading times and bounds, as configured: nothing that is measured goes back into the prediction. It ends with 1
if a makespan is off by more than 10 %.

The scheduler's constants are real seconds, so jobs are made fewer rather than shorter: about as many as `--jobs` says,
that run a few seconds each.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agreement_play import Outcome, play
from chaos_processes import ChaosFailed

from comfyproxy.planning.engine import simulate
from comfyproxy.planning.fleet import LOAD_S, Fleet, FleetBackend, FleetModel
from comfyproxy.planning.strategies import NAMES as STRATEGIES
from comfyproxy.planning.strategies import make_scheduler
from comfyproxy.planning.trace import TraceJob
from comfyproxy.planning.workloads import NAMES as WORKLOADS
from comfyproxy.planning.workloads import make_workload

TOLERANCE = 0.1  # of the makespan
JOBS_PER_CAPACITY = 250  # of a made-up workload
BETWEEN_S = 0.02  # from one job to the next: what a request takes, so that they come in the trace's order
BACKENDS = tuple(FleetBackend(name=f"gpu-{speed:g}", speed=speed) for speed in (2.0, 1.5, 1.0, 0.5))


@dataclass(frozen=True)
class Case:
    """One run."""

    workload: str
    seed: int
    strategy: str

    def __str__(self) -> str:
        return f"{self.workload} {self.seed} {self.strategy}"


def short_trace(workload: str, *, seed: int, scale: float, jobs: int) -> tuple[list[TraceJob], Fleet]:
    """Return about as many jobs of a workload, and a fleet that they keep as busy as the whole workload keeps a larger.

    Args:
        scale: of all times: 0.4 makes a prompt of ten seconds one of four.
    """
    fleet = Fleet(BACKENDS)
    capacity = jobs / JOBS_PER_CAPACITY
    made = make_workload(workload, seed=seed, capacity=capacity)
    found: list[TraceJob] = []
    for job in made.jobs:
        at_s = job.at_s * scale * capacity / fleet.capacity
        if found:
            at_s = max(at_s, found[-1].at_s + BETWEEN_S)
        found.append(replace(job, at_s=at_s, run_s=job.run_s * scale))
    return found, fleet.knowing({model: FleetModel(load_s=LOAD_S * scale) for model in made.models})


def predict(jobs: Sequence[TraceJob], fleet: Fleet, strategy: str) -> Outcome:
    """Return what the simulation says."""
    run = simulate(jobs, fleet, make_scheduler(strategy))
    return Outcome(
        makespan_s=max(record.end_s for record in run.records),
        completion_s=sum(record.completion_s for record in run.records) / len(jobs),
        loads=sum(record.has_loaded for record in run.records),
        jobs_on={name: len(records) for name, records in run.timelines.items()},
        reasons=dict(Counter(record.why for record in run.records)),
    )


def show(case: Case, jobs: int, predicted: Outcome, real: Outcome) -> None:
    """Print both side by side."""
    print(f"\n{case}, {jobs} jobs")
    print(f"  {'':<62} {'predicted':>10} {'real':>10} {'ratio':>7}")
    _row("makespan, s", predicted.makespan_s, real.makespan_s)
    _row("mean completion, s", predicted.completion_s, real.completion_s)
    _row("loads", predicted.loads, real.loads)
    for backend, count in predicted.jobs_on.items():
        _row(f"jobs on {backend}", count, real.jobs_on[backend])
    for reason in sorted({*predicted.reasons, *real.reasons}):
        _row(f"because {reason}", predicted.reasons.get(reason, 0), real.reasons.get(reason, 0))
    sys.stdout.flush()


def _row(what: str, predicted: float, real: float) -> None:
    digits = 1 if isinstance(predicted, float) else 0
    ratio = f"{real / predicted:.3f}" if predicted else "-"
    print(f"  {what:<62} {predicted:>10.{digits}f} {real:>10.{digits}f} {ratio:>7}")


def is_near(predicted: Outcome, real: Outcome) -> bool:
    """Whether the makespans agree."""
    return abs(real.makespan_s / predicted.makespan_s - 1.0) <= TOLERANCE


def summarise(results: Sequence[tuple[Case, Outcome, Outcome]]) -> None:
    """Print a line for each run."""
    width = max(len(str(case)) for case, _, _ in results)
    print(f"\n{'':<{width}} {'makespan, s':>21} {'ratio':>7} {'completion, s':>15} {'ratio':>7} {'loads':>9}")
    for case, predicted, real in results:
        print(
            f"{case!s:<{width}} {predicted.makespan_s:>10.1f} {real.makespan_s:>10.1f} "
            f"{real.makespan_s / predicted.makespan_s:>7.3f} {predicted.completion_s:>7.1f} {real.completion_s:>7.1f} "
            f"{real.completion_s / predicted.completion_s:>7.3f} {predicted.loads:>4} {real.loads:>4}  "
            f"{'within' if is_near(predicted, real) else 'NOT within'} {TOLERANCE:.0%}"
        )


def _as_json(case: Case, predicted: Outcome, real: Outcome) -> dict[str, Any]:
    return {**asdict(case), "predicted": asdict(predicted), "real": asdict(real)}


def main() -> int:
    """Read the command line, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, metavar="NAME", help=", ".join(STRATEGIES))
    parser.add_argument("--workload", action="append", choices=WORKLOADS, metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--seed", type=int, action="append", help="of the trace; may be given often (1)")
    parser.add_argument("--scale", type=float, default=0.4, metavar="S", help="of all times (%(default)s)")
    parser.add_argument("--jobs", type=int, default=100, metavar="N", help="about so many (%(default)s)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the figures to it, as JSON")
    arguments = parser.parse_args()
    cases = [
        Case(workload, seed, strategy)
        for workload in arguments.workload or ["batch-few"]
        for seed in arguments.seed or [1]
        for strategy in arguments.strategy or ["model_affinity", "least_loaded"]
    ]
    results = []
    for case in cases:
        jobs, fleet = short_trace(case.workload, seed=case.seed, scale=arguments.scale, jobs=arguments.jobs)
        predicted = predict(jobs, fleet, case.strategy)
        folder = Path(tempfile.mkdtemp(prefix="comfyproxy-agreement-"))
        try:
            real = asyncio.run(play(jobs, fleet, case.strategy, folder, expected_s=predicted.makespan_s))
        except ChaosFailed as exc:
            print(f"{case}: {exc}; the logs are in {folder}", file=sys.stderr)
            return 1
        shutil.rmtree(folder)
        show(case, len(jobs), predicted, real)
        results.append((case, predicted, real))
    summarise(results)
    if arguments.report is not None:
        arguments.report.write_text(json.dumps([_as_json(*result) for result in results], indent=1))
    return 0 if all(is_near(predicted, real) for _, predicted, real in results) else 1


if __name__ == "__main__":
    sys.exit(main())
