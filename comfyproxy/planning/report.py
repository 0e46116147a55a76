"""A comparison as text for people, and as JSON for programs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from comfyproxy.planning.comparing import Comparison
from comfyproxy.planning.figures import Figures

_BOUND = "no schedule"  # beats this row

LEGEND = """makespan     until all is done, and how many times as long as no schedule can beat
wait         of a job until it starts: the mean, and what 1 in 100 exceeds
completion   of a job, from its arrival to its end: the mean
loads        how often a model was loaded
rho          of the client worst off: its completion, divided by that on a fair share of the fleet; up to 1 is fair
slowdown     as rho, but divided by that on the whole fleet alone"""


def table(found: Mapping[str, Figures], *, makespan_bound_s: float, completion_bound_s: float) -> str:
    """Return a row for each strategy, and one for what no schedule can beat; no line end after it."""
    width = max(len(_BOUND), *(len(name) for name in found))
    lines = [
        f"{'':<{width}} {'makespan':>10} {'x bound':>8} {'wait':>9} {'p99 wait':>10} {'completion':>11} {'loads':>7} "
        f"{'rho':>6} {'slowdown':>9}"
    ]
    for name, row in found.items():
        lines.append(
            f"{name:<{width}} {row.makespan_s:>8.0f} s {row.bound_ratio:>8.3f} {row.mean_wait_s:>7.1f} s "
            f"{row.p99_wait_s:>8.1f} s {row.mean_completion_s:>9.1f} s {row.loads:>7.0f} {row.worst_rho:>6.2f} "
            f"{row.worst_slowdown:>9.2f}"
        )
    lines.append(
        f"{_BOUND:<{width}} {makespan_bound_s:>8.0f} s {1:>8.3f} {'':>9} {'':>10} {completion_bound_s:>9.1f} s"
    )
    return "\n".join(lines)


def as_json(comparison: Comparison, **about: Any) -> dict[str, Any]:
    """Return the figures as what JSON can say.

    Args:
        about: what was compared; comes first.
    """
    return {
        **about,
        "makespan_bound_s": comparison.makespan_bound_s,
        "completion_bound_s": comparison.completion_bound_s,
        "strategies": {name: dataclasses.asdict(found) for name, found in comparison.figures.items()},
    }
