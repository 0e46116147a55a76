"""The proxy stops and starts again: what was accepted goes on, what has ended is remembered."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from proxying import Fleet, running_proxy
from simulator_support import sampling, text

from comfyproxy.core.ports import StoreInUse
from comfyproxy.settings import HistorySettings


async def test_unfinished_prompts_go_on_after_a_restart(tmp_path: Path) -> None:
    async with Fleet("a", speed=10.0) as fleet:
        async with running_proxy(fleet, tmp_path) as proxy:
            ids = [await proxy.submit(sampling(seed, seconds=3), "me") for seed in range(4)]
        async with running_proxy(fleet, tmp_path) as proxy:
            socket = await proxy.socket("me")
            for prompt_id in ids:
                assert (await proxy.ended(prompt_id))["status"]["status_str"] == "success"
            await socket.until_done(ids[-1])
        assert fleet["a"].executed == ids


async def test_what_ended_while_the_proxy_was_away_is_settled(tmp_path: Path) -> None:
    async with Fleet("a") as fleet:
        async with running_proxy(fleet, tmp_path) as proxy:
            prompt_id = await proxy.submit(sampling(seconds=2), "me")
        async with asyncio.timeout(10):
            while not fleet["a"].process.history.entry(prompt_id):
                await asyncio.sleep(0.01)
        async with running_proxy(fleet, tmp_path) as proxy:
            socket = await proxy.socket("me")
            await socket.until_done(prompt_id)
            assert [data["node"] for data in socket.data("executed")] == ["3"]
            assert (await proxy.ended(prompt_id))["status"]["completed"]


async def test_history_jobs_and_numbers_survive(tmp_path: Path) -> None:
    async with Fleet("a") as fleet:
        async with running_proxy(fleet, tmp_path) as proxy:
            entry = await proxy.ended(await proxy.submit(text(), "me"))
            jobs = await proxy.get("/api/jobs")
            _, first = await proxy.post("/prompt", {"prompt": text()})
            await proxy.ended(first["prompt_id"])
        async with running_proxy(fleet, tmp_path) as proxy:
            assert (await proxy.get("/history"))[entry["prompt"][1]] == entry
            assert (await proxy.get("/api/jobs"))["jobs"][-1] == jobs["jobs"][0]
            _, second = await proxy.post("/prompt", {"prompt": text()})
            assert second["number"] > first["number"]


@pytest.mark.parametrize("is_configured", [True, False])
async def test_prompts_of_a_backend_that_is_gone_run_elsewhere(tmp_path: Path, is_configured: bool) -> None:
    async with Fleet("a", "b") as fleet:
        async with running_proxy(fleet, tmp_path) as proxy:
            prompt_id = await proxy.submit(sampling(seconds=5), "me")
            (name,) = (name for name, backend in fleet.backends.items() if prompt_id in backend.accepted)
        await fleet[name].kill()
        urls = {each: backend.url for each, backend in fleet.backends.items() if is_configured or each != name}
        async with running_proxy(urls, tmp_path, wait_ready=False) as proxy:
            assert (await proxy.ended(prompt_id))["status"]["status_str"] == "success"


async def test_a_second_proxy_on_the_same_store_is_refused(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path):
        with pytest.raises(StoreInUse, match=r"comfyproxy\.sqlite3"):
            async with running_proxy(fleet, tmp_path):
                pass


async def test_history_is_bounded(tmp_path: Path) -> None:
    async with (
        Fleet("a", speed=100.0) as fleet,
        running_proxy(fleet, tmp_path, history=HistorySettings(max_items=3)) as proxy,
    ):
        ids = []
        for number in range(5):
            ids.append(await proxy.submit(text(str(number)), "me"))
            await proxy.ended(ids[-1])
        assert list(await proxy.get("/history")) == ids[2:]


async def test_while_it_stops_it_takes_no_prompts_and_says_goodbye_to_sockets(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket = await proxy.socket("me")
        # A prompt on its way keeps the proxy from stopping at once.
        fleet["a"].faults.delay_s = fleet["b"].faults.delay_s = 0.5
        on_its_way = asyncio.create_task(proxy.submit(text(), "me"))
        async with asyncio.timeout(5):
            while not any(("POST", "/prompt") in backend.requests for backend in fleet.backends.values()):
                await asyncio.sleep(0.01)
        proxy.stop.set()
        async with proxy.session.post(f"{proxy.url}/prompt", json={"prompt": text()}) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert json.loads(await answer.read())["error"]["type"] == "shutting_down"
        assert await on_its_way
        assert await socket.ended() is aiohttp.WSMsgType.CLOSE
        assert socket.ws.close_code == 1001
