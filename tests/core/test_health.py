"""Health: how many observations in a row turn it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core.health import Health, eject, observe


def after(observations: str, health: Health | None = None, *, rise: int = 2, fall: int = 3) -> Health:
    """Fold in `+` for a pass, `-` for a failure, and `x` for the proof of death."""
    health = health or Health()
    for observation in observations:
        health = eject(health) if observation == "x" else observe(health, observation == "+", rise=rise, fall=fall)
    return health


UP = Health(healthy=True)


def test_a_backend_is_unhealthy_until_it_has_passed_often_enough() -> None:
    assert not Health().healthy
    assert not after("+").healthy
    assert after("++") == UP


def test_a_healthy_backend_falls_after_failures_in_a_row_only() -> None:
    assert after("--", UP).healthy
    assert after("--+--", UP).healthy
    assert after("---", UP) == Health(healthy=False)


def test_an_unhealthy_backend_rises_after_passes_in_a_row_only() -> None:
    assert not after("+-+").healthy
    assert after("+-++").healthy


def test_a_proof_of_death_needs_no_second() -> None:
    assert after("x", UP) == Health(healthy=False)
    assert not after("x+", UP).healthy
    assert after("x++", UP).healthy


def test_a_proof_of_death_ends_a_row_of_passes() -> None:
    assert not after("+x+").healthy
    assert after("+x++").healthy


@pytest.mark.parametrize("fall", [1, 2, 5])
def test_each_direction_has_its_own_count(fall: int) -> None:
    assert after("-" * (fall - 1), UP, rise=1, fall=fall).healthy
    assert not after("-" * fall, UP, rise=1, fall=fall).healthy
    assert after("-" * fall + "+", UP, rise=1, fall=fall).healthy


@given(st.text("+-x", max_size=30), st.integers(1, 4), st.integers(1, 4))
def test_it_is_what_the_last_row_of_observations_says(observations: str, rise: int, fall: int) -> None:
    healthy = False
    for end in range(1, len(observations) + 1):
        seen = observations[:end]
        if seen.endswith("+" * rise):
            healthy = True
        elif seen.endswith(("x", "-" * fall)):
            healthy = False
        assert after(seen, rise=rise, fall=fall).healthy is healthy
