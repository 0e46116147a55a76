"""How well the strategies use a fleet, in simulated time, and which of the goals are met.

    python benchmarks/scheduling.py [--quick] [--seed N ...] [--workload NAME ...] [--fleet NAME ...] [--processes N]

Every workload is run with every strategy on every fleet, for every seed; a table each, of means over the seeds. The
goals come last: they compare strategies on the same traces, so that nothing but the choices differs, and are met if
they are with every seed. The figures do not depend on the machine; only how long it takes to get them does.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
    """What came of a case: the means over the seeds, and each seed's figures, by strategy."""

    case: Case
    jobs: float
    bound_s: float
    completion_bound_s: float
    seeds: Sequence[Mapping[str, Figures]]
    seconds: float


@dataclass(frozen=True)
class Goal:
    """A ratio that shall not be passed, in any of the cases it is about."""

    text: str
    limit: float
    ratio: Callable[[Mapping[str, Figures]], float]
    parts: tuple[str, ...] = ()  # of the cases' names
    is_minimum: bool = False

    def judge(self, results: Sequence[Measured]) -> None:
        """Print the ratios of the cases, and whether the goal is met by every seed of all of them."""
        rows = []
        for each in results:
            if all(part in str(each.case) for part in self.parts):
                ratios = [self.ratio(seed) for seed in each.seeds]
                worst = min(ratios) if self.is_minimum else max(ratios)
                rows.append((str(each.case), statistics.mean(ratios), worst))
        if not rows:
            return
        misses = {case for case, _, worst in rows if (worst < self.limit if self.is_minimum else worst > self.limit)}
        sign = ">=" if self.is_minimum else "<="
        print(f"\n{'MISSED' if misses else 'met':<6} {self.text} {sign} {self.limit:.4g}")
        print(f"         {'':<26} {'mean':>7} {'worst':>7}")
        for case, mean, worst in rows:
            print(f"         {case:<26} {mean:>7.3f} {worst:>7.3f}{'  <--' if case in misses else ''}")


AFFINITY, LEAST, TURNS = "model_affinity", "least_loaded", "round_robin"
GOALS = (
    Goal(
        "makespan of model_affinity / bound, all jobs there at once",
        1.05,
        lambda found: found[AFFINITY].bound_ratio,
        ("batch-",),
    ),
    Goal(
        "loads of model_affinity / least_loaded, many models",
        1 / 3,
        lambda found: found[AFFINITY].loads / found[LEAST].loads,
        ("-many-",),
    ),
    *(
        Goal(
            f"mean completion of round_robin / model_affinity, mixed workload, {models} models, unequal backends",
            1.5,
            lambda found: found[TURNS].mean_completion_s / found[AFFINITY].mean_completion_s,
            (f"mixed-{models}-", "-unequal"),
            is_minimum=True,
        )
        for models in ("few", "many")
    ),
    Goal("worst rho of a client under model_affinity", 2.0, lambda found: found[AFFINITY].worst_rho),
    Goal(
        "makespan of model_affinity / least_loaded",
        1.02,
        lambda found: found[AFFINITY].makespan_s / found[LEAST].makespan_s,
    ),
    Goal(
        "mean completion of model_affinity / least_loaded",
        1.02,
        lambda found: found[AFFINITY].mean_completion_s / found[LEAST].mean_completion_s,
    ),
)


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
        [result.figures for result in results],
        time.perf_counter() - started,
    )


def show(measured: Measured) -> None:
    """Print the table of one case."""
    means = {name: _mean([figures[name] for figures in measured.seeds]) for name in STRATEGIES}
    print(f"\n{measured.case}: {measured.jobs:.0f} jobs, simulated in {measured.seconds:.1f} s")
    print(table(means, makespan_bound_s=measured.bound_s, completion_bound_s=measured.completion_bound_s))


def _mean(several: Sequence[Figures]) -> Figures:
    return Figures(
        **{field.name: statistics.mean(getattr(each, field.name) for each in several) for field in fields(Figures)}
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
    for goal in GOALS:
        goal.judge(results)


if __name__ == "__main__":
    main()
