"""How often all clients hear how many jobs there are."""

import asyncio

import pytest
from service_support import FakeStreams
from virtual_time import VirtualTime

from comfyproxy.service.announcer import Announcer


class Room:
    """An announcer, and all that it said, each with its time."""

    def __init__(self) -> None:
        self.time = VirtualTime(asyncio.get_running_loop())
        self.begun_s = self.time()
        self.count = 0
        self.said: list[tuple[float, int]] = []
        self.streams = FakeStreams()
        self.streams.on_told = self._told
        self.announcer = Announcer(self.streams, lambda: self.count, min_interval_s=1.0)

    def _told(self) -> None:
        status = self.streams.to("*")[-1]
        assert status["type"] == "status"
        remaining = status["data"]["status"]["exec_info"]["queue_remaining"]
        self.said.append((round(self.time() - self.begun_s, 3), remaining))

    def change(self, count: int) -> None:
        self.count = count
        self.announcer.changed()


@pytest.fixture
async def room() -> Room:
    return Room()


async def test_the_first_change_is_told_at_once(room: Room) -> None:
    room.change(1)
    await asyncio.sleep(0)
    assert room.said == [(0.0, 1)]
    await asyncio.sleep(10)
    assert room.said == [(0.0, 1)]


async def test_a_change_is_told_behind_what_is_said_of_it(room: Room) -> None:
    room.change(1)
    room.change(0)
    room.streams.broadcast_text('{"type": "status", "data": {"status": {"exec_info": {"queue_remaining": -1}}}}')
    await asyncio.sleep(0)
    assert room.said == [(0.0, -1), (0.0, 0)]


async def test_a_burst_is_told_as_one_with_its_last_word(room: Room) -> None:
    room.change(1)
    await asyncio.sleep(0)
    for count in range(2, 1001):
        room.change(count)
    assert room.said == [(0.0, 1)]
    await asyncio.sleep(10)
    assert room.said == [(0.0, 1), (1.0, 1000)]


async def test_what_goes_on_and_on_is_told_at_the_interval(room: Room) -> None:
    for count in range(35):
        room.change(count)
        await asyncio.sleep(0.1)
    await asyncio.sleep(10)
    times = [time_s for time_s, _ in room.said]
    assert times == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert room.said[-1] == (4.0, 34)


async def test_after_a_rest_the_next_change_is_told_at_once(room: Room) -> None:
    room.change(1)
    await asyncio.sleep(1.5)
    room.change(0)
    await asyncio.sleep(0)
    assert room.said == [(0.0, 1), (1.5, 0)]


async def test_it_falls_silent(room: Room) -> None:
    room.change(1)
    await asyncio.sleep(0)
    room.change(2)
    room.announcer.close()
    room.change(3)
    await asyncio.sleep(10)
    assert room.said == [(0.0, 1)]


async def test_it_falls_silent_in_mid_change(room: Room) -> None:
    room.change(1)
    room.announcer.close()
    await asyncio.sleep(10)
    assert room.said == []


async def test_it_falls_silent_after_a_rest_too(room: Room) -> None:
    room.announcer.close()
    room.change(1)
    assert room.said == []
