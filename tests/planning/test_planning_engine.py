"""The simulated fleet, on traces that can be worked out by hand."""

import pytest
from planning_support import FirstComeFirstServed, fleet, job

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.strategies import make_strategy
from comfyproxy.core.scheduling.types import Assignment, BackendSpec
from comfyproxy.planning.engine import Stranded, simulate
from comfyproxy.planning.fleet import FleetBackend

A, B = BackendId("a"), BackendId("b")


def test_a_model_is_loaded_once_and_stays_until_another_one_comes() -> None:
    jobs = [job(0, 10, "x"), job(0, 10, "x"), job(0, 10, "y"), job(0, 10), job(0, 10, "y")]
    run = simulate(jobs, fleet(x=20, y=5), FirstComeFirstServed())
    assert [(each.start_s, each.load_s, each.end_s) for each in run.records] == [
        (0, 20, 30),
        (30, 0, 40),
        (40, 5, 55),
        (55, 0, 65),  # needs no model, and pushes none out
        (65, 0, 75),
    ]


def test_speeds_divide_what_a_job_and_a_load_take() -> None:
    run = simulate(
        [job(1, 10, "x")], fleet(FleetBackend(name="a", speed=2, load_speed=4), x=20), FirstComeFirstServed()
    )
    (record,) = run.records
    assert (record.wait_s, record.load_s, record.completion_s) == (0, 5, 10)


def test_a_backend_takes_as_many_as_it_may_and_runs_one_at_a_time() -> None:
    jobs = [job(0, 10), job(0, 10), job(0, 10), job(12, 1)]
    run = simulate(jobs, fleet(FleetBackend(name="a", max_concurrent=2)), FirstComeFirstServed())
    assert [(each.assigned_s, each.start_s) for each in run.records] == [(0, 0), (0, 10), (10, 20), (20, 30)]


def test_the_jobs_of_a_backend_run_in_the_order_in_which_they_came_to_it() -> None:
    backends = FleetBackend(name="a", models=("x",)), FleetBackend(name="b", models=("y",))
    run = simulate([job(0, 5, "y"), job(0, 5, "x"), job(0, 5, "y")], fleet(*backends, x=0, y=0), FirstComeFirstServed())
    assert [(each.backend, each.start_s) for each in run.records] == [(B, 0), (A, 0), (B, 5)]
    assert [each.job.model for each in run.timelines[B]] == ["y", "y"]


def test_the_scheduler_is_told_of_beginnings_and_ends_when_they_happen() -> None:
    scheduler = FirstComeFirstServed()
    simulate([job(0, 10, "x"), job(0, 10, "x")], fleet(x=5), scheduler)
    assert scheduler.told == [("started", "0", 0), ("finished", "0", 15), ("started", "1", 15), ("finished", "1", 25)]


@pytest.mark.parametrize("strategy", ["least_loaded", "round_robin"])
def test_a_job_that_is_pending_on_one_backend_is_moved_to_another_that_has_nothing_to_do(strategy: str) -> None:
    backends = [FleetBackend(name=name, max_concurrent=2) for name in "ab"]
    run = simulate([job(0, 50), job(0, 1), job(0, 10)], fleet(*backends), Scheduler(make_strategy(strategy)))
    assert [(each.backend, each.assigned_s, each.start_s, each.end_s) for each in run.records] == [
        (A, 0, 0, 50),
        (B, 0, 0, 1),
        (B, 1, 1, 11),  # it was given to the first at the beginning
    ]


class _Late(FirstComeFirstServed):
    """Gives nothing before a time, and asks to be woken then."""

    until_s = 7.0
    now_s = 0.0

    def next(self, now_s: float) -> Assignment | None:
        self.now_s = now_s
        return super().next(now_s) if now_s >= self.until_s else None

    @property
    def wake_at_s(self) -> float | None:
        return self.until_s if self.now_s < self.until_s else None


def test_a_scheduler_that_waits_is_woken() -> None:
    (record,) = simulate([job(0, 1)], fleet(), _Late()).records
    assert record.start_s == 7


class _Never(_Late):
    """Always wants to be asked again in a second."""

    def next(self, now_s: float) -> Assignment | None:
        self.now_s, self.until_s = now_s, now_s + 1
        return None


class _Mover(FirstComeFirstServed):
    """Puts all on one backend, and takes back whatever waits there."""

    def misplaced(self, now_s: float) -> list[tuple[str, BackendId]]:
        if len(self._backends) == 2:
            return []
        self.set_backend(FleetBackend(name="b").spec())
        return [("0", A), ("1", A)]

    def set_backend(self, spec: BackendSpec) -> None:
        if spec.backend != B or self._backends[A][1]:
            super().set_backend(spec)


def test_a_job_that_waits_is_taken_back_and_one_that_runs_is_not() -> None:
    backends = FleetBackend(name="a", max_concurrent=2), FleetBackend(name="b")
    run = simulate([job(0, 10), job(0, 10)], fleet(*backends), _Mover())
    assert [(each.backend, each.assigned_s, each.start_s) for each in run.records] == [(A, 0, 0), (B, 0, 0)]


@pytest.mark.parametrize("scheduler", [_Never])
def test_a_scheduler_that_leaves_a_job_waiting_for_ever_is_found_out(scheduler: type[FirstComeFirstServed]) -> None:
    with pytest.raises(Stranded, match="1 jobs wait"):
        simulate([job(0, 1)], fleet(), scheduler())
