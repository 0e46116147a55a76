"""More than there is room for, and nobody there to take it."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from proxying import EAGER, Fleet, running_proxy
from simulator_support import endless, sampling, text

from comfyproxy.settings import HealthCheck, QueueSettings, WebsocketSettings


async def test_a_full_queue_says_when_to_try_again(tmp_path: Path) -> None:
    async with (
        Fleet("a") as fleet,
        running_proxy(fleet, tmp_path, queue=QueueSettings(max_jobs=2)) as proxy,
    ):
        socket = await proxy.socket("me")
        running = await proxy.submit(endless(), "me")
        await socket.until_event("progress")
        waiting = await proxy.submit(text(), "me")
        async with proxy.session.post(f"{proxy.url}/prompt", json={"prompt": text("too much")}) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "10")
            assert (await answer.json())["error"]["type"] == "queue_full"
        await proxy.post("/interrupt", {"prompt_id": running})
        await proxy.ended(waiting)
        await proxy.submit(text("now it fits"), "me")


async def test_a_retry_is_answered_also_when_the_queue_is_full(tmp_path: Path) -> None:
    body = {"prompt": endless(), "prompt_id": "00000000-0000-4000-8000-000000000001"}
    async with (
        Fleet("a") as fleet,
        running_proxy(fleet, tmp_path, queue=QueueSettings(max_jobs=1)) as proxy,
    ):
        assert (await proxy.post("/prompt", body))[0] == 200
        assert (await proxy.post("/prompt", body))[0] == 200
        assert (await proxy.post("/prompt", {"prompt": text()}))[0] == 429


async def test_a_prompt_can_wait_for_a_backend_to_come_up(tmp_path: Path) -> None:
    async with (
        Fleet("a") as fleet,
        running_proxy(fleet, tmp_path, health_check=EAGER, queue=QueueSettings(wait_for_backend=20.0)) as proxy,
    ):
        await fleet["a"].kill()
        await proxy.state_is("a", "unhealthy")
        waiting = asyncio.create_task(proxy.submit(text(), "me"))
        await fleet["a"].restart()
        await proxy.ended(await waiting)


async def test_a_prompt_does_not_wait_longer_than_configured(tmp_path: Path) -> None:
    async with running_proxy(
        {"a": "http://127.0.0.1:1"}, tmp_path, wait_ready=False, queue=QueueSettings(wait_for_backend=0.2)
    ) as proxy:
        assert (await proxy.post("/prompt", {"prompt": text()}))[0] == 503


async def test_a_stop_does_not_wait_for_those_who_wait_for_a_backend(tmp_path: Path) -> None:
    async with running_proxy(
        {"a": "http://127.0.0.1:1"}, tmp_path, wait_ready=False, queue=QueueSettings(wait_for_backend=60.0)
    ) as proxy:
        waiting = asyncio.create_task(proxy.post("/prompt", {"prompt": text()}))
        for _ in range(3):
            await proxy.get("/healthz")  # what was sent before it has been read
        proxy.stop.set()
        status, body = await waiting
        assert (status, body["error"]["type"]) == (503, "shutting_down")


async def test_a_prompt_that_makes_no_progress_runs_elsewhere_though_its_backend_answers(tmp_path: Path) -> None:
    check = HealthCheck(interval=0.1, timeout=0.5, heartbeat_timeout=60.0, stall_timeout=0.5, rise=1, fall=2)
    async with Fleet("a", "b", speed=1.0) as fleet, running_proxy(fleet, tmp_path, health_check=check) as proxy:
        socket = await proxy.socket("me")
        # One step of a minute is all that the first server does; the second one has got over it.
        prompt_id = await proxy.submit(sampling(steps=1, seconds=60), "me")
        await socket.until_event("execution_start")
        (name,) = (name for name, ran in fleet.executed.items() if ran)
        other = "b" if name == "a" else "a"
        async with asyncio.timeout(10):
            while prompt_id not in fleet[other].executed:
                await asyncio.sleep(0.01)
        assert (await proxy.states())[name] == "unhealthy"
        status = await proxy.get(f"/comfyproxy/v1/backends/{name}")
        assert "hangs" in status["last_error"]


async def test_there_is_an_end_to_websockets_and_one_that_goes_makes_room(tmp_path: Path) -> None:
    few = WebsocketSettings(max_sockets=2)
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, websocket=few) as proxy:
        one, _ = await proxy.socket("one"), await proxy.socket("two")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await proxy.session.ws_connect(f"{proxy.url}/ws?clientId=three")
        assert refused.value.status == 503
        assert refused.value.headers is not None
        assert refused.value.headers["Retry-After"] == "10"
        await one.close()
        async with asyncio.timeout(5):
            while b"comfyproxy_websocket_clients 1.0" not in await proxy.get("/metrics"):
                await asyncio.sleep(0.01)
        async with proxy.session.ws_connect(f"{proxy.url}/ws?clientId=three") as three:
            assert (await three.receive_json())["type"] == "status"
