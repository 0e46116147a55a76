"""What a client is told comes in the order in which a ComfyUI tells it, also over two connections."""

import asyncio
from pathlib import Path

from proxying import Fleet, running_proxy
from simulator_support import endless, sampling, text


async def test_no_event_of_a_prompt_is_told_before_its_post_is_answered(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket = await proxy.socket("me")
        for number in range(20):
            before = len(socket.frames)
            prompt_id = await proxy.submit(text(f"number {number}"), "me")
            # The answer has been read; whatever was sent before it has arrived, too.
            names = [frame["type"] for frame in socket.frames[before:] if frame["type"] != "status"]
            assert names == []
            await socket.until_done(prompt_id)


async def test_it_is_told_that_a_prompt_has_ended_before_it_leaves_the_count(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(endless(), "me")
        await socket.until_event("progress")
        await asyncio.sleep(0.1)  # a count that was told just now would put the next one off
        before = len(socket.frames)
        await proxy.post("/interrupt", {"prompt_id": prompt_id})
        await socket.until_done(prompt_id)
        await socket.until(lambda frame: frame["type"] == "status" and frame in socket.frames[before:])
        names = [frame["type"] for frame in socket.frames[before:]]
        assert names.index("execution_interrupted") < names.index("status")


async def test_no_count_is_told_that_leaves_out_the_clients_own_prompt(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(sampling(seconds=4), "me")
        await socket.until_event("execution_start")
        await asyncio.sleep(0.1)
        counts = [data["status"]["exec_info"]["queue_remaining"] for data in socket.data("status")[1:]]
        assert set(counts) == {1}
        await socket.until_done(prompt_id)
