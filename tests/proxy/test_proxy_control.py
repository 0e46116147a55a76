"""Interrupting, deleting, clearing and freeing, over the whole fleet."""

import asyncio
import uuid
from pathlib import Path

import pytest
from proxying import Fleet, Proxy, running_proxy
from simulator_support import Socket, endless, text


async def _runs(proxy: Proxy, client_id: str, seed: int = 1) -> tuple[Socket, str]:
    socket = await proxy.socket(client_id)
    prompt_id = await proxy.submit(endless(seed), client_id)
    await socket.until_event("progress")
    return socket, prompt_id


async def test_an_interrupt_by_id_stops_that_prompt_and_no_other(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        one, first = await _runs(proxy, "one")
        _, second = await _runs(proxy, "two", 2)
        assert (await proxy.post("/interrupt", {"prompt_id": str(uuid.uuid4())}))[0] == 200
        assert (await proxy.post("/interrupt", {"prompt_id": first}))[0] == 200
        await one.until_done(first)
        assert (await proxy.queue()) == ([second], [])
        assert (await proxy.get(f"/api/jobs/{first}"))["status"] == "cancelled"


async def test_an_interrupt_without_an_id_stops_all_that_run_through_the_proxy(tmp_path: Path) -> None:
    async with Fleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        started = [await _runs(proxy, f"client {seed}", seed) for seed in range(2)]
        idle = next(name for name, ran in fleet.executed.items() if not ran)
        async with Proxy(fleet[idle].url, asyncio.Event()) as stranger:
            _, foreign = await _runs(stranger, "stranger", 9)
            assert (await proxy.post("/interrupt"))[0] == 200
            for socket, prompt_id in started:
                await socket.until_done(prompt_id)
            assert (await stranger.queue())[0] == [foreign]


async def test_an_interrupt_without_an_id_can_be_refused(tmp_path: Path) -> None:
    async with (
        Fleet("a") as fleet,
        running_proxy(fleet, tmp_path, interrupt_without_id="reject") as proxy,
    ):
        socket, prompt_id = await _runs(proxy, "me")
        status, body = await proxy.post("/interrupt")
        assert (status, body["error"]["type"]) == (400, "prompt_id_required")
        assert (await proxy.post("/interrupt", {"prompt_id": prompt_id}))[0] == 200
        await socket.until_done(prompt_id)


@pytest.mark.parametrize("room", [1, 2])
async def test_what_waits_can_be_deleted_wherever_it_waits(tmp_path: Path, room: int) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, max_concurrent=room) as proxy:
        socket, running = await _runs(proxy, "me")
        waiting = [await proxy.submit(text(str(number)), "me") for number in range(3)]
        assert (await proxy.post("/queue", {"delete": [waiting[0], running, "nonsense"]}))[0] == 200
        assert await proxy.queue() == ([running], waiting[1:])
        assert await proxy.get(f"/history/{waiting[0]}") == {}
        assert (await proxy.post("/queue", {"clear": True}))[0] == 200
        assert await proxy.queue() == ([running], [])
        await proxy.post("/interrupt", {"prompt_id": running})
        await socket.until_done(running)
        assert fleet["a"].executed == [running]
        assert (await proxy.get("/prompt"))["exec_info"]["queue_remaining"] == 0


async def test_deleting_while_prompts_start_and_end_leaves_no_job_behind(tmp_path: Path) -> None:
    async with Fleet("a", "b", speed=100.0) as fleet, running_proxy(fleet, tmp_path) as proxy:

        async def come_and_go(number: int) -> tuple[str, bool]:
            prompt_id = await proxy.submit(text(str(number)), f"client {number % 5}")
            await proxy.post("/queue", {"delete": [prompt_id]})
            return prompt_id, prompt_id in await proxy.get(f"/history/{prompt_id}")

        ids = [prompt_id for prompt_id, _ in await asyncio.gather(*(come_and_go(number) for number in range(100)))]
        async with asyncio.timeout(20):
            while (await proxy.get("/prompt"))["exec_info"]["queue_remaining"]:
                await asyncio.sleep(0.01)
        history = await proxy.get("/history")
        ran = [prompt_id for executed in fleet.executed.values() for prompt_id in executed]
        assert len(ran) == len(set(ran))
        assert set(history) == set(ran) <= set(ids)


async def test_the_deleted_are_not_run_after_a_restart(tmp_path: Path) -> None:
    async with Fleet("a") as fleet:
        async with running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
            await _runs(proxy, "me")
            waiting = await proxy.submit(text(), "me")
            await proxy.post("/queue", {"delete": [waiting]})
        async with running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
            assert (await proxy.queue())[1] == []


@pytest.mark.parametrize("path", ["/queue", "/history"])
async def test_a_body_that_is_no_json_is_refused_and_changes_nothing(tmp_path: Path, path: str) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        assert (await proxy.post(path, data=b"{"))[0] == 400
        assert (await proxy.post(path, ["clear"]))[0] == 400


async def test_free_reaches_every_backend(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        assert (await proxy.post("/free", {"unload_models": True}))[0] == 200
        for backend in fleet.backends.values():
            assert ("POST", "/free") in backend.requests
