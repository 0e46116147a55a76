"""Jobs and backends come in, and it is said which job goes where."""

from collections.abc import Sequence
from typing import Any

import pytest
from scheduling_support import enqueue, goes, going, has_run, make_scheduler, models, only, ready, teach

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import ANYWHERE, Needs
from comfyproxy.core.scheduling import scheduler as scheduler_module
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.strategies import NAMES, Candidate, Strategy, make_strategy
from comfyproxy.core.scheduling.types import Request

A, B = BackendId("a"), BackendId("b")


def there(
    scheduler: Scheduler, name: str, prompt_id: str, *, runs: bool = False, now_s: float = 0.0, **job: Any
) -> None:
    """Let a backend have a job."""
    scheduler.adopt(Request(prompt_id=prompt_id, **job), BackendId(name), now_s)
    if runs:
        scheduler.started(prompt_id, now_s)


# A job's way


def test_a_job_waits_until_it_goes_out() -> None:
    scheduler = make_scheduler("least_loaded", "a")
    assert (scheduler.next(0.0), len(scheduler), scheduler.wake_at_s) == (None, 0, None)
    enqueue(scheduler, "p")
    enqueue(scheduler, "q")
    assert (len(scheduler), "p" in scheduler) == (2, True)
    found = scheduler.next(0.0)
    assert found is not None
    assert (found.prompt_id, found.backend, found.why) == ("p", "a", "its turn")
    assert (len(scheduler), "p" in scheduler, scheduler.next(0.0)) == (1, False, None)
    scheduler.withdraw("q")
    scheduler.withdraw("q")
    assert len(scheduler) == 0


def test_one_that_is_put_in_again_waits_once_with_what_is_said_last() -> None:
    scheduler = make_scheduler("least_loaded", "a", "b")
    enqueue(scheduler, "p", needs=Needs(pinned=A))
    enqueue(scheduler, "q", needs=Needs(pinned=B))
    enqueue(scheduler, "p", needs=Needs(pinned=B))
    assert len(scheduler) == 2
    assert going(scheduler) == [("p", "b")]


@pytest.mark.parametrize("strategy", NAMES)
def test_one_that_is_put_in_again_keeps_its_turn(strategy: str) -> None:
    scheduler = make_scheduler(strategy, "a", "b")
    for prompt_id in ("p", "q", "r"):
        enqueue(scheduler, prompt_id, needs=models("m"))
    enqueue(scheduler, "p", excluded=frozenset({B}), needs=models("m"))
    assert goes(scheduler) == ("p", "a")


def test_a_job_that_is_on_a_backend_takes_a_slot_until_it_leaves() -> None:
    scheduler = make_scheduler("least_loaded", "a")
    there(scheduler, "a", "x")
    there(scheduler, "a", "x")
    enqueue(scheduler, "p")
    assert goes(scheduler) is None
    scheduler.released("x")
    scheduler.released("x")
    assert goes(scheduler) == ("p", "a")
    scheduler.finished("p", 1.0)
    scheduler.finished("p", 1.0)
    enqueue(scheduler, "q")
    assert goes(scheduler) == ("q", "a")


def test_one_that_turns_out_to_be_on_a_backend_waits_no_longer() -> None:
    scheduler = make_scheduler("least_loaded", "a", "b")
    enqueue(scheduler, "p")
    there(scheduler, "b", "p")
    assert (len(scheduler), goes(scheduler)) == (0, None)
    there(scheduler, "a", "p")
    enqueue(scheduler, "q")
    assert goes(scheduler) == ("q", "b")
    there(scheduler, "gone", "r")
    scheduler.finished("r", 1.0)


def test_one_that_went_out_is_there_already() -> None:
    scheduler = make_scheduler("least_loaded", "a", max_concurrent=2)
    enqueue(scheduler, "p")
    assert goes(scheduler) == ("p", "a")
    there(scheduler, "a", "p")
    enqueue(scheduler, "q")
    enqueue(scheduler, "r")
    assert going(scheduler) == [("q", "a")]


@pytest.mark.parametrize("strategy", NAMES)
def test_what_came_back_without_having_run_was_no_service(strategy: str) -> None:
    scheduler = make_scheduler(strategy, "a")
    for client in ("x", "y"):
        for number in range(10):
            enqueue(scheduler, f"{client}{number}", client=client, number=float(number))
    for _ in range(20):
        there(scheduler, "a", "x", client="x")
        scheduler.released("x")
    order = ""
    for _ in range(8):
        went = goes(scheduler)
        assert went is not None
        order += went[0][0]
        scheduler.finished(went[0], 0.0)
    assert order.count("x") >= 3


@pytest.mark.parametrize("strategy", NAMES)
def test_what_runs_already_was_service(strategy: str) -> None:
    scheduler = make_scheduler(strategy, "a", "b")
    there(scheduler, "a", "before", client="x", runs=True)
    enqueue(scheduler, "x", client="x", number=-1.0)
    enqueue(scheduler, "y", client="y")
    assert goes(scheduler, 1_000.0) == ("y", "b")


def test_a_client_is_charged_what_its_job_took_and_not_what_was_expected() -> None:
    scheduler = make_scheduler("round_robin", "a")
    now_s = 0.0
    for client in ("long", "short"):
        for number in range(60):
            enqueue(scheduler, f"{client}{number}", client=client, number=float(number), kind=client)
    seconds = {"long": 0.0, "short": 0.0}
    while now_s < 600.0:
        went = goes(scheduler, now_s)
        assert went is not None
        client = went[0].rstrip("0123456789")
        took_s = 40.0 if client == "long" else 10.0
        scheduler.started(went[0], now_s)
        now_s += took_s
        scheduler.finished(went[0], now_s)
        seconds[client] += took_s
    assert abs(seconds["long"] - seconds["short"]) <= 80.0


# What is learned


def test_it_learns_from_what_ran_to_its_end_alone() -> None:
    scheduler = make_scheduler("least_loaded", "a", max_concurrent=9)
    has_run(scheduler, "a", run_s=3.0, kind="k")
    assert scheduler.durations.run_s("k", A) == 3.0
    there(scheduler, "a", "cut short", runs=True, kind="k")
    scheduler.finished("cut short", 1.0, is_typical=False)
    there(scheduler, "a", "taken back", runs=True, kind="k")
    scheduler.released("taken back")
    there(scheduler, "a", "not seen to start", kind="k")
    scheduler.finished("not seen to start", 50.0)
    assert scheduler.durations.run_s("k", A) == 3.0


def test_a_start_counts_once() -> None:
    scheduler = make_scheduler("least_loaded", "a")
    there(scheduler, "a", "p", kind="k")
    scheduler.started("p", 10.0)
    scheduler.started("p", 14.0)
    scheduler.started("unheard of", 14.0)
    scheduler.finished("p", 15.0)
    assert scheduler.durations.run_s("k", A) == 5.0


def test_loading_is_what_it_takes_longer_where_the_models_are_not_held() -> None:
    scheduler = make_scheduler("least_loaded", "a")
    needs = models("m")
    for number in range(20):
        has_run(scheduler, "a", run_s=35.0, needs=needs, kind="k", prompt_id=f"cold{number}")
        has_run(scheduler, "a", run_s=5.0, needs=needs, kind="k", prompt_id=f"hot{number}")
        scheduler.restarted(A)
    assert scheduler.durations.run_s("k", A) == pytest.approx(5.0)
    assert scheduler.durations.load_s(needs.models, A) == pytest.approx(30.0, rel=0.1)


def test_who_is_not_configured_any_more_gets_nothing_and_its_speed_is_forgotten() -> None:
    scheduler = make_scheduler("least_loaded", "a", "b")
    scheduler.remove_backend(A)
    scheduler.remove_backend(A)
    for change in (scheduler.restarted, lambda name: scheduler.set_ready(name, True)):
        change(A)
    scheduler.set_foreign(A, 3)
    enqueue(scheduler, "p")
    enqueue(scheduler, "q")
    assert going(scheduler) == [("p", "b")]
    ready(scheduler, "a")
    assert going(scheduler) == [("q", "a")]


def test_only_so_many_clients_homes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "REMEMBERED_CLIENTS", 2)
    scheduler = make_scheduler("least_loaded", *"abcd")
    for client, name in (("x", "a"), ("y", "b"), ("z", "c")):
        there(scheduler, name, f"{client}0", client=client)
        scheduler.finished(f"{client}0", 1.0)
    assert scheduler.choose(Request(prompt_id="p", client="y")) == "b"
    assert scheduler.choose(Request(prompt_id="p", client="x")) == "d"


# Other words on backends


def test_a_change_of_strategy_keeps_what_waits_and_what_was_learned() -> None:
    scheduler = Scheduler(make_strategy("least_loaded"))
    for name, priority in (("a", 2), ("b", 1)):
        ready(scheduler, name, priority=priority, max_concurrent=2)
    there(scheduler, "b", "x")
    has_run(scheduler, "a", run_s=3.0, kind="k")
    for number in range(4):
        enqueue(scheduler, f"p{number}", number=float(number))
    assert goes(scheduler) == ("p0", "a")
    scheduler.use(make_strategy("priority_based"))
    assert (len(scheduler), scheduler.durations.run_s("k", A)) == (3, 3.0)
    assert going(scheduler) == [("p1", "b"), ("p2", "a")]


@pytest.mark.parametrize("before", NAMES)
@pytest.mark.parametrize("after", NAMES)
def test_any_strategy_takes_over_from_any_other_while_jobs_wait(before: str, after: str) -> None:
    scheduler = make_scheduler(before, "a", "b", max_concurrent=2)
    for number in range(10):
        enqueue(scheduler, f"p{number}", number=float(number), needs=models(f"m{number % 3}"))
    went = going(scheduler)
    scheduler.use(make_strategy(after))
    now_s = 0.0
    for _ in range(100):
        now_s += 20.0
        for prompt_id, _ in went:
            scheduler.finished(prompt_id, now_s)
        went = going(scheduler, now_s)
        if not went:
            break
    assert len(scheduler) == 0


def test_other_ageing_is_worth_something_to_those_that_come_after() -> None:
    scheduler = make_scheduler("round_robin", "a", ageing_s=0.0)
    scheduler.use(make_strategy("round_robin"), ageing_s=1_000.0)
    enqueue(scheduler, "normal", client="x")
    enqueue(scheduler, "urgent", client="y", priority=1)
    assert goes(scheduler) == ("urgent", "a")


def test_strangers_prompts_leave_less_room_but_never_none_for_us() -> None:
    scheduler = make_scheduler("least_loaded", "a", max_concurrent=3)
    scheduler.set_foreign(A, 2)
    for number in range(3):
        enqueue(scheduler, f"p{number}")
    assert going(scheduler) == [("p0", "a")]
    scheduler.finished("p0", 1.0)
    scheduler.set_foreign(A, 50)
    assert going(scheduler) == [("p1", "a")]
    scheduler.set_foreign(A, 0)
    assert going(scheduler) == [("p2", "a")]


def test_a_backend_that_is_not_ready_gets_nothing() -> None:
    scheduler = make_scheduler("least_loaded", "a")
    scheduler.set_ready(A, False)
    enqueue(scheduler, "p")
    assert goes(scheduler) is None
    scheduler.set_ready(A, True)
    assert goes(scheduler) == ("p", "a")


def test_what_a_backend_can_run_may_change_while_jobs_wait() -> None:
    scheduler = Scheduler(make_strategy("least_loaded"))
    ready(scheduler, "a", can=only("X"))
    ready(scheduler, "b", can=only("X", "Y"))
    scheduler.set_ready(B, False)
    enqueue(scheduler, "p", needs=Needs(classes=frozenset("Y")))
    assert goes(scheduler) is None
    ready(scheduler, "a", can=only("Y"))
    assert goes(scheduler) == ("p", "a")


def test_questions_change_nothing() -> None:
    scheduler = Scheduler(make_strategy("least_loaded"))
    ready(scheduler, "a", can=only("X"))
    ready(scheduler, "b", can=only("Y"))
    needs = Needs(classes=frozenset("Y"))
    for _ in range(3):
        assert scheduler.able(needs) == {"b"}
        assert scheduler.able(ANYWHERE, [A]) == {"b"}
        assert scheduler.able(ANYWHERE) == {"a", "b"}
        assert scheduler.choose(Request(prompt_id="p", needs=needs)) == "b"
        assert scheduler.choose(Request(prompt_id="p")) == "a"
        assert scheduler.choose(Request(prompt_id="p", needs=Needs(pinned=BackendId("c")))) is None
    assert len(scheduler) == 0


# Jobs that wait on one backend while another has nothing to do


@pytest.mark.parametrize("strategy", ["least_loaded", "weighted", "model_affinity"])
def test_the_last_of_a_full_backend_is_misplaced_when_another_has_nothing_to_do(strategy: str) -> None:
    scheduler = make_scheduler(strategy, "a", "b", max_concurrent=3)
    scheduler.set_ready(B, False)
    there(scheduler, "a", "runs", runs=True)
    there(scheduler, "a", "waits")
    assert scheduler.misplaced(0.0) == []
    scheduler.set_ready(B, True)
    assert scheduler.misplaced(0.0) == [("waits", "a")]
    assert scheduler.misplaced(0.0) == [("waits", "a")]
    scheduler.released("waits")
    enqueue(scheduler, "waits")
    assert goes(scheduler) == ("waits", "b")
    assert scheduler.misplaced(0.0) == []


def test_one_idle_backend_relieves_one() -> None:
    scheduler = make_scheduler("least_loaded", *"abc", max_concurrent=3)
    for name in "ab":
        there(scheduler, name, f"{name}1", runs=True)
        there(scheduler, name, f"{name}2")
    assert scheduler.misplaced(0.0) == [("a2", "a")]
    scheduler.released("a1")
    assert scheduler.misplaced(0.0) == [("b2", "b")]


def test_what_runs_is_not_misplaced_nor_what_the_idle_one_cannot_run() -> None:
    scheduler = make_scheduler("least_loaded", "a", "b", max_concurrent=3)
    there(scheduler, "a", "runs", runs=True)
    there(scheduler, "a", "runs too", runs=True)
    assert scheduler.misplaced(0.0) == []
    there(scheduler, "a", "pinned", needs=Needs(pinned=A))
    assert scheduler.misplaced(0.0) == []
    there(scheduler, "a", "not there", excluded=frozenset({B}))
    assert scheduler.misplaced(0.0) == []


def test_what_waits_behind_a_stranger_is_misplaced() -> None:
    scheduler = make_scheduler("least_loaded", "a", "b", max_concurrent=3)
    there(scheduler, "a", "p")
    scheduler.set_foreign(A, 1)
    assert scheduler.misplaced(0.0) == [("p", "a")]


def test_nothing_is_moved_for_a_moment_nor_to_load_for_longer_than_it_would_wait() -> None:
    scheduler = make_scheduler("model_affinity", "a", "b", max_concurrent=3)
    needs = models("m")
    for number in range(20):
        has_run(scheduler, "a", run_s=35.0, needs=needs, kind="k", prompt_id=f"cold{number}")
        has_run(scheduler, "a", run_s=5.0, needs=needs, kind="k", prompt_id=f"hot{number}")
        scheduler.restarted(A)
    has_run(scheduler, "a", run_s=35.0, needs=needs, kind="k")
    there(scheduler, "a", "runs", runs=True, now_s=100.0, needs=needs, kind="k")
    there(scheduler, "a", "waits", now_s=100.0, needs=needs, kind="k")
    assert scheduler.misplaced(100.0) == []
    for number in range(9):
        there(scheduler, "a", f"before{number}", now_s=100.0, needs=needs, kind="k")
    assert [name for _, name in scheduler.misplaced(100.0)] == ["a"]


def test_a_strategy_that_would_not_send_it_to_the_idle_one_leaves_it() -> None:
    scheduler = Scheduler(make_strategy("priority_based"))
    ready(scheduler, "a", priority=1, max_concurrent=3)
    ready(scheduler, "b", priority=2, max_concurrent=3)
    there(scheduler, "a", "runs", runs=True)
    there(scheduler, "a", "waits")
    assert scheduler.misplaced(0.0) == []
    there(scheduler, "b", "other", runs=True)
    there(scheduler, "b", "misplaced")
    scheduler.finished("runs", 10.0)
    scheduler.finished("waits", 20.0)
    assert scheduler.misplaced(0.0) == [("misplaced", "b")]


class Warm:
    """Lets clients stay where they are; others go to the emptiest."""

    def rank(self, job: Request, candidates: Sequence[Candidate]) -> Sequence[BackendId]:
        return [each.backend for each in sorted(candidates, key=lambda each: (not each.is_warm, each.load))]


@pytest.mark.parametrize("strategy", [Warm(), make_strategy("weighted"), make_strategy("priority_based")])
def test_nothing_is_taken_back_that_would_go_where_it_was(strategy: Strategy) -> None:
    scheduler = Scheduler(strategy)
    ready(scheduler, "a", max_concurrent=2, weight=2.0, priority=1)
    there(scheduler, "a", "runs", runs=True, client="x")
    there(scheduler, "a", "waits", client="x")
    ready(scheduler, "b", weight=1.0, priority=2)
    assert scheduler.misplaced(0.0) == []
    scheduler.released("waits")
    enqueue(scheduler, "waits", client="x")
    assert goes(scheduler) == ("waits", "a")
    scheduler.set_foreign(A, 2)  # now there is no room for it to come back to
    assert scheduler.misplaced(0.0) == [("waits", "a")]
    scheduler.set_foreign(A, 0)
    scheduler.set_ready(A, False)
    assert scheduler.misplaced(0.0) == [("waits", "a")]


@pytest.mark.parametrize("strategy", ["least_loaded", "model_affinity"])
def test_a_job_behind_one_that_is_late_is_moved_to_an_idle_backend(strategy: str) -> None:
    scheduler = make_scheduler(strategy, "a", "b", max_concurrent=2)
    teach(scheduler, run_s=10.0, load_s=0.0, backends="ab")
    scheduler.adopt(Request(prompt_id="late"), BackendId("a"), 0.0)
    scheduler.started("late", 0.0)
    scheduler.adopt(Request(prompt_id="p"), BackendId("a"), 0.0)
    assert scheduler.misplaced(200.0) == [("p", "a")]
    scheduler.released("p")
    enqueue(scheduler, "p", now_s=200.0)
    assert goes(scheduler, 200.0) == ("p", "b")
    assert scheduler.misplaced(200.0) == []
