"""Whether the simulation agrees with reality: one trace, predicted in no time, and played through the proxy.

    python benchmarks/agreement.py [--strategy NAME ...] [--workload NAME ...] [--seed N ...]
                                   [--scale S] [--jobs N] [--report FILE]

The prediction is what `comfyproxy plan` would make of the trace. Then `comfyproxy serve` and simulated backends run as
processes, and each job is submitted at its time; that takes one to four minutes for each run. Both know the same
speeds, loading times and bounds, as configured: nothing that is measured goes back into the prediction. It ends with 1
if a makespan is off by more than 10 %.

Choices are often close, and then milliseconds decide them, and all that comes after. So the trace is also predicted
some times with every job up to 20 ms later and up to 30 ms longer: the smallest and the largest figures of these show
how far apart two runs may be although nothing is wrong.

The scheduler's constants are real seconds, so jobs are made fewer rather than shorter: about as many as `--jobs` says,
that run a few seconds each.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
OVERHEAD_S = 0.03  # what a job may take longer in the proxy than in the simulation
DISTURBED = 20  # predictions
BACKENDS = tuple(FleetBackend(name=f"gpu-{speed:g}", speed=speed) for speed in (2.0, 1.5, 1.0, 0.5))


@dataclass(frozen=True)
class Case:
    """One run."""

    workload: str
    seed: int
    strategy: str

    def __str__(self) -> str:
        return f"{self.workload} {self.seed} {self.strategy}"


FIGURES: Mapping[str, Callable[[Outcome], float]] = {
    "makespan, s": lambda outcome: outcome.makespan_s,
    "mean completion, s": lambda outcome: outcome.completion_s,
    "loads": lambda outcome: outcome.loads,
}


@dataclass(frozen=True)
class Result:
    """A run, beside its predictions."""

    case: Case
    predicted: Outcome
    disturbed: Sequence[Outcome]
    real: Outcome

    def span(self, figure: Callable[[Outcome], float]) -> tuple[float, float]:
        """Return the least and the most that any prediction says."""
        values = [figure(outcome) for outcome in (self.predicted, *self.disturbed)]
        return min(values), max(values)

    @property
    def alike(self) -> int:
        """How many decisions, from the first on, were as predicted: the same job to the same backend, in this order."""
        pairs = zip(self.predicted.decisions, self.real.decisions, strict=False)
        return next((count for count, (one, other) in enumerate(pairs) if one != other), len(self.real.decisions))

    @property
    def is_near(self) -> bool:
        """Whether the makespans agree."""
        return abs(self.real.makespan_s / self.predicted.makespan_s - 1.0) <= TOLERANCE


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
    in_order = sorted(enumerate(run.records), key=lambda each: each[1].assigned_s)
    return Outcome(
        makespan_s=max(record.end_s for record in run.records),
        completion_s=sum(record.completion_s for record in run.records) / len(jobs),
        loads=sum(record.has_loaded for record in run.records),
        jobs_on={name: len(records) for name, records in run.timelines.items()},
        reasons=dict(Counter(record.why for record in run.records)),
        decisions=[(place, str(record.backend)) for place, record in in_order],
    )


def disturbed(jobs: Sequence[TraceJob], fleet: Fleet, strategy: str) -> list[Outcome]:
    """Return what the simulation says of traces that are hardly different; the same ones each time."""
    rng = random.Random(len(jobs))
    traces = [
        [
            replace(job, at_s=job.at_s + rng.uniform(0.0, BETWEEN_S), run_s=job.run_s + rng.uniform(0.0, OVERHEAD_S))
            for job in jobs
        ]
        for _ in range(DISTURBED)
    ]
    return [predict(sorted(trace, key=lambda job: job.at_s), fleet, strategy) for trace in traces]


def show(result: Result) -> None:
    """Print all figures side by side."""
    predicted, real = result.predicted, result.real
    print(f"\n{result.case}, {sum(real.jobs_on.values())} jobs")
    print(f"  {'':<56} {'predicted':>10} {'disturbed':>15} {'real':>10} {'ratio':>7}")
    for what, figure in FIGURES.items():
        few, many = result.span(figure)
        _row(what, figure(predicted), figure(real), f"{few:.{_digits(few)}f} to {many:.{_digits(many)}f}")
    for backend, count in predicted.jobs_on.items():
        _row(f"jobs on {backend}", count, real.jobs_on[backend])
    for reason in sorted({*predicted.reasons, *real.reasons}):
        _row(f"because {reason}", predicted.reasons.get(reason, 0), real.reasons.get(reason, 0))
    print(f"  The first {result.alike} of {len(real.decisions)} decisions are the predicted ones, in their order.")
    sys.stdout.flush()


def _row(what: str, predicted: float, real: float, span: str = "") -> None:
    digits = _digits(predicted)
    ratio = f"{real / predicted:.3f}" if predicted else "-"
    print(f"  {what:<56} {predicted:>10.{digits}f} {span:>15} {real:>10.{digits}f} {ratio:>7}")


def _digits(value: float) -> int:
    return 1 if isinstance(value, float) else 0


def summarise(results: Sequence[Result]) -> None:
    """Print a line for each run."""
    width = max(len(str(result.case)) for result in results)
    print(
        f"\n{'':<{width}} {'makespan, s':>15} {'ratio':>7} {'completion, s':>15} {'ratio':>7} {'loads':>9} {'alike':>6}"
    )
    for result in results:
        predicted, real = result.predicted, result.real
        print(
            f"{result.case!s:<{width}} {predicted.makespan_s:>7.1f} {real.makespan_s:>7.1f} "
            f"{real.makespan_s / predicted.makespan_s:>7.3f} {predicted.completion_s:>7.1f} {real.completion_s:>7.1f} "
            f"{real.completion_s / predicted.completion_s:>7.3f} {predicted.loads:>4} {real.loads:>4} "
            f"{result.alike:>6}  {'within' if result.is_near else 'NOT within'} {TOLERANCE:.0%}"
        )


def _as_json(result: Result) -> dict[str, Any]:
    spans = {what: result.span(figure) for what, figure in FIGURES.items()}
    return {
        **asdict(result.case),
        "alike": result.alike,
        "predicted": asdict(result.predicted),
        "disturbed": spans,
        "real": asdict(result.real),
    }


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
    results: list[Result] = []
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
        results.append(Result(case, predicted, disturbed(jobs, fleet, case.strategy), real))
        show(results[-1])
    summarise(results)
    if arguments.report is not None:
        arguments.report.write_text(json.dumps([_as_json(result) for result in results], indent=1))
    return 0 if all(result.is_near for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
