"""The ranking of backends, whatever their load."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.selection import Candidate, rank_least_loaded


def candidate(
    name: str, in_flight: int = 0, *, foreign: int = 0, max_concurrent: int = 2, is_warm: bool = False
) -> Candidate:
    return Candidate(BackendId(name), in_flight, foreign, max_concurrent, is_warm)


@st.composite
def fleets(draw: st.DrawFn) -> list[Candidate]:
    names = draw(st.lists(st.text("abcdefgh", min_size=1, max_size=3), unique=True, max_size=6))
    return [
        candidate(
            name,
            draw(st.integers(0, 4)),
            foreign=draw(st.integers(0, 3)),
            max_concurrent=draw(st.integers(1, 4)),
            is_warm=draw(st.booleans()),
        )
        for name in names
    ]


turns = st.integers(0, 1000)


@given(fleets(), turns)
def test_exactly_those_with_room_are_ranked_and_each_once(fleet: list[Candidate], turn: int) -> None:
    ranked = rank_least_loaded(fleet, turn=turn)
    assert sorted(ranked) == sorted(each.backend for each in fleet if each.is_available)


@given(fleets(), turns)
def test_never_one_that_is_full(fleet: list[Candidate], turn: int) -> None:
    by_name = {each.backend: each for each in fleet}
    for name in rank_least_loaded(fleet, turn=turn):
        assert by_name[name].in_flight < by_name[name].max_concurrent


@given(fleets(), turns)
def test_the_emptier_comes_first_and_the_warm_one_among_equals(fleet: list[Candidate], turn: int) -> None:
    by_name = {each.backend: each for each in fleet}
    ranked = [by_name[name] for name in rank_least_loaded(fleet, turn=turn)]
    order = [(each.in_flight + each.foreign, not each.is_warm) for each in ranked]
    assert order == sorted(order)


@given(fleets(), turns)
def test_the_same_question_has_the_same_answer(fleet: list[Candidate], turn: int) -> None:
    assert rank_least_loaded(fleet, turn=turn) == rank_least_loaded(list(fleet), turn=turn)


@given(st.integers(1, 6), turns)
def test_equals_take_turns(count: int, turn: int) -> None:
    fleet = [candidate(f"b{number}") for number in range(count)]
    first = [rank_least_loaded(fleet, turn=turn + step)[0] for step in range(count)]
    assert sorted(first) == [each.backend for each in fleet]
    assert rank_least_loaded(fleet, turn=turn)[0] == rank_least_loaded(fleet, turn=turn + count)[0]


def test_turns_go_round_in_configured_order() -> None:
    fleet = [candidate("a"), candidate("b"), candidate("c")]
    assert [rank_least_loaded(fleet, turn=turn) for turn in range(3)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
    ]


def test_nobody_is_ranked_where_all_are_full_or_none_is() -> None:
    assert rank_least_loaded([candidate("a", 2), candidate("b", 3)], turn=0) == []
    assert rank_least_loaded([], turn=0) == []


def test_strangers_count_as_load() -> None:
    assert rank_least_loaded([candidate("a", foreign=1), candidate("b")], turn=0) == ["b", "a"]
    assert rank_least_loaded([candidate("a", 1, foreign=1), candidate("b", 1)], turn=0) == ["b"]


@given(st.integers(0, 1000), st.integers(1, 5))
def test_strangers_never_keep_our_last_one_out(foreign: int, max_concurrent: int) -> None:
    alone = candidate("a", foreign=foreign, max_concurrent=max_concurrent)
    assert rank_least_loaded([alone], turn=0) == ["a"]
    if foreign >= max_concurrent:
        assert rank_least_loaded([replace(alone, in_flight=1)], turn=0) == []


def test_a_warm_backend_is_not_worth_a_wait() -> None:
    assert rank_least_loaded([candidate("a", 1, is_warm=True), candidate("b")], turn=0) == ["b", "a"]
    assert rank_least_loaded([candidate("a"), candidate("b", is_warm=True)], turn=0) == ["b", "a"]
