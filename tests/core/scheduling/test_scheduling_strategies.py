"""The strategies by their names, and such as a plugin brings along."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling_support import World, enqueue, goes, going, make_scheduler, models, ready

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling.scheduler import Scheduler
from comfyproxy.core.scheduling.strategies import NAMES, Candidate, make_strategy
from comfyproxy.core.scheduling.types import Request

JOB = Request(prompt_id="p")


def candidate(name: str, load: int = 0, **more: object) -> Candidate:
    return Candidate(BackendId(name), load, 4, **more)  # type: ignore[arg-type]


def ranked(strategy: str, *candidates: Candidate) -> str:
    return "".join(make_strategy(strategy).rank(JOB, candidates))


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    names = draw(st.lists(st.text("abcdefgh", min_size=1, max_size=3), unique=True, max_size=6))
    return [
        candidate(
            name,
            draw(st.integers(0, 3)),
            weight=draw(st.sampled_from((0.5, 1.0, 3.0))),
            priority=draw(st.integers(1, 3)),
            last_turn=draw(st.integers(0, 9)),
            is_warm=draw(st.booleans()),
        )
        for name in names
    ]


# By name


def test_there_is_no_strategy_of_another_name() -> None:
    assert set(NAMES) == {"model_affinity", "least_loaded", "round_robin", "weighted", "priority_based"}
    with pytest.raises(KeyError):
        make_strategy("best")


@given(st.sampled_from(NAMES), candidates())
def test_every_candidate_is_ranked_once_and_always_in_the_same_way(name: str, those: list[Candidate]) -> None:
    order = list(make_strategy(name).rank(JOB, those))
    assert sorted(order) == sorted(each.backend for each in those)
    assert order == list(make_strategy(name).rank(JOB, those))


@given(candidates())
def test_the_emptier_comes_first_and_the_warm_one_among_equals(those: list[Candidate]) -> None:
    by_name = {each.backend: each for each in those}
    order = [by_name[name] for name in make_strategy("least_loaded").rank(JOB, those)]
    keys = [(each.load, not each.is_warm, each.last_turn) for each in order]
    assert keys == sorted(keys)


def test_least_loaded_counts_all_that_is_there() -> None:
    assert ranked("least_loaded", candidate("a", 2), candidate("b", 1), candidate("c", 3)) == "bac"
    assert ranked("least_loaded", candidate("a", is_warm=True, load=1), candidate("b")) == "ba"


def test_round_robin_looks_at_nothing_but_turns() -> None:
    a, b = candidate("a", 0, last_turn=7, is_warm=True), candidate("b", 3, last_turn=6)
    assert ranked("round_robin", a, b) == "ba"


def test_weighted_looks_at_what_the_queue_would_be_for_the_weight() -> None:
    a, b, c = candidate("a", 0, weight=1.0), candidate("b", 1, weight=4.0), candidate("c", 3, weight=4.0)
    assert ranked("weighted", a, b, c) == "bac"


def test_priority_based_prefers_the_better_whatever_their_load() -> None:
    a, b, c = candidate("a", 3, priority=1), candidate("b", 0, priority=2), candidate("c", 2, priority=1)
    assert ranked("priority_based", a, b, c) == "cab"


# In the scheduler


def loaded(strategy: str, *names: str, max_concurrent: int = 3) -> Scheduler:
    return make_scheduler(strategy, *names, max_concurrent=max_concurrent)


def wheres(scheduler: Scheduler, count: int, *, client: str | None = None, prefix: str = "p") -> str:
    """Return where so many jobs go; each of its own client, unless they have one in common."""
    found = ""
    for number in range(count):
        name = f"{prefix}{number}"
        enqueue(scheduler, name, client=name if client is None else client)
        went = goes(scheduler)
        found += "-" if went is None else went[1]
    return found


@pytest.mark.parametrize("strategy", NAMES)
def test_equal_backends_take_turns_and_full_ones_get_nothing(strategy: str) -> None:
    scheduler = loaded(strategy, *"abc", max_concurrent=1)
    assert wheres(scheduler, 4) == "abc-"
    scheduler.finished("p1", 5.0)
    assert goes(scheduler, 5.0) == ("p3", "b")


def test_the_emptiest_one_gets_it() -> None:
    scheduler = loaded("least_loaded", *"abc")
    scheduler.set_foreign(BackendId("a"), 2)
    assert wheres(scheduler, 5) == "bcbca"


def test_one_after_the_other_gets_one_whatever_they_have() -> None:
    scheduler = loaded("round_robin", *"abc", max_concurrent=20)
    scheduler.set_foreign(BackendId("a"), 5)
    assert wheres(scheduler, 7) == "abcabca"
    scheduler.set_ready(BackendId("b"), False)
    assert wheres(scheduler, 4, prefix="q") == "caca"


@pytest.mark.parametrize("strategy", ["least_loaded", "weighted", "priority_based"])
def test_a_client_stays_where_it_was_among_equals(strategy: str) -> None:
    scheduler = loaded(strategy, *"abc")
    enqueue(scheduler, "x1", client="x")
    enqueue(scheduler, "y1", client="y")
    assert going(scheduler) == [("x1", "a"), ("y1", "b")]
    for prompt_id in ("x1", "y1"):
        scheduler.finished(prompt_id, 1.0)
    enqueue(scheduler, "y2", client="y")
    enqueue(scheduler, "x2", client="x")
    assert sorted(going(scheduler)) == [("x2", "a"), ("y2", "b")]


def test_those_that_name_nobody_are_not_at_home_anywhere() -> None:
    scheduler = loaded("least_loaded", *"abc", max_concurrent=1)
    assert wheres(scheduler, 1, client="") == "a"
    scheduler.finished("p0", 1.0)
    assert wheres(scheduler, 1, client="") == "b"


@pytest.mark.parametrize("weights", [(1.0, 2.0, 5.0), (1.0, 1.0), (0.5, 8.0)])
def test_a_thousand_jobs_are_shared_in_proportion_to_weight(weights: Sequence[float]) -> None:
    scheduler = Scheduler(make_strategy("weighted"))
    for name, weight in zip("abc", weights, strict=False):
        ready(scheduler, name, weight=weight, max_concurrent=1_000)
    counts = Counter(wheres(scheduler, 1_000))
    for name, weight in zip("abc", weights, strict=False):
        assert counts[name] == pytest.approx(1_000 * weight / sum(weights), abs=2)


def test_without_weights_the_faster_ones_get_more() -> None:
    scheduler = loaded("weighted", "a", "b", max_concurrent=100)
    for number in range(60):
        for name, run_s in (("a", 10.0), ("b", 30.0)):
            scheduler.adopt(Request(prompt_id=f"{name}{number}"), BackendId(name), 0.0)
            scheduler.started(f"{name}{number}", 0.0)
            scheduler.finished(f"{name}{number}", run_s)
    counts = Counter(wheres(scheduler, 80))
    assert counts["a"] == pytest.approx(60, abs=6)


def test_the_next_best_is_used_only_when_the_better_are_full() -> None:
    scheduler = Scheduler(make_strategy("priority_based"))
    for name, priority in (("worst", None), ("good", 2), ("best", 1), ("best too", 1)):
        ready(scheduler, name, priority=priority, max_concurrent=2)
    went = []
    for number in range(9):
        enqueue(scheduler, f"p{number}", client=str(number))
        found = goes(scheduler)
        went.append(None if found is None else found[1])
    assert went == ["best", "best too"] * 2 + ["good"] * 2 + ["worst"] * 2 + [None]
    scheduler.finished("p0", 1.0)
    assert goes(scheduler, 1.0) == ("p8", "best")


@pytest.mark.parametrize("strategy", NAMES)
def test_a_job_that_waits_for_another_backend_keeps_nobody_from_this_one(strategy: str) -> None:
    scheduler = loaded(strategy, "a", max_concurrent=9)
    world = World(scheduler)
    world.submit("stuck", client="x", needs=Needs(pinned=BackendId("b")))
    world.submit("behind", client="x", number=1.0)
    world.submit("other", client="y", number=2.0)
    world.run()
    assert {each.prompt_id for _, each in world.went} == {"behind", "other"}
    ready(scheduler, "b")
    assert going(scheduler, world.now_s) == [("stuck", "b")]


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("clients", [1, 100])
def test_any_number_of_jobs_that_wait_for_what_is_away_keeps_nobody_from_what_is_there(
    strategy: str, clients: int
) -> None:
    scheduler = loaded(strategy, "a", "b")
    for number in range(100):
        needs = models(str(number), pinned=BackendId("away"))
        enqueue(scheduler, f"stuck{number}", client=f"c{number % clients}", needs=needs)
    enqueue(scheduler, "p", client="c0", number=1.0)
    enqueue(scheduler, "q", client="other", number=1.0)
    assert sorted(prompt_id for prompt_id, _ in going(scheduler)) == ["p", "q"]


@pytest.mark.parametrize("strategy", NAMES)
def test_who_has_much_that_waits_for_what_is_away_gets_its_share_of_what_is_there(strategy: str) -> None:
    world = World(loaded(strategy, "a"))
    for number in range(100):
        world.submit(f"stuck{number}", client="x", needs=models(str(number), pinned=BackendId("away")))
    world.submit_many("p", 10, client="x")
    world.submit_many("q", 100, client="y")
    world.run()
    assert sum(name.startswith("p") for name in world.order()[:20]) >= 8


@pytest.mark.parametrize("strategy", NAMES)
def test_a_job_for_the_front_goes_first_however_many_sorts_of_jobs_its_client_has(strategy: str) -> None:
    scheduler = loaded(strategy, "a")
    for number in range(100):
        enqueue(scheduler, f"p{number}", client="x", number=float(number), needs=models(str(number)))
    enqueue(scheduler, "front", client="x", number=-1.0, needs=models("m"))
    assert goes(scheduler) == ("front", "a")


# Such as a plugin brings along


class Only:
    """Sends jobs of a kind to the backend of that name; others to none."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.seen: list[Candidate] = []

    def rank(self, job: Request, candidates: Sequence[Candidate]) -> Sequence[BackendId]:
        self.asked.append((job.prompt_id, tuple(str(each.backend) for each in candidates)))
        self.seen = list(candidates)
        return [each.backend for each in candidates if each.backend == job.kind]


def with_only(*names: str, max_concurrent: int = 1) -> tuple[Scheduler, Only]:
    strategy = Only()
    scheduler = Scheduler(strategy)
    for name in names:
        ready(scheduler, name, max_concurrent=max_concurrent)
    return scheduler, strategy


def test_a_backend_that_is_left_out_does_not_get_the_job() -> None:
    scheduler, _ = with_only("a", "b")
    enqueue(scheduler, "p", kind="b", client="x")
    enqueue(scheduler, "q", kind="b", client="y")
    enqueue(scheduler, "r", kind="a", client="z")
    enqueue(scheduler, "s", kind="nowhere", client="w")
    assert going(scheduler) == [("p", "b"), ("r", "a")]
    assert len(scheduler) == 2
    scheduler.finished("p", 1.0)
    assert going(scheduler, 1.0) == [("q", "b")]


def test_only_those_are_offered_that_can_run_it_and_have_room_longest_unused_first() -> None:
    scheduler, strategy = with_only("a", "b", "c", "d")
    scheduler.set_ready(BackendId("d"), False)
    enqueue(scheduler, "p", kind="a")
    assert goes(scheduler) == ("p", "a")
    assert strategy.asked == [("p", ("a", "b", "c"))]
    enqueue(scheduler, "q", kind="c", excluded=frozenset({BackendId("b")}))
    assert goes(scheduler) == ("q", "c")
    assert strategy.asked[1:] == [("q", ("c",))]
    scheduler.finished("q", 1.0)
    scheduler.finished("p", 1.0)
    enqueue(scheduler, "r", kind="a")
    goes(scheduler, 1.0)
    assert strategy.asked[2:] == [("r", ("b", "a", "c"))]


def test_it_is_told_what_it_may_know() -> None:
    strategy = Only()
    scheduler = Scheduler(strategy)
    ready(scheduler, "a", max_concurrent=3, weight=2.5, priority=4)
    enqueue(scheduler, "p", kind="a", client="x")
    goes(scheduler)
    scheduler.set_foreign(BackendId("a"), 1)
    enqueue(scheduler, "q", kind="a", client="x")
    goes(scheduler)
    assert strategy.seen == [Candidate(BackendId("a"), 2, 3, 2.5, 4, 1, True)]


def test_it_cannot_choose_what_it_was_not_offered() -> None:
    class Stubborn:
        def rank(self, job: Request, candidates: Sequence[Candidate]) -> Sequence[BackendId]:
            return [BackendId("full"), BackendId("unheard of"), candidates[-1].backend]

    scheduler = Scheduler(Stubborn())
    for name in ("full", "a", "b"):
        ready(scheduler, name)
    scheduler.adopt(Request(prompt_id="x"), BackendId("full"), 0.0)
    enqueue(scheduler, "p")
    assert goes(scheduler) == ("p", "b")


def test_it_looks_at_models_if_it_likes() -> None:
    class Alphabetic:
        def rank(self, job: Request, candidates: Sequence[Candidate]) -> Sequence[BackendId]:
            return sorted((each.backend for each in candidates), reverse="z" in job.needs.models)

    scheduler = Scheduler(Alphabetic())
    for name in "bca":
        ready(scheduler, name)
    enqueue(scheduler, "p", needs=models("z"))
    enqueue(scheduler, "q", number=1.0)
    assert going(scheduler) == [("p", "c"), ("q", "a")]
