"""Backends that die, hang, or lose the connection: who still gets what."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from proxying import EAGER, Fleet, Proxy, running_proxy
from simulator_support import Socket, endless, sampling, text

from comfyproxy.settings import LoadBalancing

FLAGS = {"supports_preview_metadata": True}


async def _running(proxy: Proxy, fleet: Fleet, client_id: str = "me") -> tuple[Socket, str, str]:
    """Start a long prompt; return its client's socket, its id, and the name of its backend."""
    socket = await proxy.socket(client_id, FLAGS)
    prompt_id = await proxy.submit(endless(), client_id)
    await socket.until(lambda f: f["type"] == "progress" and f["data"]["prompt_id"] == prompt_id)
    (name,) = (name for name, ran in fleet.executed.items() if prompt_id in ran)
    return socket, prompt_id, name


async def test_a_dead_backend_costs_one_failed_request_and_no_client_anything(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        await fleet["a"].kill()
        ids = [await proxy.submit(text(str(number)), f"client {number}") for number in range(6)]
        for prompt_id in ids:
            assert (await proxy.ended(prompt_id))["status"]["status_str"] == "success"
        assert sorted(fleet["b"].executed) == sorted(ids)
        assert (await proxy.states())["a"] == "unhealthy"


async def test_a_backend_that_comes_back_is_used_again(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        await fleet["a"].kill()
        await proxy.state_is("a", "unhealthy")
        await fleet["a"].restart()
        await proxy.state_is("a", "ready")
        for number in range(4):
            await proxy.ended(await proxy.submit(text(str(number)), f"client {number}"))
        assert len(fleet["a"].executed) == 2


async def test_a_backend_needs_as_many_passes_as_configured_to_come_back(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        page = await proxy.get("/metrics")
        assert b'comfyproxy_backend_up{backend="a"} 1.0' in page
        fleet["a"].faults.freeze()
        await proxy.state_is("a", "unhealthy")
        fleet["a"].faults.thaw()
        await proxy.state_is("a", "ready")


async def test_an_answer_lost_after_acceptance_does_not_run_the_prompt_twice(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        for backend in fleet.backends.values():
            backend.faults.cut_after_accepting = 1
        prompt_id = await proxy.submit(sampling(seconds=2), "me")
        assert (await proxy.ended(prompt_id))["status"]["status_str"] == "success"
        assert sum(ran.count(prompt_id) for ran in fleet.executed.values()) == 1


async def test_an_answer_lost_after_acceptance_is_settled_by_looking_also_where_the_prompt_has_ended(
    tmp_path: Path,
) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        fleet["a"].faults.cut_after_accepting = 1
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(text(), "me")
        await socket.until_done(prompt_id)
        assert fleet["a"].executed == [prompt_id]


async def test_an_answer_lost_by_a_server_that_mints_ids_does_not_run_the_prompt_twice(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        fleet["a"].faults.mint_prompt_ids = True
        for graph in (text(), sampling(seconds=20)):
            fleet["a"].faults.cut_after_accepting = 1
            socket = await proxy.socket("me")
            prompt_id = await proxy.submit(graph, "me")
            await socket.until_done(prompt_id)
            assert (await proxy.ended(prompt_id))["prompt"][1] == prompt_id
            assert "comfyproxy" not in str(await proxy.ended(prompt_id))
        assert len(fleet["a"].executed) == 2


async def test_a_prompt_that_kills_what_reads_it_does_not_take_down_the_fleet(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "e")
    async with Fleet(*names) as fleet, running_proxy(fleet, tmp_path) as proxy:
        for backend in fleet.backends.values():
            backend.faults.cut_before_accepting = True
        status, body = await proxy.post("/prompt", {"prompt": text()})
        assert (status, body["error"]["type"]) == (502, "backend_failed")
        asked = [name for name in names if ("POST", "/prompt") in fleet[name].requests]
        assert len(asked) == 3


async def test_a_prompt_cut_off_before_it_was_read_runs_once(tmp_path: Path) -> None:
    async with Fleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        for name in ("a", "b"):
            fleet[name].faults.cut_before_accepting = 1
        prompt_id = await proxy.submit(text(), "me")
        await proxy.ended(prompt_id)
        assert sum(ran.count(prompt_id) for ran in fleet.executed.values()) == 1


async def test_without_failover_a_prompt_whose_backend_dies_ends_with_an_error_that_people_can_read(
    tmp_path: Path,
) -> None:
    async with (
        Fleet("a", "b") as fleet,
        running_proxy(fleet, tmp_path, load_balancing=LoadBalancing(enable_failover=False)) as proxy,
    ):
        socket, prompt_id, name = await _running(proxy, fleet)
        await fleet[name].kill()
        await socket.until_done(prompt_id)
        (error,) = socket.data("execution_error")
        assert name in error["exception_message"]
        entry = (await proxy.get(f"/history/{prompt_id}"))[prompt_id]
        assert entry["status"]["status_str"] == "error"
        job = await proxy.get(f"/api/jobs/{prompt_id}")
        assert job["status"] == "failed"
        assert name in job["execution_error"]["exception_message"]


async def test_prompts_pending_on_a_backend_that_dies_do_not_hang(tmp_path: Path) -> None:
    bound_early = LoadBalancing(strategy="least_loaded", enable_failover=False)
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, load_balancing=bound_early) as proxy:
        _, running, _ = await _running(proxy, fleet)
        pending = await proxy.submit(text(), "me")
        await fleet["a"].kill()
        for prompt_id in (running, pending):
            assert (await proxy.ended(prompt_id))["status"]["status_str"] == "error"
        assert (await proxy.get("/prompt"))["exec_info"]["queue_remaining"] == 0


async def test_prompts_that_wait_here_outlive_the_backend(tmp_path: Path) -> None:
    async with (
        Fleet("a") as fleet,
        running_proxy(fleet, tmp_path, max_concurrent=1, health_check=EAGER) as proxy,
    ):
        await _running(proxy, fleet)
        waiting = await proxy.submit(text(), "me")
        async with asyncio.timeout(5):
            while fleet["a"].process.queue.waiting():
                await asyncio.sleep(0.01)
        await fleet["a"].restart()
        assert (await proxy.ended(waiting))["status"]["status_str"] == "success"


async def test_a_backend_that_was_frozen_for_a_while_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(sampling(steps=40, seconds=8), "me")
        await socket.until_event("progress")
        fleet["a"].faults.freeze()
        assert (await proxy.get("/prompt"))["exec_info"]["queue_remaining"] == 1
        fleet["a"].faults.thaw()
        await socket.until_done(prompt_id)
        assert socket.names()[-2:] == ["execution_success", "executing"]


@pytest.mark.parametrize("seconds", [0.0, 3.0])
async def test_a_client_hears_the_end_though_the_link_was_cut_in_mid_run(tmp_path: Path, seconds: float) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket, prompt_id, _ = await _running(proxy, fleet)
        second = await proxy.submit(sampling(2, seconds=seconds), "me")
        fleet["a"].faults.drop_websockets()
        await proxy.post("/interrupt", {"prompt_id": prompt_id})
        await socket.until_done(prompt_id)
        await socket.until_done(second)
        ends = [frame for frame in socket.frames if frame["type"].startswith("execution_")]
        assert [f["type"] for f in ends if f["data"]["prompt_id"] == prompt_id][-1] == "execution_interrupted"
        assert [f["type"] for f in ends if f["data"]["prompt_id"] == second][-1] == "execution_success"
        assert [data["prompt_id"] for data in socket.data("executed")] == [second]


async def test_a_result_that_no_event_told_is_found_by_the_next_probe(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, health_check=EAGER) as proxy:
        socket, prompt_id, _ = await _running(proxy, fleet)
        # The server forgets the link while its socket stays open: it hears nothing any more.
        fleet["a"].process.sockets._sockets.clear()
        fleet["a"].process.executor.interrupt()
        await socket.until_done(prompt_id)
        assert len(socket.data("execution_interrupted")) == 1


async def test_a_deaf_link_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyproxy.service.linking.LinkKeeper.__init__.__kwdefaults__", {"deaf_after_s": 0.2})
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        fleet["a"].process.sockets._sockets.clear()
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(sampling(steps=4, seconds=2), "me")
        await socket.until_done(prompt_id)
        after = await proxy.submit(sampling(2), "me")
        await socket.until(lambda f: f["type"] == "execution_start" and f["data"]["prompt_id"] == after)


async def test_a_run_time_error_is_the_clients_to_see(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        fleet["a"].faults.out_of_memory = 1
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(sampling(), "me")
        await socket.until_done(prompt_id)
        (error,) = socket.data("execution_error")
        assert "OutOfMemory" in error["exception_type"]
        assert (await proxy.ended(prompt_id))["status"]["status_str"] == "error"


async def test_a_slow_backend_holds_up_nobody_else(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        fleet["a"].faults.freeze()
        stuck = asyncio.create_task(proxy.submit(text("stuck"), "one"))
        others: list[Any] = []
        async with asyncio.timeout(10):
            while len(others) < 3:
                prompt_id = str(uuid.uuid4())
                task = asyncio.create_task(proxy.submit(text(prompt_id), prompt_id, prompt_id=prompt_id))
                await asyncio.wait({task}, timeout=0.5)
                if task.done():
                    others.append(await proxy.ended(task.result()))
        fleet["a"].faults.thaw()
        await proxy.ended(await stuck)
