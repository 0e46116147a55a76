"""Whose turn it is."""

import gc
from typing import Any

import pytest
from scheduling_support import World, enqueue, goes, going, make_scheduler, models

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling import queue as queue_module
from comfyproxy.core.scheduling.queue import Entry, FairQueue, Flow
from comfyproxy.core.scheduling.strategies import make_strategy
from comfyproxy.core.scheduling.types import Request

AGEING_S = 100.0


def add(
    queue: FairQueue, prompt_id: str, *, expected_s: float = 10.0, before: Entry | None = None, **request: Any
) -> Entry:
    return queue.add(Request(prompt_id=prompt_id, **request), expected_s=expected_s, before=before)


def first(queue: FairQueue) -> Entry | None:
    flow = queue.first()
    return None if flow is None else flow.head()


def serve(queue: FairQueue, seconds: float = 10.0) -> str:
    """Serve the job whose turn it is."""
    entry = first(queue)
    assert entry is not None
    queue.serve(entry, seconds, is_its_turn=True)
    return entry.request.prompt_id


def served(queue: FairQueue, count: int | None = None, *, seconds: float = 10.0) -> list[str]:
    return [serve(queue, seconds) for _ in range(len(queue) if count is None else count)]


def turns(queue: FairQueue, limit: int = 100) -> list[Flow]:
    return list(queue.in_turn(limit))


@pytest.fixture
def queue() -> FairQueue:
    return FairQueue(AGEING_S)


# Within a client


def test_a_clients_jobs_go_by_number_and_then_as_they_came(queue: FairQueue) -> None:
    for prompt_id, number in (("p", 2), ("q", 1), ("r", 1), ("front", -3), ("s", 2)):
        add(queue, prompt_id, number=float(number))
    assert served(queue) == ["front", "q", "r", "p", "s"]
    assert (len(queue), first(queue), queue.groups) == (0, None, {})


def test_the_front_of_one_client_is_nothing_to_another(queue: FairQueue) -> None:
    add(queue, "p", client="x", number=5)
    add(queue, "q", client="y", number=-5)
    add(queue, "r", client="y", number=-6)
    assert served(queue) == ["p", "r", "q"]


def test_those_that_name_nobody_are_one_client(queue: FairQueue) -> None:
    for number in range(3):
        add(queue, f"nobody{number}", number=float(number))
    add(queue, "x", client="x", number=9)
    assert served(queue) == ["nobody0", "x", "nobody1", "nobody2"]


# Between clients


def test_clients_are_served_in_turns_however_much_they_have(queue: FairQueue) -> None:
    for number in range(6):
        add(queue, f"x{number}", client="x", number=float(number))
    for number in range(2):
        add(queue, f"y{number}", client="y", number=float(number))
    assert served(queue) == ["x0", "y0", "x1", "y1", "x2", "x3", "x4", "x5"]


def test_it_is_seconds_that_are_shared_and_not_jobs(queue: FairQueue) -> None:
    for number in range(40):
        add(queue, f"long{number}", client="long", number=float(number))
        add(queue, f"short{number}", client="short", number=float(number))
    seconds = {"long": 0.0, "short": 0.0}
    for _ in range(30):
        entry = first(queue)
        assert entry is not None
        took_s = 30.0 if entry.client.name == "long" else 10.0
        queue.serve(entry, took_s, is_its_turn=True)
        seconds[entry.client.name] += took_s
    assert abs(seconds["long"] - seconds["short"]) <= 30.0


def test_who_comes_back_has_saved_nothing_up(queue: FairQueue) -> None:
    add(queue, "y-before", client="y")
    for number in range(100):
        add(queue, f"x{number}", client="x", number=float(number))
    served(queue, 50)
    for number in range(10):
        add(queue, f"y{number}", client="y", number=float(number))
    assert sum(prompt_id.startswith("x") for prompt_id in served(queue, 9)) >= 4


@pytest.mark.parametrize("priority", [-2, 0, 1])
def test_who_comes_late_catches_up_on_nothing_whatever_the_priority(queue: FairQueue, priority: int) -> None:
    for number in range(300):
        add(queue, f"x{number}", client="x", number=float(number), priority=priority)
    served(queue, 200)
    for number in range(100):
        add(queue, f"y{number}", client="y", number=float(number), priority=priority)
    head_start = int(AGEING_S / 10) * max(priority, 0)
    assert sum(prompt_id.startswith("x") for prompt_id in served(queue, 10 + head_start)) >= 4


def test_who_comes_late_catches_up_on_nothing_while_another_waits_for_what_is_away() -> None:
    scheduler = make_scheduler("round_robin", "a")
    world = World(scheduler)
    world.submit("stuck", client="stuck", needs=Needs(pinned=BackendId("away")))
    world.submit_many("x", 300, client="x")
    world.run(until=lambda: len(world.went) >= 200)
    world.submit_many("y", 100, client="y")
    before = len(world.went)
    world.run(until=lambda: len(world.went) >= before + 10)
    assert sum(prompt_id.startswith("x") for prompt_id in world.order()[before:]) >= 4


@pytest.mark.parametrize("comes", [False, True])
def test_who_waits_for_what_is_away_saves_up_no_more_than_one_step_of_priority(queue: FairQueue, comes: bool) -> None:
    add(queue, "away", client="y")
    for number in range(200):
        add(queue, f"x{number}", client="x", number=float(number))
    for number in range(100):
        entry = queue.get(f"x{number}")
        assert entry is not None
        queue.serve(entry, 10.0, is_its_turn=True)
    if comes:
        add(queue, "y", client="y", number=1.0)
    behind_s = queue.client("x").virtual_s - queue.client("y").virtual_s
    assert behind_s == (AGEING_S + 10.0 if comes else 1_000.0)


def test_those_that_come_start_where_the_last_one_was_whose_turn_it_was(queue: FairQueue) -> None:
    for number in range(10):
        add(queue, f"x{number}", client="x", number=float(number))
    for number, is_its_turn in enumerate((True, True, False, False)):
        entry = queue.get(f"x{number}")
        assert entry is not None
        queue.serve(entry, 10.0, is_its_turn=is_its_turn)
    assert add(queue, "y", client="y").client.virtual_s == 10.0


def test_what_was_charged_too_much_comes_off_the_next_charge(queue: FairQueue) -> None:
    client = queue.client("x")
    client.charge(10.0)
    client.charge(-4.0)
    assert client.virtual_s == 10.0
    client.charge(10.0)
    assert client.virtual_s == 16.0
    client.charge(-10.0)
    client.charge(-10.0)
    client.charge(15.0)
    assert (client.virtual_s, client.credit_s) == (16.0, 5.0)


@pytest.mark.parametrize("strategy", ["round_robin", "least_loaded", "model_affinity"])
@pytest.mark.parametrize("backends", [1, 4])
def test_five_thousand_jobs_delay_another_clients_single_one_by_one_prompt_per_backend(
    strategy: str, backends: int
) -> None:
    world = World(make_scheduler(strategy, *"abcd"[:backends], max_concurrent=1))
    world.submit_many("many", 5_000, client="many")
    world.run(until=lambda: len(world.ended) >= 5 * backends)
    before = len(world.went)
    world.submit("one", client="one")
    world.run(until=lambda: "one" in world.where())
    assert world.order().index("one") - before <= backends


# Priorities


def test_the_more_urgent_goes_first(queue: FairQueue) -> None:
    add(queue, "later", client="x", priority=-1)
    add(queue, "normal", client="y")
    add(queue, "urgent", client="z", priority=1)
    assert served(queue) == ["urgent", "normal", "later"]


def test_a_clients_urgent_job_goes_before_its_others_whatever_their_numbers(queue: FairQueue) -> None:
    add(queue, "normal", number=-5)
    add(queue, "urgent", number=5, priority=1)
    assert served(queue) == ["urgent", "normal"]


def test_one_step_of_priority_is_worth_so_many_seconds_of_service_and_no_more(queue: FairQueue) -> None:
    for number in range(50):
        add(queue, f"urgent{number}", client="x", priority=1, number=float(number))
    add(queue, "normal", client="y")
    order = served(queue, seconds=10.0)
    assert AGEING_S / 10 <= order.index("normal") <= AGEING_S / 10 + 1


def test_the_least_urgent_goes_in_the_end(queue: FairQueue) -> None:
    add(queue, "least", client="x", priority=-3)
    for number in range(100):
        add(queue, f"normal{number}", client="y", number=float(number))
    assert served(queue).index("least") <= 3 * AGEING_S / 10 + 1


# Coming back


def test_a_job_that_is_put_back_keeps_its_turn(queue: FairQueue) -> None:
    jobs = [add(queue, f"p{number}") for number in range(3)]
    queue.discard("p0")
    add(queue, "p0", before=jobs[0])
    assert served(queue) == ["p0", "p1", "p2"]


def test_a_clients_only_job_that_is_put_back_keeps_its_turn(queue: FairQueue) -> None:
    only = add(queue, "only", client="x", priority=-1)
    for number in range(20):
        add(queue, f"y{number}", client="y", number=float(number))
    served(queue, int(AGEING_S / 10) - 1)
    queue.discard("only")
    add(queue, "only", client="x", priority=-1, before=only)
    assert "only" in served(queue, 3)


def test_a_job_that_is_put_back_for_another_client_saves_nothing_up_for_it(queue: FairQueue) -> None:
    queue.client("z")
    for number in range(100):
        add(queue, f"y{number}", client="y", number=float(number))
    served(queue, 50)
    last = queue.discard("y99")
    add(queue, "y99", client="z", before=last)
    for number in range(10):
        add(queue, f"z{number}", client="z", number=float(number))
    assert sum(prompt_id.startswith("y") for prompt_id in served(queue, 10)) >= 4


def test_who_was_discarded_does_not_come_back_by_itself(queue: FairQueue) -> None:
    entry = add(queue, "p")
    assert queue.discard("p") is entry
    assert queue.discard("p") is None
    assert (len(queue), "p" in queue, queue.get("p"), first(queue)) == (0, False, None, None)
    again = add(queue, "p")
    assert (queue.get("p"), first(queue)) == (again, again)


# Looking without taking


def test_looking_at_the_turns_changes_none(queue: FairQueue) -> None:
    for name in "xyz":
        add(queue, name, client=name)
    for _ in range(3):
        looking = queue.in_turn(2)
        assert next(looking).client.name == "x"
        looking.close()
        assert [flow.client.name for flow in turns(queue)] == ["x", "y", "z"]
        assert [flow.client.name for flow in turns(queue, 2)] == ["x", "y"]
    assert served(queue) == ["x", "y", "z"]
    assert turns(queue) == []


# Groups


def test_heads_are_found_in_all_groups_that_are_wanted(queue: FairQueue) -> None:
    for number in range(5):
        add(queue, f"x{number}", client="x", number=float(-number), needs=models(str(number % 3)))
        add(queue, f"y{number}", client="y", needs=models(str(number % 4)))
    serve(queue)
    found = [entry.request.prompt_id for entry in queue.heads(lambda group: group.needs != models("2"))]
    assert found == ["y0", "y1", "y3"]
    (flow, *_) = [flow for flow in turns(queue) if flow.client.name == "x"]
    assert [entry.request.prompt_id for entry in flow.heads(lambda group: group.needs != models("2"))] == ["x3", "x1"]
    assert [queue.is_longer_than(count) for count in (3, 4)] == [True, False]
    assert [entry.request.prompt_id for entry in queue.heads(lambda group: False)] == []


def test_jobs_with_the_same_needs_stand_together(queue: FairQueue) -> None:
    one = add(queue, "p", needs=models("m"), client="x", expected_s=5.0)
    two = add(queue, "q", needs=models("m"), client="y", expected_s=6.0)
    other = add(queue, "r", needs=models("m"), client="y", excluded=frozenset({BackendId("a")}))
    assert one.group is two.group
    assert (one.group.waiting, one.group.work_s, one.group.head()) == (2, 11.0, one)
    assert set(queue.of_models(frozenset({"m"})).values()) == {one.group, other.group}
    queue.serve(one, 5.0, is_its_turn=True)
    assert (two.group.head(), two.group.waiting, two.group.work_s) == (two, 1, 6.0)
    queue.discard("q")
    queue.discard("r")
    assert (queue.groups, queue.of_models(frozenset({"m"}))) == ({}, {})


def test_the_head_of_a_group_is_its_job_whose_turn_it_is(queue: FairQueue) -> None:
    for number in range(3):
        add(queue, f"x{number}", client="x", number=float(number), needs=models("m"))
        add(queue, f"y{number}", client="y", number=float(number), needs=models("m"))
    group = next(iter(queue.groups.values()))
    order = []
    while (head := group.head()) is not None:
        order.append(head.request.prompt_id)
        queue.serve(head, 10.0, is_its_turn=True)
    assert order == ["x0", "y0", "x1", "y1", "x2", "y2"]


def test_a_group_that_was_empty_is_found_again(queue: FairQueue) -> None:
    for _ in range(3):
        entry = add(queue, "p", needs=models("m"), client="x")
        other = add(queue, "q", needs=models("m"), client="y")
        assert entry.group.head() in (entry, other)
        queue.discard("p")
        assert entry.group.head() is other
        queue.discard("q")
        assert entry.group.head() is None


def test_only_so_many_clients_are_remembered_that_have_nothing_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "REMEMBERED_CLIENTS", 10)
    queue = FairQueue(AGEING_S)
    for number in range(100):
        add(queue, f"p{number}", client=f"c{number}")
        queue.discard(f"p{number}")
    assert len(queue._clients) <= 10
    for number in range(30):
        add(queue, f"q{number}", client=f"d{number}")
    assert len(queue) == 30
    assert sorted(served(queue)) == sorted(f"q{number}" for number in range(30))


def test_what_has_left_is_not_kept_behind_a_job_that_waits_for_ever() -> None:
    scheduler = make_scheduler("least_loaded", "a", "b")
    scheduler.set_ready(BackendId("b"), False)
    enqueue(scheduler, "waits", number=-1.0, needs=Needs(pinned=BackendId("b")))
    enqueue(scheduler, "cancelled", needs=Needs(pinned=BackendId("b")))
    gc.collect()
    before = sum(isinstance(each, Entry) for each in gc.get_objects())
    for number in range(2_000):
        enqueue(scheduler, "p", number=float(number))
        assert goes(scheduler) == ("p", "a")
        scheduler.finished("p", 0.0)
        enqueue(scheduler, "cancelled", number=float(number), needs=Needs(pinned=BackendId("b")))
    gc.collect()
    assert sum(isinstance(each, Entry) for each in gc.get_objects()) - before < 300
    scheduler.set_ready(BackendId("b"), True)
    assert going(scheduler) == [("waits", "b")]
    scheduler.finished("waits", 0.0)
    assert going(scheduler) == [("cancelled", "b")]


def test_another_worth_of_priority_holds_for_those_who_wait_too() -> None:
    scheduler = make_scheduler("least_loaded", "a", ageing_s=0.0)
    for number in range(3):
        enqueue(scheduler, f"slow{number}", client="x", number=float(number), priority=-1)
        enqueue(scheduler, f"fast{number}", client="y", number=float(number), priority=1)
    scheduler.use(make_strategy("least_loaded"), ageing_s=1_000.0)
    went = []
    for _ in range(6):
        ((prompt_id, _),) = going(scheduler)
        went.append(prompt_id)
        scheduler.finished(prompt_id, 0.0)
    assert went == ["fast0", "fast1", "fast2", "slow0", "slow1", "slow2"]
