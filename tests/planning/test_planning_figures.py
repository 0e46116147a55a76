"""What the figures of a run mean."""

from collections.abc import Sequence

import pytest
from planning_support import FirstComeFirstServed, fleet, job

from comfyproxy.planning.engine import Run, simulate
from comfyproxy.planning.figures import Figures, figures, sharers
from comfyproxy.planning.fleet import Fleet
from comfyproxy.planning.trace import TraceJob


def alone(jobs: Sequence[TraceJob], fleet: Fleet) -> Run:
    return simulate(jobs, fleet, FirstComeFirstServed())


def figures_of(*jobs: TraceJob, **load_s: float) -> Figures:
    return figures(alone(jobs, fleet(**load_s)), bound_s=10, run_alone=alone)


def test_times_are_counted_from_the_arrival() -> None:
    found = figures_of(job(0, 10, "x"), job(5, 10, "x"), job(5, 10, "y"), x=3, y=4)
    assert found.makespan_s == 37
    assert found.bound_ratio == 3.7
    assert found.mean_wait_s == pytest.approx((0 + 8 + 18) / 3)
    assert found.p99_wait_s == 18
    assert found.mean_completion_s == pytest.approx((13 + 18 + 32) / 3)
    assert found.loads == 2


def test_two_who_take_turns_fairly_have_a_rho_of_at_most_one() -> None:
    found = figures_of(*[job(0, 1, client=client) for _ in range(50) for client in ("anna", "ben")])
    assert found.worst_rho == pytest.approx(1, abs=0.02)
    assert found.worst_slowdown == pytest.approx(2, abs=0.05)


def test_who_waits_behind_all_of_another_ones_jobs_has_a_large_rho() -> None:
    found = figures_of(*[job(0, 1, client="anna") for _ in range(99)], job(0, 1, client="ben"))
    assert found.worst_rho == pytest.approx(100 / 1.99)  # two had jobs for all but the last of 100 s
    assert found.worst_slowdown == pytest.approx(100)


def test_a_client_shares_with_those_who_have_jobs_while_it_has_some() -> None:
    run = alone([job(0, 10, client="anna"), job(0, 10, client="ben"), job(100, 10, client="anna")], fleet())
    of_client = {name: [each for each in run.records if each.job.client == name] for name in ("anna", "ben")}
    assert sharers(of_client) == {"anna": 1.5, "ben": 1.5}
