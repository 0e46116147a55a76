"""Background tasks: owned, named, and never dead unseen."""

import asyncio

import pytest
from virtual_time import VirtualTime, all_quiet

from comfyproxy.service.tasks import Tasks


@pytest.fixture(autouse=True)
async def clock() -> VirtualTime:
    return VirtualTime(asyncio.get_running_loop())


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise ValueError("broken")


async def test_what_ends_by_itself_is_waited_for(clock: VirtualTime) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        tasks.loop(for_ever(), name="loop")
        done: list[str] = []

        async def work(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            done.append(name)
            if name == "first":
                tasks.spawn(work("child", 4), name="child")

        begun_s = clock()
        tasks.spawn(work("first", 1), name="first")
        tasks.spawn(work("second", 3), name="second")
        assert await tasks.finish(10) == []
        assert done == ["first", "second", "child"]
        assert clock() - begun_s == pytest.approx(5)
        tasks.cancel()


async def test_what_does_not_end_in_time_is_named(clock: VirtualTime) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        tasks.loop(for_ever(), name="loop")
        tasks.spawn(for_ever(), name="z")
        tasks.spawn(for_ever(), name="a")
        tasks.spawn(asyncio.sleep(1), name="quick")
        begun_s = clock()
        assert await tasks.finish(5) == ["a", "z"]
        assert clock() - begun_s == pytest.approx(5)
        assert await tasks.finish(0) == ["a", "z"]
        tasks.cancel()


async def test_everything_can_be_stopped() -> None:
    async with asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        tasks.loop(for_ever(), name="loop")
        work = tasks.spawn(for_ever(), name="work")
        await all_quiet()
        tasks.cancel()
    assert work.cancelled()
    assert work.get_name() == "work"


@pytest.mark.parametrize("dying", ["loop", "spawn"])
async def test_what_one_dies_of_ends_all(dying: str) -> None:
    others: list[asyncio.Task[None]] = []

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = Tasks(group)
            others.append(tasks.spawn(for_ever(), name="other"))
            getattr(tasks, dying)(fail(), name="dying")

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert [str(each) for each in caught.value.exceptions] == ["broken"]
    assert others[0].cancelled()
