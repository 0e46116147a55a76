"""A job goes where its models are, and nobody pays for that without end."""

from typing import Any

import pytest
from scheduling_support import World, enqueue, goes, going, has, holds, make_scheduler, models, only, ready, teach

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.types import MaxBypass, Request

A, B = BackendId("a"), BackendId("b")
RUN_S, LOAD_S = 10.0, 30.0


def fleet(
    names: str, *, max_concurrent: int = 1, run_s: float = RUN_S, load_s: float = LOAD_S, **options: Any
) -> Scheduler:
    """Return a scheduler that knows how long `m`, `n` and `o` take to load."""
    scheduler = make_scheduler("model_affinity", *names, max_concurrent=max_concurrent, **options)
    teach(scheduler, "m", "n", "o", run_s=run_s, load_s=load_s, backends=names)
    return scheduler


def world_of(scheduler: Scheduler, **held: str) -> World:
    """Return backends that hold models; the scheduler knows."""
    world = World(scheduler, run_s=RUN_S, load_s=LOAD_S)
    for name, model in held.items():
        holds(scheduler, name, model)
        world._held[BackendId(name)] = frozenset({model})
    return world


# Held models


def test_every_job_goes_where_its_models_are() -> None:
    scheduler = fleet("abc")
    holds(scheduler, "b", "m")
    holds(scheduler, "c", "n")
    for prompt_id, model in (("p", "n"), ("q", "m"), ("r", "o")):
        enqueue(scheduler, prompt_id, needs=models(model), client=prompt_id)
    assert sorted(going(scheduler)) == [("p", "c"), ("q", "b"), ("r", "a")]


def test_models_are_the_same_only_if_all_are() -> None:
    scheduler = fleet("ab")
    holds(scheduler, "a", "m")
    holds(scheduler, "b", "m", "n")
    enqueue(scheduler, "p", needs=models("m", "n"))
    assert goes(scheduler) == ("p", "b")


def test_what_a_restart_has_emptied_holds_nothing() -> None:
    scheduler = fleet("ab")
    holds(scheduler, "b", "m")
    scheduler.restarted(B)
    enqueue(scheduler, "p", needs=models("m"))
    assert goes(scheduler) == ("p", "a")


def test_most_jobs_find_their_models_loaded() -> None:
    world = world_of(fleet("abcd"))
    for number in range(200):
        world.submit(f"p{number}", client=str(number % 5), needs=models("mno"[number % 3]), number=float(number))
    world.run()
    assert len(world.ended) == 200
    by_hand = 200 / 4 * RUN_S
    assert world.now_s < 1.5 * by_hand


def test_a_held_model_is_no_reason_to_go_where_a_job_must_not() -> None:
    scheduler = fleet("ab")
    holds(scheduler, "a", "m")
    enqueue(scheduler, "p", needs=models("m"), excluded=frozenset({A}))
    enqueue(scheduler, "q", needs=models("m", pinned=B), number=1.0)
    assert going(scheduler) == [("p", "b")]


def test_a_job_without_models_goes_at_once_and_leaves_all_memory_as_it_is() -> None:
    scheduler = fleet("ab")
    holds(scheduler, "a", "m")
    enqueue(scheduler, "p")
    enqueue(scheduler, "q")
    assert sorted(name for _, name in going(scheduler)) == ["a", "b"]
    for prompt_id in ("p", "q"):
        scheduler.started(prompt_id, 0.0)
        scheduler.finished(prompt_id, RUN_S)
    enqueue(scheduler, "r", needs=models("m"))
    assert goes(scheduler, RUN_S) == ("r", "a")


def test_what_is_often_asked_for_stays_in_memory() -> None:
    scheduler = fleet("ab")
    for name, model in (("a", "m"), ("b", "n")):
        holds(scheduler, name, model)
    now_s = 0.0
    for number in range(30):
        enqueue(scheduler, f"p{number}", needs=models("m"), now_s=now_s)
        assert goes(scheduler, now_s) == (f"p{number}", "a")
        scheduler.started(f"p{number}", now_s)
        now_s += RUN_S
        scheduler.finished(f"p{number}", now_s)
    holds(scheduler, "b", "n", now_s=now_s)  # used last: by turn it would be the other's
    enqueue(scheduler, "new", needs=models("o"), now_s=now_s)
    assert goes(scheduler, now_s) == ("new", "b")


def test_what_was_asked_for_and_withdrawn_is_not_worth_keeping() -> None:
    scheduler = fleet("ab")
    for name, model in (("a", "m"), ("b", "n")):
        holds(scheduler, name, model)
    for number in range(300):
        enqueue(scheduler, f"p{number}", needs=models("m"), now_s=float(number))
        scheduler.withdraw(f"p{number}")
    enqueue(scheduler, "new", needs=models("o"), now_s=300.0)
    assert goes(scheduler, 300.0) == ("new", "a")


# Equals


def test_of_backends_that_hold_the_models_the_clients_last_one_is_taken() -> None:
    scheduler = fleet("ab")
    holds(scheduler, "a", "m")
    has(scheduler, "b", "last", client="x", needs=models("m"))
    scheduler.finished("last", RUN_S)
    enqueue(scheduler, "p", client="x", needs=models("m"))
    assert goes(scheduler) == ("p", "b")
    scheduler.released("p")
    enqueue(scheduler, "q", client="y", needs=models("m"))
    assert goes(scheduler) == ("q", "a")


def test_of_backends_that_take_about_as_long_the_clients_last_one_is_taken_and_else_the_longest_unused() -> None:
    scheduler = fleet("abc")
    teach(scheduler, run_s=RUN_S * 1.02, load_s=0.0, backends="b", kind="")
    for name, client in zip("cab", "zyx", strict=True):
        has(scheduler, name, client, client=client)
        scheduler.finished(client, RUN_S)
    assert [scheduler.would_go_to(Request(prompt_id="p", client=client), 0.0) for client in "xyz"] == [B, A, "c"]
    assert scheduler.would_go_to(Request(prompt_id="p", client="new"), 0.0) == "c"


def test_of_others_the_faster_one_is_taken_whomever_the_client_knows() -> None:
    scheduler = fleet("ab")
    teach(scheduler, run_s=RUN_S * 2, load_s=0.0, backends="b")
    has(scheduler, "b", "last", client="x")
    scheduler.finished("last", RUN_S)
    assert scheduler.would_go_to(Request(prompt_id="p", client="x"), 0.0) == A


# Loading for many


@pytest.mark.parametrize(("asked", "where"), [(1, A), (60, B)])
def test_a_load_costs_each_the_less_the_more_it_is_likely_to_serve(asked: int, where: BackendId) -> None:
    scheduler = fleet("ab")
    teach(scheduler, run_s=RUN_S * 2, load_s=0.0, backends="a", kind="slow on a")
    teach(scheduler, run_s=RUN_S, load_s=0.0, backends="b", kind="slow on a")
    for number in range(asked):
        enqueue(scheduler, f"p{number}", needs=models("m"))
        went = scheduler.next(0.0)
        assert went is not None
        scheduler.started(went.prompt_id, 0.0)
        scheduler.finished(went.prompt_id, 0.0, is_typical=False)
        scheduler.restarted(went.backend)
    holds(scheduler, "a", "m")
    assert scheduler.would_go_to(Request(prompt_id="q", needs=models("m"), kind="slow on a"), 0.0) == where


# Waiting for a backend that holds the models


def test_a_job_waits_for_a_busy_holder_that_is_done_sooner_than_loading() -> None:
    scheduler = fleet("ab")
    holds(scheduler, "a", "m")
    has(scheduler, "a", "x", needs=models("m"))
    enqueue(scheduler, "p", needs=models("m"))
    assert goes(scheduler) is None
    assert scheduler.wake_at_s is not None
    scheduler.finished("x", RUN_S)
    assert goes(scheduler, RUN_S) == ("p", "a")


def test_it_waits_no_longer_than_loading_takes() -> None:
    scheduler = fleet("ab")
    holds(scheduler, "a", "m")
    has(scheduler, "a", "x", needs=models("m"))
    enqueue(scheduler, "p", needs=models("m"))
    now_s = 0.0
    while (went := goes(scheduler, now_s)) is None:
        assert scheduler.wake_at_s is not None
        assert scheduler.wake_at_s > now_s
        now_s = scheduler.wake_at_s
    assert went == ("p", "b")
    assert now_s == pytest.approx(LOAD_S, rel=0.01)


def test_it_does_not_wait_for_one_that_is_busy_for_longer_than_loading_takes() -> None:
    scheduler = fleet("ab")
    teach(scheduler, run_s=100.0, load_s=0.0, kind="long")
    holds(scheduler, "a", "m")
    has(scheduler, "a", "x", needs=models("m"), kind="long")
    enqueue(scheduler, "p", needs=models("m"))
    assert goes(scheduler) == ("p", "b")


def test_it_does_not_wait_for_one_that_is_away() -> None:
    scheduler = fleet("ab")
    holds(scheduler, "a", "m")
    has(scheduler, "a", "x", needs=models("m"))
    scheduler.set_ready(A, False)
    enqueue(scheduler, "p", needs=models("m"))
    assert goes(scheduler) == ("p", "b")


def test_where_nothing_holds_the_models_it_goes_at_once() -> None:
    scheduler = fleet("ab")
    has(scheduler, "a", "x", needs=models("n"))
    enqueue(scheduler, "p", needs=models("m"))
    assert goes(scheduler) == ("p", "b")


def test_an_idle_backend_loads_what_much_work_waits_for() -> None:
    scheduler = fleet("ab")
    holds(scheduler, "a", "m")
    for number in range(50):
        enqueue(scheduler, f"p{number}", needs=models("m"), number=float(number))
    assert sorted(name for _, name in going(scheduler)) == ["a", "b"]


def test_it_does_not_for_what_the_holder_is_through_with_before() -> None:
    scheduler = fleet("ab")
    holds(scheduler, "a", "m")
    enqueue(scheduler, "p", needs=models("m"))
    enqueue(scheduler, "q", needs=models("m"), number=1.0)
    assert going(scheduler) == [("p", "a")]


# Being passed over


def passed_over(world: World, prompt_id: str, *, since: int = 0) -> list[tuple[float, str]]:
    """Return who went, and when, until a job did."""
    order = [(at_s, each.prompt_id) for at_s, each in world.went[since:]]
    names = [name for _, name in order]
    return order[: names.index(prompt_id)]


def test_no_more_go_before_a_clients_job_than_the_bound_allows() -> None:
    world = world_of(fleet("a", max_bypass=MaxBypass(count=4, seconds=1e6)), a="m")
    world.submit("first", needs=models("n"))
    world.submit_many("p", 50, needs=models("m"))
    world.run()
    assert len(passed_over(world, "first")) == 4


def test_nor_for_longer_than_the_bound_allows() -> None:
    world = world_of(fleet("a", max_bypass=MaxBypass(count=1_000, seconds=55.0)), a="m")
    world.submit("first", number=-1.0, needs=models("n"))
    world.submit_many("p", 50, needs=models("m"))
    world.run()
    times = [at_s for at_s, _ in passed_over(world, "first")]
    assert len(times) > 1
    assert times[-1] - times[0] < 55.0
    went_at_s = next(at_s for at_s, each in world.went if each.prompt_id == "first")
    assert went_at_s <= times[0] + 55.0 + RUN_S


def test_nothing_is_passed_over_where_that_is_forbidden() -> None:
    for bounds in (MaxBypass(count=0), MaxBypass(count=1, seconds=0.0)):
        world = world_of(fleet("a", max_bypass=bounds), a="m")
        world.submit("first", number=-1.0, needs=models("n"))
        world.submit_many("p", 5, needs=models("m"))
        world.run()
        assert len(passed_over(world, "first")) == bounds.count


def test_one_that_waits_for_a_busy_holder_is_passed_over_no_more_often_than_the_bound_allows() -> None:
    scheduler = fleet("ab", max_bypass=MaxBypass(count=4))
    teach(scheduler, run_s=1.0, load_s=0.0, backends="ab", kind="short")
    holds(scheduler, "a", "n")
    has(scheduler, "a", "x", needs=models("n"))
    enqueue(scheduler, "first", needs=models("n"), number=-1.0)
    for number in range(20):
        enqueue(scheduler, f"p{number}", number=float(number), kind="short")
    order = []
    for second in range(20):
        for prompt_id, name in going(scheduler, float(second)):
            order.append(prompt_id)
            assert name == "b"
            scheduler.started(prompt_id, float(second))
            scheduler.finished(prompt_id, second + 1.0)
    assert order.index("first") <= 4


def test_one_that_was_passed_over_long_enough_passes_over_nobody_itself() -> None:
    scheduler = fleet("ab", max_bypass=MaxBypass(count=0))
    ready(scheduler, "a", can=only("X"))
    ready(scheduler, "b", can=only("X", "Y"))
    holds(scheduler, "a", "m")
    enqueue(scheduler, "only there", needs=models("m", classes=frozenset("Y")))
    enqueue(scheduler, "anywhere")
    enqueue(scheduler, "last", needs=models("m"), number=1.0)
    assert sorted(going(scheduler)) == [("anywhere", "a"), ("only there", "b")]


def test_other_bounds_hold_at_once_for_what_waits() -> None:
    scheduler = fleet("a")
    world = world_of(scheduler, a="m")
    world.submit("first", number=-1.0, needs=models("n"))
    world.submit_many("p", 50, needs=models("m"))
    world.run(until=lambda: len(world.went) == 3)
    scheduler.use(scheduler._strategy, max_bypass=MaxBypass(count=0))
    world.run()
    assert len(passed_over(world, "first")) == 3


@pytest.mark.parametrize("names", ["a", "abcd"])
def test_another_clients_only_job_is_passed_over_by_about_one_prompt_per_backend(names: str) -> None:
    world = world_of(fleet(names), **dict.fromkeys(names, "m"))
    world.submit_many("many", 500, client="many", needs=models("m"))
    world.run(until=lambda: len(world.ended) >= 10)
    before = len(world.went)
    world.submit("one", client="one", needs=models("n"))
    world.run()
    assert len(passed_over(world, "one", since=before)) <= len(names) + 1


def test_clients_with_different_models_share_the_time_all_the_same() -> None:
    world = world_of(fleet("a"))
    for client, model in (("x", "m"), ("y", "n")):
        world.submit_many(client, 300, client=client, needs=models(model))
    world.run(until=lambda: len(world.ended) >= 300)
    done = {client: sum(name.startswith(client) for name in world.ended) for client in "xy"}
    assert min(done.values()) >= 100
    changes = [world.order()[place][0] != world.order()[place + 1][0] for place in range(len(world.went) - 1)]
    assert sum(changes) <= 30


def test_who_has_much_that_waits_for_what_is_away_is_passed_over_no_more_than_others() -> None:
    world = world_of(fleet("a", max_bypass=MaxBypass(count=4)), a="m")
    for number in range(100):
        world.submit(f"stuck{number}", client="x", needs=models(str(number), pinned=BackendId("away")))
    world.submit("one", client="x", number=1.0, needs=models("n"))
    world.submit_many("many", 50, client="y", needs=models("m"))
    world.run()
    assert len(passed_over(world, "one")) <= 4


# Late binding


def test_a_busy_backend_gets_its_next_job_only_shortly_before_it_is_done() -> None:
    scheduler = fleet("a", max_concurrent=2)
    has(scheduler, "a", "x")
    enqueue(scheduler, "p")
    assert goes(scheduler) is None
    wake_at_s = scheduler.wake_at_s
    assert wake_at_s is not None
    assert RUN_S / 2 <= wake_at_s < RUN_S
    assert goes(scheduler, wake_at_s - 0.01) is None
    assert goes(scheduler, wake_at_s) == ("p", "a")


@pytest.mark.parametrize("ends", ["unknown", "uneven", "loading"])
def test_it_gets_none_ahead_while_nobody_knows_when_it_will_be_done(ends: str) -> None:
    scheduler = fleet("a", max_concurrent=2)
    for run_s in (5.0, 15.0) * 10:
        scheduler.durations.observe("uneven", frozenset(), A, run_s, is_cold=False)
    has(scheduler, "a", "x", kind="" if ends == "loading" else ends, needs=models("m" if ends == "loading" else ""))
    enqueue(scheduler, "p")
    assert [goes(scheduler, now_s) for now_s in (0.0, RUN_S, RUN_S + LOAD_S, 1_000.0)] == [None] * 4
    assert scheduler.wake_at_s is None
    scheduler.finished("x", 1_000.0)
    assert goes(scheduler, 1_000.0) == ("p", "a")


def test_until_then_another_may_be_free_first() -> None:
    scheduler = fleet("ab", max_concurrent=2)
    for prompt_id, name in (("x", "a"), ("y", "b")):
        has(scheduler, name, prompt_id)
    enqueue(scheduler, "p")
    assert goes(scheduler) is None
    scheduler.finished("y", 3.0)
    assert goes(scheduler, 3.0) == ("p", "b")


def test_no_backend_is_without_work_for_long_while_jobs_wait() -> None:
    world = world_of(fleet("ab", max_concurrent=2))
    world.submit_many("p", 40)
    world.run()
    assert world.now_s == pytest.approx(40 / 2 * RUN_S)


@pytest.mark.parametrize("max_concurrent", [1, 2])
def test_a_server_that_others_use_all_the_time_runs_jobs_of_ours(max_concurrent: int) -> None:
    scheduler = fleet("a", max_concurrent=max_concurrent)
    scheduler.set_foreign(A, 3)
    enqueue(scheduler, "p", needs=models("m"))
    assert any(goes(scheduler, float(second)) is not None for second in range(1_000))


def test_what_was_bound_to_spare_what_another_holds_is_not_misplaced() -> None:
    scheduler = fleet("ab", max_concurrent=2)
    for _ in range(40):  # loads `o` in less time than the other
        scheduler.durations.observe("", frozenset("o"), A, RUN_S + LOAD_S / 2, is_cold=True)
    for model, name in (("m", "a"), ("n", "b")):
        holds(scheduler, name, model)
    now_s = 0.0
    for number in range(30):
        enqueue(scheduler, f"m{number}", needs=models("m"), now_s=now_s)
        assert goes(scheduler, now_s) == (f"m{number}", "a")
        scheduler.started(f"m{number}", now_s)
        now_s += RUN_S
        scheduler.finished(f"m{number}", now_s)
    has(scheduler, "b", "x", needs=models("n"), now_s=now_s)
    now_s += RUN_S
    enqueue(scheduler, "new", needs=models("o"), now_s=now_s)
    assert goes(scheduler, now_s) == ("new", "b")
    assert scheduler.misplaced(now_s) == []


def test_nobody_is_woken_for_what_has_no_room() -> None:
    scheduler = fleet("ab")
    for prompt_id, name in (("x", "a"), ("y", "b")):
        has(scheduler, name, prompt_id, needs=models("m"))
    scheduler.released("y")
    enqueue(scheduler, "p", needs=models("m"))
    enqueue(scheduler, "q", needs=models("n"), client="d")
    assert [name for _, name in going(scheduler)] == ["b"]
    assert scheduler.wake_at_s is None


def test_jobs_that_only_a_distant_backend_can_run_go_there() -> None:
    names = [f"b{number:02}" for number in range(40)]
    scheduler = make_scheduler("model_affinity", *names, max_concurrent=2)
    for number, name in enumerate(names):
        enqueue(scheduler, name, client=str(number), needs=Needs(models=frozenset({"m"}), pinned=BackendId(name)))
    assert sorted(going(scheduler)) == [(name, name) for name in names]


def test_a_backend_that_comes_late_is_used() -> None:
    world = world_of(fleet("a"))
    world.submit_many("p", 60, needs=models("m"))
    world.run(until=lambda: len(world.ended) >= 5)
    ready(world.scheduler, "b")
    world.run()
    assert sum(name == "b" for name in world.where().values()) >= 20
