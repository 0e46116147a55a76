"""A backend is lost: its prompts run elsewhere, once, under the same id, and their clients see no error."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from proxying import EAGER, Fleet, Proxy, running_proxy
from simulator_support import Socket, endless, sampling, text

from comfyproxy.settings import HealthCheck, LoadBalancing


def terminal(socket: Socket, prompt_id: str) -> list[str]:
    """Return the ends of a prompt that its client was told."""
    ends = ("execution_success", "execution_error", "execution_interrupted")
    return [f["type"] for f in socket.frames if f["type"] in ends and f["data"]["prompt_id"] == prompt_id]


async def _running(proxy: Proxy, fleet: Fleet, graph: dict[str, Any], client_id: str = "me") -> tuple[Socket, str, str]:
    """Start a prompt; return its client's socket, its id, and the name of its backend."""
    socket = await proxy.socket(client_id)
    prompt_id = await proxy.submit(graph, client_id)
    await socket.until(lambda f: f["type"] == "execution_start" and f["data"]["prompt_id"] == prompt_id)
    (name,) = (name for name, ran in fleet.executed.items() if prompt_id in ran)
    return socket, prompt_id, name


@pytest.mark.parametrize("blow", ["killed", "restarted"])
async def test_running_and_pending_prompts_of_a_dead_backend_run_elsewhere(tmp_path: Path, blow: str) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        socket, running, name = await _running(proxy, fleet, sampling(steps=40, seconds=8))
        pending = [await proxy.submit(sampling(seed), "me") for seed in range(3)]
        await (fleet[name].kill() if blow == "killed" else fleet[name].restart())
        for prompt_id in (running, *pending):
            await socket.until_done(prompt_id)
            assert terminal(socket, prompt_id) == ["execution_success"]
            assert (await proxy.get(f"/history/{prompt_id}"))[prompt_id]["status"]["completed"]
        starts = [data["prompt_id"] for data in socket.data("execution_start")]
        assert starts.count(running) == 2


async def test_prompts_of_a_frozen_backend_run_elsewhere_after_the_heartbeat_timeout(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        socket, prompt_id, name = await _running(proxy, fleet, sampling(steps=40, seconds=8))
        fleet[name].faults.freeze()
        await socket.until_done(prompt_id)
        assert terminal(socket, prompt_id) == ["execution_success"]
        other = "b" if name == "a" else "a"
        assert prompt_id in fleet[other].executed
        fleet[name].faults.thaw()
        await proxy.state_is(name, "ready")
        assert await proxy.get(f"/history/{prompt_id}") != {}


async def test_a_backend_that_comes_back_is_rid_of_what_has_moved_on(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        socket, running, name = await _running(proxy, fleet, endless())
        pinned = {"X-Comfyproxy-Backend": name}
        _, answer = await proxy.post("/prompt", {"prompt": sampling(2), "client_id": "me"}, headers=pinned)
        other = "b" if name == "a" else "a"
        fleet[name].faults.freeze()
        await socket.until(lambda f: f["type"] == "execution_start" and running in fleet[other].executed)
        fleet[name].faults.thaw()
        await proxy.state_is(name, "ready", "busy")
        async with asyncio.timeout(10):
            while running in [item[1] for item in fleet[name].process.queue.running()]:
                await asyncio.sleep(0.01)
        # What was pinned there ran there, and nothing ran twice on it.
        await proxy.ended(answer["prompt_id"])
        assert fleet[name].executed == [running, answer["prompt_id"]]
        assert (await proxy.queue())[0] == [running]
        await proxy.post("/interrupt", {"prompt_id": running})
        await socket.until_done(running)
        assert terminal(socket, running) == ["execution_interrupted"]


async def test_strangers_prompts_on_a_backend_that_comes_back_are_left_alone(tmp_path: Path) -> None:
    async with (
        Fleet("a", "b") as fleet,
        running_proxy(fleet, tmp_path, health_check=EAGER) as proxy,
        Proxy(fleet["a"].url, asyncio.Event()) as stranger,
    ):
        running = await stranger.submit(endless(), "stranger")
        pending = await stranger.submit(text(), "stranger")
        fleet["a"].faults.freeze()
        await proxy.state_is("a", "unhealthy")
        fleet["a"].faults.thaw()
        await proxy.state_is("a", "ready", "busy")
        assert await stranger.queue() == ([running], [pending])


async def test_a_single_backend_that_restarts_gets_its_prompts_again(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        socket, running, _ = await _running(proxy, fleet, sampling(steps=40, seconds=8))
        pending = await proxy.submit(text(), "me")
        await fleet["a"].restart()
        await socket.until_done(running)
        await socket.until_done(pending)
        assert terminal(socket, running) == terminal(socket, pending) == ["execution_success"]


async def test_a_poisonous_prompt_stops_after_its_retries_and_names_the_attempts(tmp_path: Path) -> None:
    async with (
        Fleet("a", "b") as fleet,
        running_proxy(fleet, tmp_path, health_check=EAGER, load_balancing=LoadBalancing(max_retries=2)) as proxy,
    ):
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(endless(), "me")

        async def poison() -> None:
            for attempt in range(1, 4):
                async with asyncio.timeout(10):
                    while sum(ran.count(prompt_id) for ran in fleet.executed.values()) < attempt:
                        await asyncio.sleep(0.01)
                (name,) = (n for n, b in fleet.backends.items() if _runs(b, prompt_id))
                await fleet[name].restart()

        await poison()
        await socket.until_done(prompt_id)
        (error,) = socket.data("execution_error")
        assert "Given up after 3 attempts" in error["exception_message"]
        assert error["exception_message"].count("Backend ") == 3
        await proxy.ready("a", "b")
        await proxy.ended(await proxy.submit(text(), "me"))


async def test_a_result_that_was_not_fetched_before_the_backend_died_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        socket, prompt_id, name = await _running(proxy, fleet, sampling(steps=4, seconds=2))
        backend = fleet[name]
        fetch = backend.process.history.entry
        asked = asyncio.Event()

        def die(wanted: str) -> dict[str, Any]:
            if wanted == prompt_id:
                asked.set()
                raise ConnectionResetError
            return fetch(wanted)

        monkeypatch.setattr(backend.process.history, "entry", die)
        await asked.wait()
        await backend.kill()
        await socket.until_done(prompt_id)
        assert terminal(socket, prompt_id) == ["execution_success"]
        assert sum(ran.count(prompt_id) for ran in fleet.executed.values()) == 2


async def test_a_backend_that_mints_ids_is_rid_of_what_has_moved_on(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        for backend in fleet.backends.values():
            backend.faults.mint_prompt_ids = True
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(endless(), "me", prompt_id=str(uuid.uuid4()))
        await socket.until_event("progress")
        (name,) = (name for name, ran in fleet.executed.items() if ran)
        other = "b" if name == "a" else "a"
        fleet[name].faults.freeze()
        async with asyncio.timeout(10):
            while not fleet.executed[other]:
                await asyncio.sleep(0.01)
        fleet[name].faults.thaw()
        async with asyncio.timeout(10):
            while fleet[name].process.queue.running():
                await asyncio.sleep(0.01)
        assert fleet[other].process.queue.running()
        await proxy.post("/interrupt", {"prompt_id": prompt_id})
        await socket.until_done(prompt_id)


def _runs(backend: Any, prompt_id: str) -> bool:
    return prompt_id in [item[1] for item in backend.process.queue.running()]


async def test_a_backend_is_back_after_as_many_passes_as_configured(tmp_path: Path) -> None:
    """Between two looks at a healthy backend lies the interval: were one pass enough, there would be no third."""
    check = HealthCheck(interval=30.0, timeout=5.0, heartbeat_timeout=60.0, rise=3, fall=1)
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=check) as proxy:
        assert _looks(fleet, "a") >= 3
        await fleet["b"].kill()
        await proxy.state_is("b", "unhealthy")
        before = _looks(fleet, "b")
        await fleet["b"].restart()
        await proxy.ready("b")
        assert _looks(fleet, "b") - before >= 3


def _looks(fleet: Fleet, name: str) -> int:
    return list(fleet[name].requests).count(("GET", "/prompt"))
