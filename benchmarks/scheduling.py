"""How well the strategies use a fleet, in simulated time, and which of the goals are met.

    python benchmarks/scheduling.py [--quick] [--seed N ...] [--workload NAME ...] [--fleet NAME ...] [--processes N]

Every workload is run with every strategy on every fleet, for every seed; a table each, of means over the seeds. The
goals come last: they compare strategies on the same traces, so that nothing but the choices differs. The figures do
not depend on the machine; only how long it takes to get them does.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields

from comfyproxy.planning.comparing import compare
from comfyproxy.planning.figures import Figures
from comfyproxy.planning.fleet import BUILT_IN
from comfyproxy.planning.report import table
from comfyproxy.planning.strategies import NAMES as STRATEGIES
from comfyproxy.planning.strategies import make_scheduler
from comfyproxy.planning.workloads import NAMES as WORKLOADS
from comfyproxy.planning.workloads import make_workload

QUICK = ("batch-many", "interactive-one", "mixed-many")


@dataclass(frozen=True)
class Case:
    """One workload on one fleet."""

    workload: str
    fleet: str

    def __str__(self) -> str:
        return f"{self.workload}-{self.fleet}"


@dataclass(frozen=True)
class Measured:
    """The means over the seeds, by strategy."""

    case: Case
    jobs: float
    bound_s: float
    completion_bound_s: float
    figures: dict[str, Figures]
    seconds: float


def measure(case: Case, seeds: Sequence[int]) -> Measured:
    """Run a case with all strategies and seeds."""
    started = time.perf_counter()
    results, counts = [], []
    for seed in seeds:
        fleet = BUILT_IN[case.fleet]
        workload = make_workload(case.workload, seed=seed, capacity=fleet.capacity)
        results.append(compare(workload.jobs, fleet.knowing(workload.models), STRATEGIES, make_scheduler))
        counts.append(len(workload.jobs))
    return Measured(
        case,
        statistics.mean(counts),
        statistics.mean(result.makespan_bound_s for result in results),
        statistics.mean(result.completion_bound_s for result in results),
        {name: _mean([result.figures[name] for result in results]) for name in STRATEGIES},
        time.perf_counter() - started,
    )


def _mean(several: Sequence[Figures]) -> Figures:
    # The worst over the seeds would say more of the seeds than of the strategy.
    return Figures(
        **{field.name: statistics.mean(getattr(each, field.name) for each in several) for field in fields(Figures)}
    )


def show(measured: Measured) -> None:
    """Print the table of one case."""
    print(f"\n{measured.case}: {measured.jobs:.0f} jobs, simulated in {measured.seconds:.1f} s")
    print(table(measured.figures, makespan_bound_s=measured.bound_s, completion_bound_s=measured.completion_bound_s))


def goals(results: Sequence[Measured]) -> None:
    """Print each goal's ratios, case by case, and whether it is met in all of them."""
    affinity, least, turns = "model_affinity", "least_loaded", "round_robin"

    def goal(text: str, met: str, ratios: dict[str, float]) -> None:
        if ratios:
            sign, limit = met.split()
            fails = {
                case
                for case, ratio in ratios.items()
                if (ratio > float(limit) if sign == "<=" else ratio < float(limit))
            }
            print(f"\n{'MISSED' if fails else 'met':<6} {text}: {met}")
            for case, ratio in ratios.items():
                print(f"         {case:<26} {ratio:>7.3f}{'  <--' if case in fails else ''}")

    def chosen(*parts: str) -> list[Measured]:
        return [each for each in results if all(part in str(each.case) for part in parts)]

    goal(
        "makespan of model_affinity / bound, all jobs there at once",
        "<= 1.05",
        {str(each.case): each.figures[affinity].bound_ratio for each in chosen("batch-")},
    )
    goal(
        "loads of model_affinity / least_loaded, many models",
        f"<= {1 / 3:.4f}",
        {str(each.case): each.figures[affinity].loads / each.figures[least].loads for each in chosen("-many-")},
    )
    goal(
        "mean completion of round_robin / model_affinity, mixed workload and models, unequal backends",
        ">= 1.5",
        {
            str(each.case): each.figures[turns].mean_completion_s / each.figures[affinity].mean_completion_s
            for each in chosen("mixed-", "-unequal")
            if "-one-" not in str(each.case)
        },
    )
    goal(
        "worst rho of a client under model_affinity",
        "<= 2.0",
        {str(each.case): each.figures[affinity].worst_rho for each in results},
    )
    for name, text in (("makespan_s", "makespan"), ("mean_completion_s", "mean completion")):
        goal(
            f"{text} of model_affinity / least_loaded",
            "<= 1.02",
            {
                str(each.case): getattr(each.figures[affinity], name) / getattr(each.figures[least], name)
                for each in results
            },
        )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, and one seed")
    parser.add_argument("--seed", type=int, action="append", help="of the traces; may be given often (1, 2, 3)")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--fleet", action="append", choices=tuple(BUILT_IN), metavar="NAME", help=", ".join(BUILT_IN))
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="to simulate in (%(default)s)")
    arguments = parser.parse_args()
    seeds = arguments.seed or ([1] if arguments.quick else [1, 2, 3])
    workloads = arguments.workload or (QUICK if arguments.quick else WORKLOADS)
    cases = [Case(workload, fleet) for workload in workloads for fleet in arguments.fleet or BUILT_IN]
    results = []
    with ProcessPoolExecutor(arguments.processes) as pool:
        for measured in pool.map(measure, cases, [seeds] * len(cases)):
            show(measured)
            results.append(measured)
    goals(results)


if __name__ == "__main__":
    main()
