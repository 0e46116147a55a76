"""One job is moved by one hand at a time."""

import asyncio

import pytest
from service_support import make_job
from virtual_time import VirtualTime, all_quiet

from comfyproxy.service.live import LiveJob


@pytest.fixture(autouse=True)
async def clock() -> VirtualTime:
    return VirtualTime(asyncio.get_running_loop())


@pytest.fixture
def live() -> LiveJob:
    return LiveJob(make_job("p"))


async def test_transitions_come_one_after_the_other(live: LiveJob) -> None:
    log: list[str] = []

    async def move(name: str) -> None:
        async with live.transition():
            log.append(f"{name} begins")
            await asyncio.sleep(1)
            log.append(f"{name} ends")

    await asyncio.gather(*(move(name) for name in "abc"))
    assert log[0::2] == [each.replace("ends", "begins") for each in log[1::2]]
    assert sorted(log[0::2]) == ["a begins", "b begins", "c begins"]
    assert live.moving is None


async def test_a_transition_waits_for_what_departed_before(live: LiveJob) -> None:
    live.depart()
    has_begun = False

    async def move() -> None:
        nonlocal has_begun
        async with live.transition():
            has_begun = True

    waiting = asyncio.create_task(move())
    await all_quiet()
    assert not has_begun
    live.rest()
    await waiting
    assert has_begun


async def test_who_departs_twice_is_a_bug(live: LiveJob) -> None:
    live.depart()
    with pytest.raises(RuntimeError, match="on the move already"):
        live.depart()
    live.rest()
    live.rest()
    live.depart()


async def test_nobody_departs_inside_of_a_transition(live: LiveJob) -> None:
    async with live.transition():
        with pytest.raises(RuntimeError):
            live.depart()
    assert live.moving is None


async def test_a_transition_that_fails_lets_the_next_begin(live: LiveJob) -> None:
    with pytest.raises(ValueError, match="broken"):
        async with live.transition():
            raise ValueError("broken")
    async with live.transition():
        assert live.moving is not None


async def test_who_gives_up_waiting_leaves_no_trace(live: LiveJob) -> None:
    live.depart()

    async def move() -> None:
        async with live.transition():
            raise AssertionError("it was not at rest")

    waiting = asyncio.create_task(move())
    await all_quiet()
    waiting.cancel()
    await all_quiet()
    assert waiting.cancelled()
    assert live.moving is not None
    live.rest()
    async with live.transition():
        pass


def test_two_jobs_are_never_equal() -> None:
    assert LiveJob(make_job("p")) != LiveJob(make_job("p"))
    assert len({LiveJob(make_job("p")), LiveJob(make_job("p"))}) == 2
