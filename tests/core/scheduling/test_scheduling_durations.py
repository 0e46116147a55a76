"""What is learned of how long things take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core.jobs import BackendId
from comfyproxy.core.scheduling import durations as durations_module
from comfyproxy.core.scheduling.durations import FIRST_LOAD_S, FIRST_RUN_S, MAX_SPEED, Durations, Popularity

A, B, C = BackendId("a"), BackendId("b"), BackendId("c")
M, N = frozenset({"m"}), frozenset({"n"})


def ran(durations: Durations, backend: BackendId, seconds: float, *, kind: str = "k", times: int = 1) -> None:
    for _ in range(times):
        durations.observe(kind, M, backend, seconds, is_cold=False)


def loaded(durations: Durations, backend: BackendId, seconds: float, *, times: int = 1) -> None:
    for _ in range(times):
        durations.observe("k", M, backend, seconds, is_cold=True)


def test_before_anything_has_run_everything_takes_the_same() -> None:
    durations = Durations()
    assert (durations.run_s("k", A), durations.base_s("k"), durations.speed(A)) == (FIRST_RUN_S, FIRST_RUN_S, 1.0)
    assert (durations.load_s(M, A), durations.load_s(frozenset(), A)) == (FIRST_LOAD_S, 0.0)


def test_a_kind_takes_as_long_as_it_took() -> None:
    durations = Durations()
    ran(durations, A, 3.0)
    assert durations.run_s("k", A) == 3.0
    ran(durations, A, 7.0, times=40)
    assert durations.run_s("k", A) == pytest.approx(7.0, rel=0.01)


def test_what_was_never_seen_takes_as_long_as_others_did() -> None:
    durations = Durations()
    ran(durations, A, 100.0, times=10)
    assert durations.run_s("other", A) == pytest.approx(100.0)


def test_the_slower_one_is_slower_also_with_what_it_has_not_run() -> None:
    durations = Durations()
    for _ in range(40):
        ran(durations, A, 10.0)
        ran(durations, B, 40.0)
    assert durations.speed(A) / durations.speed(B) == pytest.approx(4.0, rel=0.15)
    ran(durations, A, 20.0, kind="new", times=5)
    assert durations.run_s("new", B) == pytest.approx(80.0, rel=0.2)
    durations.forget(B)
    assert durations.speed(B) == 1.0


def test_what_loading_takes_is_told_from_what_running_takes() -> None:
    durations = Durations()
    ran(durations, A, 10.0, times=5)
    loaded(durations, A, 40.0, times=20)
    assert durations.load_s(M, A) == pytest.approx(30.0, rel=0.05)
    assert durations.run_s("k", A) == pytest.approx(10.0)
    assert durations.load_s(M, B) == pytest.approx(30.0, rel=0.05)
    assert durations.load_s(N, B) == pytest.approx(30.0, rel=0.05)


def test_a_first_run_with_loading_is_a_guess_that_the_next_one_corrects() -> None:
    durations = Durations()
    loaded(durations, A, 50.0)
    assert 50.0 / 4 <= durations.run_s("k", A) <= 50.0
    assert durations.load_s(M, A) == FIRST_LOAD_S
    ran(durations, A, 5.0)
    assert durations.run_s("k", A) == 5.0


def test_a_prompt_without_models_is_never_cold() -> None:
    durations = Durations()
    durations.observe("k", frozenset(), A, 4.0, is_cold=True)
    assert durations.run_s("k", A) == 4.0


def test_one_that_ends_at_once_does_no_harm() -> None:
    durations = Durations()
    ran(durations, A, 0.0, times=20)
    ran(durations, B, 1000.0, times=20)
    assert 1 / MAX_SPEED <= durations.speed(B) <= durations.speed(A) <= MAX_SPEED
    assert durations.run_s("k", A) > 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from("kl"),
            st.sampled_from((M, N, frozenset[str]())),
            st.sampled_from((A, B, C)),
            st.floats(0, 1e6),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_whatever_was_seen_all_that_is_expected_is_finite(
    seen: list[tuple[str, frozenset[str], BackendId, float, bool]],
) -> None:
    durations = Durations()
    for kind, models, backend, seconds, is_cold in seen:
        durations.observe(kind, models, backend, seconds, is_cold=is_cold)
    for backend in (A, B, C):
        assert 1 / MAX_SPEED <= durations.speed(backend) <= MAX_SPEED
        assert all(0 < durations.run_s(kind, backend) < 1e9 for kind in "klm")
        assert all(0 <= durations.load_s(models, backend) < 1e9 for models in (M, N))


def test_only_so_much_is_remembered_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durations_module, "REMEMBERED", 2)
    durations = Durations()
    for kind, seconds in (("one", 1.0), ("two", 2.0), ("one", 1.0), ("three", 3.0)):
        ran(durations, A, seconds, kind=kind)
    assert (durations.run_s("one", A), durations.run_s("three", A)) == (1.0, 3.0)
    assert durations.run_s("two", A) != 2.0
    popularity = Popularity()
    for name in ("x", "y", "z"):
        popularity.asked(frozenset({name}), 0.0)
    assert [popularity.per_second(frozenset({name}), 0.0) > 0 for name in "xyz"] == [False, True, True]


def test_models_that_are_asked_for_are_popular_for_a_while() -> None:
    popularity = Popularity(fades_s=100.0)
    assert popularity.per_second(M, 0.0) == 0.0
    for second in range(1000):
        popularity.asked(M, float(second))
    popularity.asked(frozenset(), 999.0)
    assert popularity.per_second(M, 999.0) == pytest.approx(1.0, rel=0.05)
    assert popularity.per_second(N, 999.0) == popularity.per_second(frozenset(), 999.0) == 0.0
    assert popularity.per_second(M, 1099.0) == pytest.approx(0.37, rel=0.05)
