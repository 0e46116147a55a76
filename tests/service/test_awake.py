"""Silence counts only while somebody could have heard a sound."""

import asyncio
from collections.abc import Callable

import pytest
from service_support import make_fleet

from comfyproxy.service.awake import AwakeClock


class Time:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def time() -> Time:
    return Time()


async def test_it_runs_while_the_loop_does(time: Time) -> None:
    clock = AwakeClock(time, period_s=1.0)
    started = clock.now()
    time.s += 2.5
    assert clock.now() - started == 2.5


async def test_what_was_slept_does_not_count(time: Time) -> None:
    clock = AwakeClock(time, period_s=1.0)
    started = clock.now()
    time.s += 3600.0
    assert clock.now() - started == 1.0


async def test_a_sleep_is_left_out_for_good(time: Time, ticking: Callable[[AwakeClock], None]) -> None:
    clock = AwakeClock(time, period_s=0.001)
    started = clock.now()
    time.s += 3600.0
    ticking(clock)
    async with asyncio.timeout(5):
        while clock._ticked_s != time.s:
            await asyncio.sleep(0)
    time.s += 0.002
    assert clock.now() - started == pytest.approx(0.003)


@pytest.fixture
def ticking() -> Callable[[AwakeClock], None]:
    """Return what lets a clock tick until the test ends, when its loop takes the task along."""
    tasks = []

    def start(clock: AwakeClock) -> None:
        tasks.append(asyncio.ensure_future(clock.run()))

    return start


async def test_a_backend_is_not_silent_for_the_time_that_the_proxy_slept(time: Time) -> None:
    clock = AwakeClock(time, period_s=1.0)
    fleet = make_fleet("a", now=clock.now)
    backend = fleet.get("a")
    assert backend is not None
    fleet.note_alive(backend)
    time.s += 600.0
    assert fleet.silent_for_s(backend) == 1.0
