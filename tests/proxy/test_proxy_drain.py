"""An operator takes backends out and brings them back."""

from pathlib import Path

from proxying import Fleet, running_proxy
from simulator_support import endless, sampling, text

API = "/comfyproxy/v1"


async def test_a_drained_backend_finishes_what_runs_and_gives_back_what_waits(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket = await proxy.socket("me")
        running = [await proxy.submit(sampling(seed, steps=40, seconds=16), "me") for seed in range(4)]
        status, answer = await proxy.post(f"{API}/backends/a/drain")
        assert (status, answer["state"]) == (200, "draining")
        new = await proxy.submit(text(), "me")
        for prompt_id in (*running, new):
            await socket.until_done(prompt_id)
        assert len(fleet["a"].executed) == 1
        assert len(fleet["b"].executed) == 4
        assert (await proxy.get(f"{API}/backends/a"))["state"] == "drained"
        await proxy.post(f"{API}/backends/a/undrain")
        await proxy.ended(await proxy.submit(text("again"), "another"))
        assert (await proxy.get(f"{API}/backends/a"))["state"] == "ready"


async def test_a_drain_outlives_a_restart_of_the_proxy(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet:
        async with running_proxy(fleet, tmp_path) as proxy:
            await proxy.post(f"{API}/backends/a/drain")
        async with running_proxy(fleet, tmp_path, wait_ready=False) as proxy:
            await proxy.ready("b")
            assert (await proxy.states())["a"] == "drained"
            for number in range(3):
                await proxy.ended(await proxy.submit(text(str(number)), f"client {number}"))
            assert fleet["a"].executed == []


async def test_without_any_undrained_backend_prompts_are_refused(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        await proxy.post(f"{API}/backends/a/drain")
        assert (await proxy.post("/prompt", {"prompt": text()}))[0] == 503
        assert (await proxy.call("GET", "/readyz"))[0] == 503


async def test_where_a_job_is_can_be_asked(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        socket = await proxy.socket("me")
        running = await proxy.submit(endless(), "me")
        await socket.until_event("progress")
        waiting = await proxy.submit(text(), "me")
        assert (await proxy.get(f"{API}/jobs/{running}"))["state"] == "running"
        assert (await proxy.get(f"{API}/jobs/{running}"))["backend"] == "a"
        assert (await proxy.get(f"{API}/jobs/{waiting}"))["state"] in ("accepted", "queued")
        await proxy.post("/interrupt", {"prompt_id": running})
        await proxy.ended(waiting)
        assert (await proxy.get(f"{API}/jobs/{running}"))["state"] == "cancelled"
        assert (await proxy.call("GET", f"{API}/jobs/unknown"))[0] == 404
        (backend,) = (await proxy.get(f"{API}/backends"))["backends"]
        assert (backend["name"], backend["link_connected"]) == ("a", True)
        assert (await proxy.call("GET", f"{API}/backends/unknown"))[0] == 404
