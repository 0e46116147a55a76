"""Made-up traces."""

import pytest

from comfyproxy.planning.workloads import NAMES, make_workload

each = pytest.mark.parametrize("name", NAMES)


@each
def test_the_same_name_and_seed_give_the_same_trace(name: str) -> None:
    first, again, other = (make_workload(name, seed=seed, capacity=8) for seed in (1, 1, 2))
    assert first == again
    assert first.jobs != other.jobs


@each
def test_jobs_are_in_order_and_need_models_that_there_are(name: str) -> None:
    made = make_workload(name, seed=1, capacity=8)
    assert 1500 < len(made.jobs) < 2700
    assert [job.at_s for job in made.jobs] == sorted(job.at_s for job in made.jobs)
    assert {job.model for job in made.jobs} <= set(made.models)
    assert len(made.models) == {"one": 1, "few": 4, "many": 24}[name.rpartition("-")[2]]
    assert all(10 <= model.load_s <= 40 for model in made.models.values())
    assert len({job.client for job in made.jobs}) > 5


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("batch")])
@pytest.mark.parametrize("capacity", [4.0, 16.0])
def test_what_comes_over_an_hour_leaves_some_room_for_loads(name: str, capacity: float) -> None:
    seeds = range(5)
    work = sum(sum(job.run_s for job in make_workload(name, seed=seed, capacity=capacity).jobs) for seed in seeds)
    assert 0.45 < work / len(seeds) / 3600 / capacity < 0.8
