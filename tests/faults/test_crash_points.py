"""The proxy is killed at every write to its store and every send to a backend, in turn, before it and after it.

Each time a new proxy on the same folder takes over. What had its 200 ends once; what had none runs once or never; and
nothing runs twice that has not lost its backend.
"""

import asyncio
import sys
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crash_lives import Lives, Seen
from proxying import Fleet, Proxy
from simulator_support import endless, sampling

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it forks, and kills with SIGKILL")

MOST_POINTS = 60
QUICK = 1000.0  # times faster: nothing takes time any more


def a_prompt(seconds: float = 0.0) -> Seen:
    prompt_id = str(uuid.uuid4())
    graph = sampling(int(prompt_id[:6], 16), steps=20 if seconds else 1, seconds=seconds)
    return Seen(prompt_id, {"prompt": graph, "client_id": "me", "prompt_id": prompt_id})


async def submit(proxy: Proxy, seen: Seen) -> None:
    status, answer = await proxy.post("/prompt", seen.body)
    assert (status, answer["prompt_id"]) == (200, seen.prompt_id)
    seen.is_accepted = True


async def eventually(wanted: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not wanted():
            await asyncio.sleep(0.005)


def runs(fleet: Fleet, prompt_id: str) -> int:
    return sum(ran.count(prompt_id) for ran in fleet.executed.values())


def where(fleet: Fleet, prompt_id: str) -> str | None:
    return next((name for name, ran in fleet.executed.items() if prompt_id in ran), None)


async def block(proxy: Proxy, fleet: Fleet, *, times: int = 1) -> None:
    """Let a prompt run that does not end by itself."""
    for seed in range(times):
        await proxy.submit(endless(seed), "other")
    await eventually(lambda: fleet["a"].executed)


def unblock(fleet: Fleet) -> None:
    for backend in fleet.backends.values():
        backend.hurry(QUICK)
    fleet["a"].process.executor.interrupt()


@dataclass(frozen=True)
class Story:
    """One life of a prompt.

    Attributes:
        prepare: before points count.
        steps: from the submission to the end.
        mend: what must come about for the prompt to end, wherever the proxy died.
    """

    steps: Callable[[Proxy, Fleet, Seen], Awaitable[None]]
    prepare: Callable[[Proxy, Fleet], Awaitable[None]] | None = None
    mend: Callable[[Fleet], None] | None = None
    names: tuple[str, ...] = ("a",)
    max_concurrent: int = 1
    seconds: float = 0.0
    runs_at_most: int = 1
    speed: float = 20.0
    points_at_least: int = 4


async def to_an_idle_backend(proxy: Proxy, fleet: Fleet, seen: Seen) -> None:
    await submit(proxy, seen)
    await proxy.ended(seen.prompt_id)


async def while_all_are_busy(proxy: Proxy, fleet: Fleet, seen: Seen) -> None:
    """It visits the backend to be judged, is withdrawn, waits, and is dispatched."""
    await submit(proxy, seen)
    await eventually(lambda: seen.prompt_id not in [item[1] for item in fleet["a"].process.queue.waiting()])
    unblock(fleet)
    await proxy.ended(seen.prompt_id)


async def and_its_backend_dies(proxy: Proxy, fleet: Fleet, seen: Seen) -> None:
    await submit(proxy, seen)
    await eventually(lambda: where(fleet, seen.prompt_id))
    lost = where(fleet, seen.prompt_id)
    assert lost is not None
    fleet["b" if lost == "a" else "a"].hurry(QUICK)
    await fleet[lost].kill()
    await proxy.ended(seen.prompt_id)


async def delete(proxy: Proxy, seen: Seen) -> None:
    seen.was_to_be_cancelled = True
    status, _ = await proxy.post("/queue", {"delete": [seen.prompt_id]})
    assert status == 200
    seen.is_cancelled = True


async def deleted_while_it_waits(proxy: Proxy, fleet: Fleet, seen: Seen) -> None:
    await submit(proxy, seen)
    await eventually(lambda: seen.prompt_id not in [item[1] for item in fleet["a"].process.queue.waiting()])
    await delete(proxy, seen)


async def deleted_on_its_backend(proxy: Proxy, fleet: Fleet, seen: Seen) -> None:
    await submit(proxy, seen)
    await delete(proxy, seen)


async def interrupted_while_it_runs(proxy: Proxy, fleet: Fleet, seen: Seen) -> None:
    await submit(proxy, seen)
    async with asyncio.timeout(20):
        while seen.prompt_id not in (await proxy.queue())[0]:
            await asyncio.sleep(0.005)
    seen.was_to_be_cancelled = True
    await proxy.post("/interrupt", {"prompt_id": seen.prompt_id})
    await proxy.ended(seen.prompt_id)


def hurry(fleet: Fleet) -> None:
    for backend in fleet.backends.values():
        if backend.faults._hooks is not None:  # it lives
            backend.hurry(QUICK)


STORIES = {
    "to an idle backend": Story(to_an_idle_backend),
    "while all are busy": Story(while_all_are_busy, prepare=block, mend=unblock, points_at_least=8),
    "and its backend dies": Story(
        and_its_backend_dies, mend=hurry, names=("a", "b"), seconds=20.0, runs_at_most=2, points_at_least=6
    ),
    "deleted while it waits": Story(deleted_while_it_waits, prepare=block, mend=unblock, points_at_least=6),
    "deleted on its backend": Story(deleted_on_its_backend, prepare=block, mend=unblock, max_concurrent=2),
    "interrupted while it runs": Story(interrupted_while_it_runs, mend=hurry, seconds=20.0, points_at_least=5),
}


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("name", STORIES)
async def test_whenever_the_proxy_is_killed_a_prompt_ends_once(tmp_path: Path, name: str, side: str) -> None:
    story = STORIES[name]
    async with Lives() as lives:
        for point in range(1, MOST_POINTS):
            if await dies_at(point, side, story, lives, tmp_path / str(point)):
                break
        else:
            pytest.fail(f"no end after {MOST_POINTS} points")
    assert point > story.points_at_least


async def dies_at(point: int, side: str, story: Story, lives: Lives, folder: Path) -> bool:
    """Play a story with a proxy that dies at a point, and with its successor; return whether it did not die."""
    seen = a_prompt(story.seconds)
    at = f"killed {side} point {point}"
    async with Fleet(*story.names, speed=story.speed) as fleet:
        room = story.max_concurrent
        async with lives.life(fleet, folder, max_concurrent=room, point=point, side=side) as life:
            await life.proxy.ready(*story.names)
            if story.prepare is not None:
                await story.prepare(life.proxy, fleet)
            await life.arm()
            lived = await life.outlives(lambda: story.steps(life.proxy, fleet, seen))
        if story.mend is not None:
            story.mend(fleet)
        async with lives.life(fleet, folder, max_concurrent=room) as life:
            await holds(life.proxy, fleet, seen, story, at)
    return lived


async def holds(proxy: Proxy, fleet: Fleet, seen: Seen, story: Story, at: str) -> None:
    """The promises, as the successor keeps them."""
    socket = await proxy.socket("me")
    entry = await end_of(proxy, seen, at)
    if seen.is_cancelled:
        assert (entry, runs(fleet, seen.prompt_id)) == (None, 0), f"{at}: it was cancelled, and has run"
    elif seen.is_accepted and not seen.was_to_be_cancelled:
        assert entry is not None, f"{at}: it was accepted, and is lost"
    if entry is not None:
        wanted = ("success", "error") if seen.was_to_be_cancelled else ("success",)
        assert entry["status"]["status_str"] in wanted, f"{at}: {entry['status']}"
    assert runs(fleet, seen.prompt_id) <= story.runs_at_most, f"{at}: it has run more than once"
    if not seen.is_accepted and not seen.was_to_be_cancelled:
        # Its client never saw an answer, and asks again.
        await submit(proxy, seen)
        await proxy.ended(seen.prompt_id)
        assert 1 <= runs(fleet, seen.prompt_id) <= story.runs_at_most, f"{at}: its retry has run once more"
    await nothing_is_left(proxy, fleet)
    ends = [
        frame["type"]
        for frame in socket.frames
        if frame["type"] in ("execution_success", "execution_error", "execution_interrupted")
        and frame["data"]["prompt_id"] == seen.prompt_id
    ]
    assert len(ends) <= 1, f"{at}: its end was told more than once: {ends}"


async def end_of(proxy: Proxy, seen: Seen, at: str) -> Any:
    """Wait until a prompt has ended, or is not known; return its history entry."""
    try:
        async with asyncio.timeout(20):
            while True:
                entry = (await proxy.get(f"/history/{seen.prompt_id}")).get(seen.prompt_id)
                status, _ = await proxy.call("GET", f"/api/jobs/{seen.prompt_id}")
                if entry is not None or status == 404:
                    return entry
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"{at}: it does not end: {await proxy.queue()}")


async def nothing_is_left(proxy: Proxy, fleet: Fleet) -> None:
    async with asyncio.timeout(20):
        while (await proxy.get("/prompt"))["exec_info"]["queue_remaining"]:
            await asyncio.sleep(0.01)
    for backend in fleet.backends.values():
        if backend.faults._hooks is not None:
            queue = backend.process.queue
            async with asyncio.timeout(20):
                while queue.running() or queue.waiting():
                    await asyncio.sleep(0.005)
