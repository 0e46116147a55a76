"""Where a job may go."""

import pytest
from service_support import classes, make_fleet, make_job

from comfyproxy.core.health import Health
from comfyproxy.core.jobs import BackendId
from comfyproxy.service import placement
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.live import LiveJob
from comfyproxy.service.placement import Placement


class Choice:
    """A fleet, and who is chosen of it."""

    def __init__(self, *names: str, max_concurrent: int = 2) -> None:
        self.fleet: Fleet = make_fleet(*names, max_concurrent=max_concurrent)
        self.placement = Placement(self.fleet)

    def __getitem__(self, name: str) -> Backend:
        backend = self.fleet.get(name)
        assert backend is not None
        return backend

    def pick(self, live: LiveJob) -> str | None:
        backend = self.placement.pick(live)
        return None if backend is None else str(backend.id)

    def judge(self, live: LiveJob) -> str | None:
        backend = self.placement.pick_validator(live)
        return None if backend is None else str(backend.id)

    def place(self, live: LiveJob) -> str | None:
        name = self.pick(live)
        if name is not None:
            self.placement.placed(live, self[name])
        return name

    def down(self, *names: str) -> None:
        for name in names:
            self[name].health = Health(healthy=False)


def job(*needed: str, client_id: str | None = "c", is_admitted: bool = False) -> LiveJob:
    return LiveJob(make_job("p", client_id=client_id), classes=frozenset(needed), is_admitted=is_admitted)


def test_the_emptiest_backend_gets_the_job() -> None:
    choice = Choice("a", "b")
    choice["a"].in_flight.add("x")
    assert choice.pick(job()) == "b"
    choice["b"].queue_remaining = 2  # of strangers
    assert choice.pick(job()) == "a"


def test_those_that_are_there_to_be_judged_are_no_strangers() -> None:
    choice = Choice("a", "b")
    choice["a"].in_flight.add("x")
    choice["b"].visitors |= {"y", "z"}
    choice["b"].queue_remaining = 2
    assert choice["b"].foreign == 0
    assert choice.pick(job()) == "b"
    choice["b"].queue_remaining = 4  # two are a stranger's
    assert choice["b"].foreign == 2
    assert choice.pick(job()) == "a"


def test_only_ready_backends_get_jobs() -> None:
    choice = Choice("a", "b", "c")
    choice.down("a")
    choice["b"].is_drained = True
    assert choice.pick(job()) == "c"
    choice.down("c")
    assert choice.pick(job()) is None
    assert choice.judge(job()) is None
    assert not choice.placement.has_room()


def test_a_full_backend_gets_none_and_can_still_judge() -> None:
    choice = Choice("a", max_concurrent=1)
    assert choice.placement.has_room()
    choice["a"].in_flight.add("x")
    assert choice.pick(job()) is None
    assert not choice.placement.has_room()
    assert choice.judge(job()) == "a"


# What a backend can run


def test_a_job_goes_only_where_all_its_classes_are() -> None:
    choice = Choice("a", "b")
    choice["b"].catalog = classes("Load", "Save", "Special")
    choice["b"].in_flight.add("x")
    assert choice.pick(job("Load", "Special")) == "b"
    assert choice.pick(job("Load")) == "a"
    assert [choice.judge(job("Special")) for _ in range(4)] == ["b"] * 4


def test_of_a_backend_that_has_not_said_what_it_can_all_is_expected() -> None:
    choice = Choice("a", "b")
    choice["a"].catalog = None
    assert choice.pick(job("Special")) == "a"


def test_a_job_of_which_nothing_is_known_goes_anywhere() -> None:
    choice = Choice("a", "b")
    choice["a"].in_flight.add("x")
    live = LiveJob(make_job("p"), classes=None)
    assert choice.pick(live) == "b"


def test_where_none_can_run_it_the_best_says_so() -> None:
    choice = Choice("a", "b")
    choice["a"].in_flight.add("x")
    assert choice.pick(job("Unknown")) == "b"
    assert choice.placement.missing(job("Unknown", "Load")) == {"a": ["Unknown"], "b": ["Unknown"]}


def test_a_promised_job_waits_for_the_only_one_that_can_run_it() -> None:
    choice = Choice("a", "b")
    choice["b"].catalog = classes("Special")
    choice.down("b")
    assert choice.pick(job("Special", is_admitted=True)) is None
    assert choice.judge(job("Special", is_admitted=True)) is None
    choice["b"].health = Health(healthy=True)
    assert choice.pick(job("Special", is_admitted=True)) == "b"


def test_a_new_job_is_told_by_another_what_is_missing_meanwhile() -> None:
    choice = Choice("a", "b")
    choice["b"].catalog = classes("Special")
    choice.down("b")
    assert choice.pick(job("Special")) == "a"
    assert choice.judge(job("Special")) == "a"


def test_a_promised_job_that_none_can_run_any_more_goes_anywhere() -> None:
    assert Choice("a").pick(job("Unknown", is_admitted=True)) == "a"


# Where it has been


def test_who_refused_a_job_is_not_asked_again() -> None:
    choice = Choice("a", "b")
    live = job(is_admitted=True)
    live.refused[BackendId("a")] = "no"
    assert [choice.place(live) for _ in range(3)] == ["b"] * 3
    assert choice.judge(live) == "b"
    assert not choice.placement.is_refused_everywhere(live)
    live.refused[BackendId("b")] = "no"
    assert choice.pick(live) is None
    assert choice.placement.is_refused_everywhere(live)


def test_one_that_is_away_has_not_refused() -> None:
    choice = Choice("a", "b")
    choice.down("b")
    live = job(is_admitted=True)
    live.refused[BackendId("a")] = "no"
    assert choice.pick(live) is None
    assert not choice.placement.is_refused_everywhere(live)


def test_who_could_not_be_reached_with_a_job_gets_others() -> None:
    choice = Choice("a", "b")
    live = job()
    live.unreachable = frozenset({BackendId("a")})
    assert choice.pick(live) == "b"
    assert choice.judge(live) == "b"
    live.unreachable = frozenset({BackendId("a"), BackendId("b")})
    assert choice.pick(live) is None
    assert choice.pick(job()) is not None


def test_the_only_one_that_can_run_a_promised_job_is_waited_for_where_it_could_not_be_reached() -> None:
    choice = Choice("a", "b")
    choice["b"].catalog = classes("Special")
    live = job("Special", is_admitted=True)
    live.unreachable = frozenset({BackendId("b")})
    assert choice.pick(live) is None


# Whose turn it is


def test_equals_take_turns() -> None:
    choice = Choice("a", "b", "c")
    assert [choice.place(job(client_id=f"c{number}")) for number in range(6)] == ["a", "b", "c", "a", "b", "c"]
    assert [choice.place(job(client_id=None)) for _ in range(3)] == ["a", "b", "c"]


def test_a_client_finds_the_backend_warm_that_ran_its_last_prompt() -> None:
    choice = Choice("a", "b", "c")
    assert choice.place(job(client_id="x")) == "a"
    assert choice.place(job(client_id="y")) == "b"
    assert [choice.place(job(client_id="x")) for _ in range(3)] == ["a", "a", "a"]
    assert [choice.place(job(client_id="y")) for _ in range(2)] == ["b", "b"]
    assert choice.place(job(client_id="z")) == "c"


def test_warmth_is_no_reason_to_wait() -> None:
    choice = Choice("a", "b")
    assert choice.place(job()) == "a"
    choice["a"].in_flight.add("x")
    assert choice.place(job()) == "b"
    choice["a"].in_flight.clear()
    assert choice.place(job()) == "b"


def test_who_stays_where_it_was_takes_nobodys_turn() -> None:
    choice = Choice("a", "b")
    assert choice.place(job(client_id="x")) == "a"
    for _ in range(3):
        choice.place(job(client_id="x"))
    assert choice.place(job(client_id="y")) == "b"


def test_only_so_many_clients_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "REMEMBERED_CLIENTS", 2)
    choice = Choice("a", "b", "c", "d", "e")
    for client_id, name in (("x", "a"), ("y", "b"), ("x", "a"), ("z", "c")):
        assert choice.place(job(client_id=client_id)) == name
    assert choice.pick(job(client_id="x")) == "a"
    assert choice.pick(job(client_id="z")) == "c"
    assert choice.pick(job(client_id="y")) == "d"


def test_those_with_the_fewest_visitors_judge_in_turns() -> None:
    choice = Choice("a", "b", "c")
    assert sorted(str(choice.judge(job())) for _ in range(3)) == ["a", "b", "c"]
    choice["a"].visitors.add("x")
    choice["c"].visitors.add("y")
    assert [choice.judge(job()) for _ in range(4)] == ["b"] * 4


# Pinned


def test_a_pinned_job_goes_to_its_backend_or_waits() -> None:
    choice = Choice("a", "b")
    choice["b"].in_flight.add("x")
    live = LiveJob(make_job("p", pinned=BackendId("b")), classes=frozenset({"Unknown"}))
    assert choice.pick(live) == "b"
    assert choice.judge(live) == "b"
    choice.down("b")
    assert choice.pick(live) is None
    assert choice.judge(live) is None


def test_a_pinned_job_is_refused_by_its_backend_alone() -> None:
    choice = Choice("a", "b")
    live = LiveJob(make_job("p", pinned=BackendId("b")))
    live.refused[BackendId("a")] = "no"
    assert not choice.placement.is_refused_everywhere(live)
    live.refused[BackendId("b")] = "no"
    assert choice.placement.is_refused_everywhere(live)
    assert choice.pick(live) is None


def test_a_job_pinned_to_what_is_not_configured_any_more_goes_nowhere() -> None:
    assert Choice("a").pick(LiveJob(make_job("p", pinned=BackendId("gone")))) is None
