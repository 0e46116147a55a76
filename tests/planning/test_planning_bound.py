"""What no schedule can beat is beaten by none."""

import itertools
import math
from collections.abc import Iterable

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_support import FirstComeFirstServed, fleet, job

from comfyproxy.planning.bound import completion_bound, makespan_bound
from comfyproxy.planning.engine import simulate
from comfyproxy.planning.fleet import Fleet, FleetBackend
from comfyproxy.planning.trace import TraceJob

MODELS = ("x", "y", "z")
speeds = st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0])
seconds = st.floats(0.1, 100, allow_nan=False)


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Backends of which the first has all models, so that every job can run."""
    backends = [
        FleetBackend(
            name=f"b{index}",
            speed=draw(speeds),
            load_speed=draw(speeds),
            max_concurrent=draw(st.integers(1, 2)),
            models=draw(st.none() | st.lists(st.sampled_from(MODELS)).map(tuple)) if index else None,
        )
        for index in range(draw(st.integers(1, 4)))
    ]
    return fleet(*backends, **{model: draw(seconds) for model in MODELS})


jobs_strategy = st.lists(
    st.builds(
        job,
        st.floats(0, 200, allow_nan=False) | st.just(0.0),
        seconds,
        st.sampled_from(("", *MODELS)),
        st.sampled_from(("", "anna")),
    ),
    min_size=1,
    max_size=30,
).map(lambda jobs: sorted(jobs, key=lambda each: each.at_s))


@given(jobs_strategy, fleets())
def test_no_run_is_better_than_the_bounds(jobs: list[TraceJob], fleet: Fleet) -> None:
    records = simulate(jobs, fleet, FirstComeFirstServed()).records
    assert makespan_bound(jobs, fleet) <= max(each.end_s for each in records) * (1 + 1e-9)
    assert completion_bound(jobs, fleet) <= sum(each.completion_s for each in records) / len(jobs) * (1 + 1e-9)


def best(jobs: list[TraceJob], fleet: Fleet) -> tuple[float, float]:
    """Return the least makespan and the least mean completion of all schedules that there are."""
    makespan = completion = math.inf
    for order in itertools.permutations(jobs):
        for places in itertools.product(fleet.backends, repeat=len(jobs)):
            if all(backend.has(each.model) for each, backend in zip(order, places, strict=True)):
                ends = _ends(zip(order, places, strict=True), fleet)
                makespan = min(makespan, max(ends))
                completion = min(completion, (sum(ends) - sum(each.at_s for each in jobs)) / len(jobs))
    return makespan, completion


def _ends(placed: Iterable[tuple[TraceJob, FleetBackend]], fleet: Fleet) -> list[float]:
    free_s: dict[str, float] = {}
    held: dict[str, str] = {}
    ends = []
    for each, backend in placed:
        name = backend.name
        begin_s = max(free_s.get(name, 0.0), each.at_s)
        if each.model and held.get(name) != each.model:
            begin_s += fleet.load_s(each.model, backend)
            held[name] = each.model
        free_s[name] = begin_s + each.run_s / backend.speed
        ends.append(free_s[name])
    return ends


@hypothesis.settings(max_examples=60)
@given(jobs_strategy.map(lambda jobs: jobs[:4]), fleets())
def test_the_best_of_all_schedules_is_no_better_than_the_bounds(jobs: list[TraceJob], fleet: Fleet) -> None:
    fleet = Fleet(fleet.backends[:3], fleet.models)
    makespan, completion = best(jobs, fleet)
    assert makespan_bound(jobs, fleet) <= makespan * (1 + 1e-9)
    assert completion_bound(jobs, fleet) <= completion * (1 + 1e-9)


def test_equal_backends_share_the_work_and_each_model_is_loaded_once() -> None:
    jobs = [job(0, 10, model) for model in "xxxxyyyy"]
    assert makespan_bound(jobs, fleet(FleetBackend(name="a"), FleetBackend(name="b"), x=5, y=7)) == (80 + 12) / 2


def test_where_there_are_fewer_models_than_backends_each_backend_loads_one() -> None:
    backends = [FleetBackend(name=name) for name in "abcd"]
    assert makespan_bound([job(0, 1, "x") for _ in range(400)], fleet(*backends, x=20)) == 120


def test_a_job_that_comes_late_ends_late() -> None:
    assert makespan_bound([job(0, 1, "x"), job(100, 10, "x")], fleet(FleetBackend(name="a", speed=2), x=5)) == 105


def test_what_only_slow_backends_have_on_disk_counts_at_their_speed() -> None:
    backends = FleetBackend(name="a", speed=10, models=("x",)), FleetBackend(name="b", models=("y",))
    jobs = [job(0, 10, "y") for _ in range(10)] + [job(0, 10, "x")]
    # Half the weight on each would give no more than about (100 + 1) / 2.
    assert makespan_bound(jobs, fleet(*backends, x=0, y=0)) > 90


def test_the_shortest_first_is_best_on_average() -> None:
    jobs = [job(0, 4), job(0, 2), job(1, 1)]
    # 2 ends at 2, 1 at 3, 4 at 7.
    assert completion_bound(jobs, fleet()) == pytest.approx((2 + 2 + 7) / 3)
