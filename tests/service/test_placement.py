"""Where a job may go."""

import pytest
from service_support import classes, make_fleet, make_job, make_placement

from comfyproxy.core.health import Health
from comfyproxy.core.jobs import BackendId, JobState
from comfyproxy.core.needs import Needs
from comfyproxy.core.scheduling import scheduler
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.live import LiveJob
from comfyproxy.settings import NodeSettings


class Choice:
    """A fleet, and who is chosen of it."""

    def __init__(self, *names: str, max_concurrent: int = 2, strategy: str = "least_loaded") -> None:
        self.fleet: Fleet = make_fleet(*names, max_concurrent=max_concurrent)
        self.now_s = 0.0
        self.placement = make_placement(self.fleet, strategy=strategy, now=lambda: self.now_s)

    def __getitem__(self, name: str) -> Backend:
        backend = self.fleet.get(name)
        assert backend is not None
        return backend

    def pick(self, live: LiveJob) -> str | None:
        """Return where a job goes now; it does not stay there."""
        name = self.go(live)
        self.placement.release(live)
        self.placement.discard(live)
        return name

    def go(self, live: LiveJob) -> str | None:
        """Let a job wait, and return where it goes now."""
        self.placement.add(live)
        found = self.placement.take()
        assert found is None or found.prompt_id == live.prompt_id
        return None if found is None else str(found.backend)

    def judge(self, live: LiveJob) -> str | None:
        backend = self.placement.pick_validator(live)
        return None if backend is None else str(backend.id)

    def has(self, name: str, *prompt_ids: str) -> None:
        """Let a backend have jobs of ours."""
        for prompt_id in prompt_ids:
            there = LiveJob(make_job(prompt_id, state=JobState.ACCEPTED, backend=BackendId(name)))
            self[name].in_flight.add(prompt_id)
            self[name].touch()
            self.placement.occupy(there)

    def judges(self, name: str, *prompt_ids: str) -> None:
        """Let a backend have visitors."""
        self[name].visitors |= set(prompt_ids)
        self[name].touch()

    def rid(self, name: str, prompt_id: str) -> None:
        """Let a backend be rid of a job."""
        self[name].in_flight.remove(prompt_id)
        self[name].touch()
        self.placement.release(LiveJob(make_job(prompt_id)))

    def down(self, *names: str) -> None:
        for name in names:
            self[name].health = Health(healthy=False)

    def up(self, *names: str) -> None:
        for name in names:
            self[name].health = Health(healthy=True)


def job(*needed: str, prompt_id: str = "p", client_id: str | None = "c", is_admitted: bool = False) -> LiveJob:
    needs = Needs(classes=frozenset(needed))
    return LiveJob(make_job(prompt_id, client_id=client_id), needs=needs, is_admitted=is_admitted)


def test_the_emptiest_backend_gets_the_job() -> None:
    choice = Choice("a", "b")
    choice.has("a", "x")
    assert choice.pick(job()) == "b"
    choice["b"].queue_remaining = 2  # of strangers
    assert choice.pick(job()) == "a"


def test_those_that_are_there_to_be_judged_are_no_strangers() -> None:
    choice = Choice("a", "b")
    choice.has("a", "x")
    choice.judges("b", "y", "z")
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


def test_a_full_backend_gets_none_and_can_still_judge() -> None:
    choice = Choice("a", max_concurrent=1)
    choice.has("a", "x")
    assert choice.pick(job()) is None
    assert choice.judge(job()) == "a"


# What a backend can run


def test_a_job_goes_only_where_all_its_classes_are() -> None:
    choice = Choice("a", "b")
    choice["b"].catalog = classes("Load", "Save", "Special")
    choice.has("b", "x")
    assert choice.pick(job("Load", "Special")) == "b"
    assert choice.pick(job("Load")) == "a"
    assert [choice.judge(job("Special")) for _ in range(4)] == ["b"] * 4


def test_of_a_backend_that_has_not_said_what_it_can_all_is_expected() -> None:
    choice = Choice("a", "b")
    choice["a"].catalog = None
    assert choice.pick(job("Special")) == "a"


def test_a_job_of_which_nothing_is_known_goes_anywhere() -> None:
    choice = Choice("a", "b")
    choice.has("a", "x")
    live = LiveJob(make_job("p"), needs=None)
    assert choice.pick(live) == "b"


def test_where_none_can_run_it_the_best_says_so() -> None:
    choice = Choice("a", "b")
    choice.has("a", "x")
    assert choice.pick(job("Unknown")) == "b"


def test_a_promised_job_waits_for_the_only_one_that_can_run_it() -> None:
    choice = Choice("a", "b")
    choice["b"].catalog = classes("Special")
    choice.down("b")
    assert choice.pick(job("Special", is_admitted=True)) is None
    assert choice.judge(job("Special", is_admitted=True)) is None
    choice.up("b")
    assert choice.pick(job("Special", is_admitted=True)) == "b"


def test_a_new_job_waits_for_it_too_and_is_told_by_another_what_is_missing() -> None:
    choice = Choice("a", "b")
    choice["b"].catalog = classes("Special")
    choice.down("b")
    assert choice.pick(job("Special")) is None
    assert choice.judge(job("Special")) == "a"


def test_a_promised_job_that_none_can_run_any_more_goes_anywhere() -> None:
    assert Choice("a").pick(job("Unknown", is_admitted=True)) == "a"


# Where it has been


def test_who_refused_a_job_is_not_asked_again() -> None:
    choice = Choice("a", "b")
    live = job(is_admitted=True)
    live.refused[BackendId("a")] = "no"
    assert [choice.pick(live) for _ in range(3)] == ["b"] * 3
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
    assert [choice.pick(job(client_id=f"c{number}")) for number in range(6)] == ["a", "b", "c", "a", "b", "c"]
    assert [choice.pick(job(client_id=None)) for _ in range(3)] == ["a", "b", "c"]


def test_a_client_finds_the_backend_warm_that_ran_its_last_prompt() -> None:
    choice = Choice("a", "b", "c")
    assert choice.pick(job(client_id="x")) == "a"
    assert choice.pick(job(client_id="y")) == "b"
    assert [choice.pick(job(client_id="x")) for _ in range(3)] == ["a", "a", "a"]
    assert [choice.pick(job(client_id="y")) for _ in range(2)] == ["b", "b"]
    assert choice.pick(job(client_id="z")) == "c"


def test_warmth_is_no_reason_to_wait() -> None:
    choice = Choice("a", "b")
    assert choice.pick(job()) == "a"
    choice.has("a", "x")
    assert choice.pick(job()) == "b"
    choice.rid("a", "x")
    assert choice.pick(job()) == "b"


def test_who_stays_where_it_was_takes_nobodys_turn() -> None:
    choice = Choice("a", "b")
    assert choice.pick(job(client_id="x")) == "a"
    for _ in range(3):
        choice.pick(job(client_id="x"))
    assert choice.pick(job(client_id="y")) == "b"


def test_only_so_many_clients_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "REMEMBERED_CLIENTS", 2)
    choice = Choice("a", "b", "c", "d", "e")
    for client_id, name in (("x", "a"), ("y", "b"), ("x", "a"), ("z", "c")):
        assert choice.pick(job(client_id=client_id)) == name
    assert choice.pick(job(client_id="x")) == "a"
    assert choice.pick(job(client_id="z")) == "c"
    assert choice.pick(job(client_id="y")) == "d"


def test_those_with_the_fewest_visitors_judge_in_turns() -> None:
    choice = Choice("a", "b", "c")
    assert sorted(str(choice.judge(job())) for _ in range(3)) == ["a", "b", "c"]
    choice.judges("a", "x")
    choice.judges("c", "y")
    assert [choice.judge(job()) for _ in range(4)] == ["b"] * 4


# Pinned


def test_a_pinned_job_goes_to_its_backend_or_waits() -> None:
    choice = Choice("a", "b")
    choice.has("b", "x")
    live = LiveJob(
        make_job("p", pinned=BackendId("b")), needs=Needs(classes=frozenset({"Unknown"}), pinned=BackendId("b"))
    )
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


# What the scheduler is told


def test_a_job_that_goes_out_counts_where_it_goes() -> None:
    choice = Choice("a", "b", max_concurrent=1)
    assert [choice.go(job(prompt_id=name)) for name in ("p", "q")] == ["a", "b"]
    choice.placement.add(job(prompt_id="r"))
    assert choice.placement.take() is None
    assert (len(choice.placement), "r" in choice.placement, "q" in choice.placement) == (1, True, False)
    choice.placement.release(job(prompt_id="q"))
    found = choice.placement.take()
    assert found is not None
    assert (found.prompt_id, found.backend) == ("r", "b")


def test_one_that_is_on_a_backend_already_takes_its_slot_once() -> None:
    choice = Choice("a", max_concurrent=2)
    choice.has("a", "x")
    choice.has("a", "x")
    assert choice.go(job(prompt_id="p")) == "a"
    assert choice.go(job(prompt_id="q")) is None


def test_what_a_backend_has_learned_to_run_is_sent_there() -> None:
    choice = Choice("a", "b")
    choice["a"].catalog = classes("Other")
    choice["b"].catalog = classes("Other", "Special")
    assert choice.pick(job("Special")) == "b"
    choice["a"].catalog, choice["b"].catalog = classes("Special"), classes("Other")
    assert choice.pick(job("Special")) == "a"


def test_weights_and_priorities_are_those_of_the_configuration() -> None:
    for strategy, metadata in (("weighted", {"weight": 5.0}), ("priority_based", {"priority": 1})):
        choice = Choice("a", "b", max_concurrent=4, strategy=strategy)
        choice["b"].settings = NodeSettings(node_id="b", host="127.0.0.1", max_concurrent=4, metadata=metadata)
        assert [choice.go(job(prompt_id=f"p{number}")) for number in range(3)] == ["b", "b", "b"]


def test_what_waits_behind_others_is_misplaced_once_another_has_nothing_to_do() -> None:
    choice = Choice("a", "b", max_concurrent=2)
    choice.has("a", "x", "y")
    choice.down("b")
    assert choice.placement.misplaced() == []
    choice.up("b")
    assert choice.placement.misplaced() == [("y", "a")]
    choice.has("b", "z")
    assert choice.placement.misplaced() == []


def test_nobody_asks_to_be_woken_where_only_room_is_missing() -> None:
    choice = Choice("a", max_concurrent=1)
    choice.has("a", "x")
    assert choice.go(job()) is None
    assert choice.placement.wake_in_s is None


def test_there_is_somebody_for_a_job_also_where_all_are_full() -> None:
    choice = Choice("a", "b", max_concurrent=1)
    choice["b"].catalog = classes("Special")
    choice.has("b", "x")
    live = job("Special")
    assert choice.placement.has_able(live)
    live.ghosts.add(BackendId("b"))
    assert not choice.placement.has_able(live)
    live.ghosts.clear()
    choice.down("b")
    assert not choice.placement.has_able(live)


def test_a_job_that_waits_keeps_its_turn_when_something_else_of_it_changes() -> None:
    choice = Choice("a", "b", max_concurrent=1)
    choice.has("a", "x")
    choice.has("b", "y")
    first, second = job(prompt_id="first"), job(prompt_id="second")
    for live in (first, second):
        choice.placement.add(live)
    first.unreachable = frozenset({BackendId("b")})
    choice.placement.add(first)
    choice.rid("a", "x")
    found = choice.placement.take()
    assert found is not None
    assert (found.prompt_id, found.backend) == ("first", "a")


def test_a_catalog_that_is_read_again_and_is_the_same_is_no_news() -> None:
    choice = Choice("a", "b")
    choice.pick(job())
    choice.fleet.take_touched()
    choice.fleet.note_catalog(choice["a"], choice["a"].catalog)
    assert (choice.fleet.take_touched(), choice["a"].takes_other_jobs) == ([], False)


def test_of_a_large_fleet_some_are_named_to_people() -> None:
    choice = Choice(*(f"b{number:03}" for number in range(300)))
    text = choice.placement.lacks(job(*(f"Odd{number:02}" for number in range(100)), "x" * 5_000))
    assert text.startswith('b000 lacks node class "Odd00", node class "Odd01", ')
    assert text.endswith(", and 93 more; and 292 more")
    assert len(text) < 3_000
    text = choice.placement.lacks(job("x" * 5_000))
    assert len(text) < 20_000
