"""The backends: who has room, in which order, who can run what, and what is in their memory."""

from collections.abc import Iterable
from typing import Any

import pytest
from scheduling_support import models, only

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import ANYWHERE, Needs
from comfyproxy.core.scheduling import fleet as fleet_module
from comfyproxy.core.scheduling.durations import Durations
from comfyproxy.core.scheduling.fleet import FleetState, Flight, State
from comfyproxy.core.scheduling.strategies import LeastLoaded, PriorityBased, Weighted
from comfyproxy.core.scheduling.types import BackendSpec, Request

M, N = frozenset({"m"}), frozenset({"n"})
NOBODY: frozenset[BackendId] = frozenset()


class Fleet:
    """A fleet's state, and short words for it."""

    def __init__(self, names: str = "", **spec: Any) -> None:
        self.durations = Durations()
        self.state = FleetState(self.durations)
        self.state.sort_by(LeastLoaded())
        for name in names:
            self.add(name, **spec)

    def add(self, name: str, *, is_ready: bool = True, **spec: Any) -> None:
        self.state.set_backend(BackendSpec(backend=BackendId(name), **spec))
        if self[name].is_ready != is_ready:
            self.state.set_ready(self[name], is_ready)

    def __getitem__(self, name: str) -> State:
        state = self.state.get(BackendId(name))
        assert state is not None
        return state

    def place(self, name: str, prompt_id: str, needs: Needs = ANYWHERE, **flight: float) -> Flight:
        there = Flight(
            Request(prompt_id=prompt_id, needs=needs),
            run_s=flight.get("run_s", 10.0),
            load_s=flight.get("load_s", 0.0),
            is_cold="load_s" in flight,
        )
        self.state.place(self[name], there, 0.0)
        return there

    def leave(self, name: str, prompt_id: str, *, has_run: bool = True) -> None:
        self.state.leave(self[name], prompt_id, has_run=has_run)

    def foreign(self, name: str, count: int) -> None:
        self[name].foreign = count
        self.state.changed(self[name])

    @property
    def order(self) -> str:
        return "".join(state.id for state in self.state.available())

    def holders(self, held: frozenset[str]) -> set[str]:
        return {str(state.id) for state in self.state.holders(held)}

    def able(self, needs: Needs, excluded: Iterable[str] = ()) -> set[str] | None:
        found = self.state.able(needs, frozenset(map(BackendId, excluded)))
        return None if found is None else {str(name) for name in found}


# Room and order


def test_those_with_room_are_in_the_strategys_order_and_equals_take_turns() -> None:
    fleet = Fleet("abc", max_concurrent=2)
    assert fleet.order == "abc"
    fleet.place("a", "p")
    assert fleet.order == "bca"
    fleet.place("b", "q")
    fleet.place("c", "r")
    assert fleet.order == "abc"
    fleet.place("a", "s")
    assert fleet.order == "bc"
    fleet.leave("a", "s")
    fleet.leave("a", "p")
    assert fleet.order == "abc"
    fleet.leave("b", "q")
    assert fleet.order == "bac"


def test_another_strategy_is_another_order() -> None:
    fleet = Fleet()
    for name, weight, priority in (("a", 1.0, 3), ("b", 2.0, 2), ("c", 4.0, 1)):
        fleet.add(name, weight=weight, priority=priority, max_concurrent=2)
    fleet.place("c", "p")
    fleet.state.sort_by(Weighted())
    assert fleet.order == "bca"
    fleet.state.sort_by(PriorityBased())
    assert fleet.order == "cba"
    fleet.state.sort_by(None)
    assert fleet.order == "abc"


def test_only_ready_ones_have_room() -> None:
    fleet = Fleet("ab")
    fleet.add("c", is_ready=False)
    assert (fleet.order, fleet.state.ready_count, fleet.state.available_count) == ("ab", 2, 2)
    fleet.state.set_ready(fleet["a"], False)
    fleet.state.set_ready(fleet["b"], False)
    assert (fleet.order, fleet.state.has_room, fleet.state.ready_count) == ("", False, 0)
    fleet.state.set_ready(fleet["c"], True)
    assert (fleet.order, fleet.state.has_room) == ("c", True)


def test_strangers_count_but_never_keep_our_last_one_out() -> None:
    fleet = Fleet("ab", max_concurrent=2)
    fleet.foreign("a", 1)
    assert fleet.order == "ba"
    fleet.foreign("a", 9)
    assert fleet.order == "ba"
    fleet.place("a", "p")
    assert fleet.order == "b"
    fleet.foreign("a", 0)
    assert fleet.order == "ba"


def test_one_that_is_removed_is_nowhere() -> None:
    fleet = Fleet("ab", max_concurrent=2)
    fleet.place("a", "p", models("m"))
    fleet.place("a", "q", models("m"))
    fleet.leave("a", "p")
    fleet.leave("a", "q")
    fleet.state.remove(BackendId("a"))
    fleet.state.remove(BackendId("a"))
    assert (fleet.order, fleet.holders(M), len(fleet.state), fleet.state.ready_count) == ("b", set(), 1, 1)
    assert fleet.state.get(BackendId("a")) is None
    assert fleet.state.crowded(10) == []


def test_less_room_is_less_room_at_once() -> None:
    fleet = Fleet("a", max_concurrent=2)
    fleet.place("a", "p")
    fleet.add("a", max_concurrent=1)
    assert fleet.order == ""
    fleet.add("a", max_concurrent=2)
    assert fleet.order == "a"


def test_the_warm_one_comes_first_among_equals_only() -> None:
    fleet = Fleet("abc", max_concurrent=2)
    b, c = BackendId("b"), BackendId("c")
    assert fleet.state.choose(None, None) == "a"
    assert fleet.state.choose(None, c) == "c"
    assert fleet.state.choose({b, c}, BackendId("a")) == "b"
    assert fleet.state.choose({b, c}, c) == "c"
    assert fleet.state.choose(set(), c) is None
    fleet.place("c", "p")
    assert fleet.state.choose(None, c) == "a"
    assert fleet.state.choose({c}, None) == "c"
    assert fleet.state.choose(None, BackendId("gone")) == "a"


def test_crowded_is_where_one_of_ours_waits_behind_others() -> None:
    fleet = Fleet("abc", max_concurrent=3)
    fleet.foreign("b", 2)
    fleet.place("a", "p")
    assert fleet.state.crowded(10) == []
    fleet.place("a", "q")
    fleet.place("b", "r")
    assert [state.id for state in fleet.state.crowded(10)] == ["a", "b"]
    assert len(fleet.state.crowded(1)) == 1
    fleet.leave("a", "p")
    fleet.foreign("b", 0)
    assert fleet.state.crowded(10) == []


def test_a_backend_is_busy_with_what_is_left_of_what_it_has() -> None:
    fleet = Fleet("a", max_concurrent=3)
    fleet.place("a", "p", run_s=10.0, load_s=5.0).started_s = 100.0
    fleet.place("a", "q", run_s=7.0)
    assert fleet["a"].busy_s(104.0, 1.0) == 11.0 + 7.0
    fleet.foreign("a", 2)
    assert fleet["a"].busy_s(104.0, 1.5) == 11.0 + 7.0 + 3.0


def test_it_is_known_how_late_a_backend_is() -> None:
    fleet = Fleet("a", max_concurrent=3)
    fleet.place("a", "p", run_s=10.0, load_s=5.0).started_s = 100.0
    fleet.place("a", "q")
    assert [fleet["a"].late_s(at_s) for at_s in (100.0, 115.0, 116.0, 145.0)] == [0.0, 0.0, 1.0, 30.0]
    assert [fleet["a"].busy_s(at_s, 1.0) for at_s in (115.0, 145.0)] == [fleet["a"].busy_s(145.0, 1.0)] * 2
    assert Fleet("b")["b"].late_s(1.0) == 0.0


# Who can run what


def test_who_can_run_a_job_is_who_has_what_it_needs() -> None:
    fleet = Fleet()
    fleet.add("a", can=only("X"))
    fleet.add("b", can=only("X", "Y"))
    assert fleet.able(Needs(classes=frozenset("X"))) is None
    assert fleet.able(Needs(classes=frozenset("Y"))) == {"b"}
    fleet.add("a", can=only("X", "Y", "Z"))
    assert fleet.able(Needs(classes=frozenset("Y"))) is None
    assert fleet.able(Needs(classes=frozenset("Z"))) == {"a"}


def test_what_nobody_can_run_anybody_may_be_asked_for() -> None:
    fleet = Fleet("ab", can=only("X"))
    unknown = Needs(classes=frozenset("Y"))
    assert fleet.able(unknown) is None
    assert fleet.able(unknown, "a") == {"b"}
    assert fleet.able(unknown, "ab") == set()


def test_what_was_asked_of_us_is_kept_to_also_where_nobody_has_it() -> None:
    fleet = Fleet("ab", can=lambda needs: not needs.capabilities)
    assert fleet.able(Needs(capabilities=frozenset({"gpu"}))) == set()
    assert fleet.able(ANYWHERE) is None


def test_a_pinned_job_has_one_backend_or_none() -> None:
    fleet = Fleet("ab", can=only("X"))
    pinned = Needs(classes=frozenset("Y"), pinned=BackendId("b"))
    assert fleet.able(pinned) == {"b"}
    assert fleet.able(pinned, "b") == set()
    assert fleet.able(Needs(pinned=BackendId("gone"))) == set()


def test_who_is_excluded_is_not_able() -> None:
    fleet = Fleet("abc")
    assert fleet.able(ANYWHERE, "b") == {"a", "c"}
    assert fleet.able(ANYWHERE, "z") is None


def test_only_so_many_answers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "REMEMBERED", 3)
    fleet = Fleet("ab")
    for number in range(10):
        assert fleet.able(ANYWHERE, f"b{number}") == {"a"}
    assert len(fleet.state._able) <= 3


# What is in memory


def test_a_backend_holds_what_it_will_have_loaded_last() -> None:
    fleet = Fleet("ab", max_concurrent=3)
    fleet.place("a", "p", models("m"))
    assert (fleet.holders(M), fleet["a"].tail) == ({"a"}, M)
    fleet.place("a", "q", models("n"))
    fleet.place("a", "r")
    assert (fleet.holders(M), fleet.holders(N)) == (set(), {"a"})
    fleet.place("b", "s", models("n"))
    assert fleet.holders(N) == {"a", "b"}


def test_what_was_taken_back_was_not_loaded() -> None:
    fleet = Fleet("a", max_concurrent=3)
    fleet.place("a", "p", models("m"))
    fleet.place("a", "q", models("n"))
    fleet.leave("a", "q", has_run=False)
    assert (fleet.holders(M), fleet.holders(N)) == ({"a"}, set())
    fleet.leave("a", "p", has_run=True)
    assert fleet.holders(M) == {"a"}
    fleet.place("a", "r", models("n"))
    fleet.leave("a", "r", has_run=False)
    assert fleet.holders(M) == {"a"}


def test_a_job_without_models_leaves_those_of_others_in_memory() -> None:
    fleet = Fleet("a")
    fleet.place("a", "p", models("m"))
    fleet.leave("a", "p")
    fleet.place("a", "q")
    fleet.leave("a", "q")
    assert fleet.holders(M) == {"a"}


def test_who_has_restarted_holds_nothing_but_what_it_is_about_to_load() -> None:
    fleet = Fleet("ab", max_concurrent=2)
    fleet.place("a", "p", models("m"))
    fleet.state.restarted(fleet["a"])
    assert fleet.holders(M) == {"a"}
    fleet.leave("a", "p")
    fleet.state.restarted(fleet["a"])
    assert fleet.holders(M) == set()
    fleet.place("b", "q", models("m"))
    fleet.leave("b", "q")
    fleet.place("b", "r")
    fleet.state.restarted(fleet["b"])
    assert fleet.holders(M) == set()
