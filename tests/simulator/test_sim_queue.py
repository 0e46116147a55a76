"""The order of prompts, what the queue and the history show, and how prompts are stopped."""

import asyncio
from typing import Any

import pytest
from simulator_support import Client, endless, sampling, text

from comfyproxy.simulator import SimulatedBackend
from comfyproxy.simulator.history import LIMIT, History
from comfyproxy.simulator.queue import Item, Queue


def item(number: float, prompt_id: str) -> Item:
    return (number, prompt_id, {}, {}, [], {})


async def busy(client: Client) -> str:
    """Keep the server busy; return the id of what it runs."""
    socket = await client.socket("busy")
    prompt_id = await client.submit(endless(), "busy")
    await socket.until_event("progress")
    return prompt_id


async def test_prompts_run_in_the_order_of_their_numbers() -> None:
    queue = Queue(lambda: None)
    for number, prompt_id in ((3, "c"), (-5, "front"), (1.5, "b"), (1, "a")):
        queue.put(item(number, prompt_id))
    order = []
    for _ in range(4):
        taken = await queue.get()
        assert taken is not None
        order.append(taken[0][1])
        queue.done(taken[1])
    assert order == ["front", "a", "b", "c"]


async def test_a_duplicate_of_a_waiting_prompt_cannot_be_compared_and_is_queued_all_the_same() -> None:
    queue = Queue(lambda: None)
    queue.put((1, "a", {}, {"create_time": 1}, [], {}))
    with pytest.raises(TypeError):
        queue.put((1, "a", {}, {"create_time": 2}, [], {}))
    assert queue.remaining() == 2


async def test_an_idle_executor_wakes_up_for_a_flag() -> None:
    queue = Queue(lambda: None)
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.set_flag("free_memory", True)
    assert await getting is None
    assert queue.take_flags() == {"free_memory": True}
    assert queue.take_flags() == {}


async def test_front_and_number_choose_the_place_in_the_queue() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        running = await busy(client)
        answers: list[dict[str, Any]] = []
        for more in ({}, {"front": True}, {"number": 0.5}, {"front": False}):
            status, answer = await client.post("/prompt", {"prompt": text(str(more)), **more})
            assert status == 200
            answers.append(answer)
        assert [answer["number"] for answer in answers] == [1, -2, 0.5, 3]
        waits = await client.socket("last")
        last = await client.submit(text("last"), "last")
        await client.post("/interrupt", {"prompt_id": running})
        await waits.until_done(last)
        first, front, half, behind = (answer["prompt_id"] for answer in answers)
        assert backend.executed == [running, front, half, first, behind, last]


async def test_the_queue_shows_what_runs_and_waits_as_it_was_submitted() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        running = await busy(client)
        waiting = await client.submit(text(), "a", extra_data={"extra_pnginfo": {"x": 1}})
        queue = await client.get("/queue")
        assert [entry[1] for entry in queue["queue_running"]] == [running]
        ((number, prompt_id, graph, extra_data, outputs),) = queue["queue_pending"]
        assert (number, prompt_id, graph, outputs) == (1, waiting, text(), ["1"])
        assert isinstance(extra_data.pop("create_time"), int)
        assert extra_data == {"extra_pnginfo": {"x": 1}, "client_id": "a"}
        assert await client.get("/prompt") == {"exec_info": {"queue_remaining": 2}}


@pytest.mark.parametrize(("version", "visible"), [("0.25.0", False), ("0.3.64", True)])
async def test_secrets_show_in_the_queue_of_old_versions_and_in_no_history(version: str, visible: bool) -> None:
    secrets = {"auth_token_comfy_org": "s1", "api_key_comfy_org": "s2"}
    async with SimulatedBackend(version=version) as backend, Client(backend) as client:
        running = await busy(client)
        waits = await client.socket("a")
        prompt_id = await client.submit(text(), "a", extra_data=dict(secrets))
        ((*_, extra_data, _),) = (await client.get("/queue"))["queue_pending"]
        assert (secrets.items() <= extra_data.items()) is visible
        await client.post("/interrupt", {"prompt_id": running})
        await waits.until_done(prompt_id)
        history = await client.get(f"/history/{prompt_id}")
        assert not secrets.keys() & history[prompt_id]["prompt"][3].keys()


async def test_newer_versions_cancel_what_waits_and_what_runs_by_one_route() -> None:
    async with SimulatedBackend(version="0.26.0") as backend, Client(backend) as client:
        running = await busy(client)
        first, second, third = [await client.submit(text(words)) for words in "abc"]
        assert await client.post(f"/api/jobs/{first}/cancel") == (200, {"cancelled": True})
        assert await client.post(f"/api/jobs/{first}/cancel") == (200, {"cancelled": False})
        assert await client.post("/api/jobs/cancel", {"job_ids": [first, second]}) == (200, {"cancelled": True})
        queue = await client.get("/queue")
        assert [entry[1] for entry in queue["queue_pending"]] == [third]
        socket = await client.socket("busy")
        assert await client.post(f"/api/jobs/{running}/cancel") == (200, {"cancelled": True})
        await socket.until_event("execution_interrupted")
    async with SimulatedBackend() as backend, Client(backend) as client:
        for path in (f"/api/jobs/{first}/cancel", "/api/jobs/cancel"):
            assert (await client.post(path, {"job_ids": []}))[0] == 405


async def test_waiting_prompts_can_be_deleted_and_running_ones_cannot() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        running = await busy(client)
        first, second = [await client.submit(text(words)) for words in "ab"]
        assert await client.post("/queue", {"delete": [running, first, "nope"]}) == (200, b"")
        queue = await client.get("/queue")
        assert [entry[1] for entry in queue["queue_pending"]] == [second]
        await client.post("/queue", {"clear": True})
        assert await client.get("/prompt") == {"exec_info": {"queue_remaining": 1}}
        assert await client.get(f"/history/{first}") == {}


async def test_an_interrupt_names_its_prompt_or_hits_whatever_runs() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        for body in ({"prompt_id": None}, {}, None):
            prompt_id = await client.submit(endless(), "a")
            await socket.until(lambda f, p=prompt_id: f["type"] == "progress" and f["data"]["prompt_id"] == p)  # type: ignore[misc]
            await client.post("/interrupt", {"prompt_id": "another"})
            if body is None:
                assert (await client.call("POST", "/interrupt"))[0] == 200
            else:
                await client.post("/interrupt", body)
            await socket.until_done(prompt_id)
            entry = (await client.get(f"/history/{prompt_id}"))[prompt_id]
            assert entry["status"]["status_str"] == "error"
            assert entry["status"]["messages"][-1][0] == "execution_interrupted"


async def test_an_interrupt_while_nothing_runs_is_forgotten() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        await client.call("POST", "/interrupt")
        assert (await client.run(text()))["status"]["status_str"] == "success"


def test_the_history_forgets_the_oldest() -> None:
    history = History()
    for number in range(LIMIT + 3):
        history.add(str(number), {})
    assert len(history) == LIMIT + 1
    assert next(iter(history.page())) == "2"


def test_pages_of_the_history_are_counted_from_its_end_unless_an_offset_is_given() -> None:
    history = History()
    for name in "abcd":
        history.add(name, {})
    assert list(history.page(2)) == ["c", "d"]
    assert list(history.page(2, 0)) == ["a", "b"]
    assert list(history.page(2, 3)) == ["d"]
    assert list(history.page(offset=1)) == ["b", "c", "d"]
    assert history.page(0) == {}
    assert list(history.page(9)) == ["a", "b", "c", "d"]


async def test_history_entries_can_be_deleted_one_by_one_or_all() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        for words in "abc":
            await client.run(text(words))
        ids = list(await client.get("/history"))
        await client.post("/history", {"delete": [ids[0], "nope"]})
        assert list(await client.get("/history")) == ids[1:]
        await client.post("/history", {"clear": True})
        assert await client.get("/history") == {}


async def test_a_repeated_id_overwrites_its_history_entry() -> None:
    async with SimulatedBackend(version="0.3.64") as backend, Client(backend) as client:
        await client.run(text("a"), prompt_id="same")
        await client.run(sampling(), prompt_id="same")
        history = await client.get("/history")
        assert list(history) == ["same"]
        assert list(history["same"]["prompt"][2]) == ["1", "2", "3"]


async def test_every_change_of_the_queue_is_told_to_everybody() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        watcher = await client.socket("watcher")
        await client.run(text())
        await watcher.until(lambda f: f["type"] == "status" and "sid" not in f["data"] and _remaining(f["data"]) == 0)
        assert [_remaining(status) for status in watcher.data("status")] == [0, 1, 1, 0]
        assert watcher.names() == []


def _remaining(status: dict[str, Any]) -> int:
    remaining: int = status["status"]["exec_info"]["queue_remaining"]
    return remaining
