"""A prompt goes in, runs, and everything about it comes back."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from proxying import Fleet, running_proxy
from simulator_support import endless, sampling, text, txt2img

from comfyproxy.settings import LoadBalancing

FLAGS = {"supports_preview_metadata": True}


async def test_a_prompt_runs_and_its_client_sees_all_of_it(tmp_path: Path) -> None:
    async with Fleet("a", checkpoints=("a.safetensors",)) as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket = await proxy.socket("me", FLAGS)
        prompt_id = await proxy.submit(txt2img(), "me")
        await socket.until_done(prompt_id)
        entry = (await proxy.get(f"/history/{prompt_id}"))[prompt_id]
        names = socket.names()
        assert names[:3] == ["feature_flags", "execution_start", "execution_cached"]
        assert names[-3:] == ["executed", "execution_success", "executing"]
        assert "progress" in names
        assert "binary" in names
        (image,) = entry["outputs"]["9"]["images"]
        assert socket.data("executed")[-1]["output"]["images"] == [image]
        query = "&".join(f"{key}={value}" for key, value in image.items())
        assert (await proxy.get(f"/view?{query}"))[:8] == b"\x89PNG\r\n\x1a\n"
        assert entry["prompt"][3]["client_id"] == "me"


async def test_history_is_there_when_the_end_is_told(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        socket = await proxy.socket("me")
        for number in range(20):
            prompt_id = await proxy.submit(text(f"number {number}"), "me")
            await socket.until_done(prompt_id)
            assert prompt_id in await proxy.get(f"/history/{prompt_id}")


async def test_prompts_go_to_the_least_loaded_backend(tmp_path: Path) -> None:
    async with Fleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        for seed in range(6):
            await proxy.submit(endless(seed), f"client {seed}")
        async with asyncio.timeout(5):
            while len((await proxy.queue())[0]) < 3:
                await asyncio.sleep(0.01)
        assert {name: len(backend.accepted) for name, backend in fleet.backends.items()} == {"a": 2, "b": 2, "c": 2}


async def test_a_clients_next_prompt_goes_where_its_last_one_ran(tmp_path: Path) -> None:
    async with Fleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        for name in ("one", "two", "three"):
            for _ in range(3):
                await proxy.ended(await proxy.submit(text(name), name))
        assert sorted(len(ran) for ran in fleet.executed.values()) == [3, 3, 3]


async def test_a_client_stays_where_its_caches_are_though_others_come_in_between(tmp_path: Path) -> None:
    async with Fleet("a", "b", "c") as fleet, running_proxy(fleet, tmp_path) as proxy:
        ids: dict[str, list[str]] = {"one": [], "two": []}
        for _ in range(4):
            for client_id, mine in ids.items():
                mine.append(await proxy.submit(text(client_id), client_id))
                await proxy.ended(mine[-1])
        ran = {name: prompts for name, prompts in fleet.executed.items() if prompts}
        assert sorted(ran.values()) == sorted(ids.values())  # in turns, each would have been on all three


async def test_a_backend_that_is_loaded_more_waits_until_the_others_have_caught_up(tmp_path: Path) -> None:
    pin = {"X-Comfyproxy-Backend": "a"}
    least = LoadBalancing(strategy="least_loaded")
    async with (
        Fleet("a", "b", "c") as fleet,
        running_proxy(fleet, tmp_path, max_concurrent=3, load_balancing=least) as proxy,
    ):
        for seed in range(2):
            assert (await proxy.post("/prompt", {"prompt": endless(seed)}, headers=pin))[0] == 200
        loads = []
        for seed in range(7):
            await proxy.submit(endless(10 + seed), f"client {seed}")
            loads.append([len(backend.accepted) for backend in fleet.backends.values()])
        assert [load[0] for load in loads[:4]] == [2, 2, 2, 2]
        assert loads[3] == [2, 2, 2]
        assert loads[6] == [3, 3, 3]


async def test_strangers_prompts_on_a_backend_count_as_load(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        stranger = type(proxy)(fleet["a"].url, asyncio.Event())
        async with stranger:
            await stranger.submit(endless())
            await stranger.submit(endless(2))
            async with asyncio.timeout(5):
                while b'queue_remaining{backend="a"} 2.0' not in await proxy.get("/metrics"):
                    await asyncio.sleep(0.01)
        for seed in range(2):
            await proxy.submit(text(str(seed)), f"client {seed}")
        assert len(fleet["b"].accepted) == 2


async def test_what_no_backend_has_room_for_waits_in_the_proxy(tmp_path: Path) -> None:
    least = LoadBalancing(strategy="least_loaded")
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, load_balancing=least) as proxy:
        running = await proxy.submit(endless(), "me")
        others = [await proxy.submit(text(str(number)), "me") for number in range(4)]
        async with asyncio.timeout(5):
            while (await proxy.get("/queue"))["queue_pending"] == [] or len(fleet["a"].process.queue.waiting()) != 1:
                await asyncio.sleep(0.01)
        assert await proxy.queue() == ([running], others)
        assert (await proxy.get("/prompt"))["exec_info"]["queue_remaining"] == 5
        await proxy.post("/interrupt", {"prompt_id": running})
        for prompt_id in others:
            assert (await proxy.ended(prompt_id))["status"]["status_str"] == "success"
        assert fleet["a"].executed == [running, *others]


async def test_waiting_prompts_go_by_number_and_front_goes_first(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        running = await proxy.submit(endless(), "me")
        late = await proxy.submit(text("late"), "me", number=1000)
        normal = await proxy.submit(text("normal"), "me")
        early = await proxy.submit(text("early"), "me", number=0.5)
        front = await proxy.submit(text("front"), "me", front=True)
        async with asyncio.timeout(5):
            while fleet["a"].process.queue.waiting():
                await asyncio.sleep(0.01)
        assert (await proxy.queue())[1] == [front, early, normal, late]
        await proxy.post("/interrupt", {"prompt_id": running})
        await proxy.ended(late)
        assert fleet["a"].executed == [running, front, early, normal, late]


async def test_an_invalid_prompt_gets_the_backends_own_verdict(tmp_path: Path) -> None:
    graph = sampling()
    graph["2"]["inputs"]["steps"] = 99999
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        direct = type(proxy)(fleet["a"].url, asyncio.Event())
        async with direct:
            expected = await direct.post("/prompt", {"prompt": graph})
        assert await proxy.post("/prompt", {"prompt": graph}) == expected
        assert expected[0] == 400


async def test_an_invalid_prompt_is_refused_at_once_also_when_all_backends_are_busy(tmp_path: Path) -> None:
    graph = sampling()
    graph["2"]["inputs"]["steps"] = 99999
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        await proxy.submit(endless(), "me")
        status, body = await proxy.post("/prompt", {"prompt": graph})
        assert status == 400
        assert body["node_errors"]["2"]["errors"][0]["type"] == "value_bigger_than_max"
        assert len((await proxy.queue())[1]) == 0
        assert fleet["a"].process.queue.waiting() == []


async def test_who_only_asks_for_a_verdict_stands_behind_all_that_wait_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        running = await proxy.submit(endless(), "me")
        stranger = type(proxy)(fleet["a"].url, asyncio.Event())
        async with stranger:
            theirs = await stranger.submit(text("a stranger's"), "you", number=1_000_000)
        queue, judged = fleet["a"].process.queue, []
        put = queue.put

        def note(item: Any) -> None:
            put(item)
            judged.append([waiting[1] for waiting in sorted(queue.waiting(), key=lambda each: each[0])])

        monkeypatch.setattr(queue, "put", note)
        mine = await proxy.submit(text("mine"), "me", front=True)
        assert judged == [[theirs, mine]]
        await proxy.post("/interrupt", {"prompt_id": running})
        await proxy.ended(mine)


async def test_outputs_left_out_are_told_also_when_all_backends_are_busy(tmp_path: Path) -> None:
    graph = text() | {
        "4": {"class_type": "LoadImage", "inputs": {"image": "missing.png"}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        await proxy.submit(endless(), "me")
        status, body = await proxy.post("/prompt", {"prompt": graph})
        assert status == 200
        assert list(body["node_errors"]) == ["4"]
        (item,) = (await proxy.get("/queue"))["queue_pending"]
        assert item[4] == ["1"]


async def test_a_prompt_that_came_to_be_judged_and_started_stays_where_it_is(tmp_path: Path) -> None:
    async with Fleet("a", speed=100.0) as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        ids = await asyncio.gather(*(proxy.submit(sampling(n, seconds=0.2), f"c{n}") for n in range(40)))
        for prompt_id in ids:
            assert (await proxy.ended(prompt_id))["status"]["status_str"] == "success"
        assert sorted(fleet["a"].executed) == sorted(ids)


async def test_a_clients_own_prompt_id_is_kept(tmp_path: Path) -> None:
    prompt_id = str(uuid.uuid4())
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        assert await proxy.submit(text(), "me", prompt_id=prompt_id) == prompt_id
        await proxy.ended(prompt_id)


async def test_the_same_prompt_again_is_a_retry_and_does_not_run_twice(tmp_path: Path) -> None:
    body = {"prompt": text(), "prompt_id": str(uuid.uuid4()), "client_id": "me"}
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        answers = await asyncio.gather(*(proxy.post("/prompt", body) for _ in range(5)))
        await proxy.ended(body["prompt_id"])  # type: ignore[arg-type]
        answers.append(await proxy.post("/prompt", body))
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][0] == 200
        assert len(fleet["a"].executed) == 1


@pytest.mark.parametrize("wait", [True, False])
async def test_the_same_prompt_id_for_another_prompt_is_refused(tmp_path: Path, wait: bool) -> None:
    prompt_id = str(uuid.uuid4())
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        await proxy.submit(text("one"), "me", prompt_id=prompt_id)
        if wait:
            await proxy.ended(prompt_id)
        status, body = await proxy.post("/prompt", {"prompt": text("two"), "prompt_id": prompt_id, "client_id": "me"})
        assert (status, body["error"]["type"]) == (400, "duplicate_prompt_id")


async def test_a_refused_prompt_may_come_again_under_its_id(tmp_path: Path) -> None:
    prompt_id = str(uuid.uuid4())
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        assert (await proxy.post("/prompt", {"prompt": {}, "prompt_id": prompt_id}))[0] == 400
        assert await proxy.submit(text(), prompt_id=prompt_id) == prompt_id


async def test_a_server_that_mints_its_own_ids_is_translated_both_ways(tmp_path: Path) -> None:
    async with Fleet("a", checkpoints=("a.safetensors",)) as fleet, running_proxy(fleet, tmp_path) as proxy:
        fleet["a"].faults.mint_prompt_ids = True
        socket = await proxy.socket("me", FLAGS)
        prompt_id = await proxy.submit(txt2img(), "me", prompt_id=str(uuid.uuid4()))
        await socket.until_done(prompt_id)
        entry = (await proxy.get(f"/history/{prompt_id}"))[prompt_id]
        assert prompt_id not in fleet["a"].accepted
        named = {data["prompt_id"] for frame in socket.frames if "prompt_id" in (data := _data(frame))}
        assert named == {prompt_id}
        assert socket.names()[1] == "execution_start"
        assert entry["prompt"][1] == prompt_id
        assert fleet["a"].accepted[0] not in str(entry)
        running = await proxy.submit(endless(), "me")
        await socket.until(lambda f: f["type"] == "progress" and f["data"]["prompt_id"] == running)
        await proxy.post("/interrupt", {"prompt_id": running})
        await socket.until_done(running)


async def test_only_the_targets_of_a_partial_execution_run(tmp_path: Path) -> None:
    graph = text("one") | {"2": {"class_type": "ConformanceText", "inputs": {"text": "two"}}}
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        entry = await proxy.ended(await proxy.submit(graph, partial_execution_targets=["2"], unknown_key=1))
        assert list(entry["outputs"]) == ["2"]


async def test_a_job_goes_only_where_its_node_classes_are(tmp_path: Path) -> None:
    async with Fleet("a", "b", without_nodes=("ConformanceText",)) as fleet, Fleet("c") as able:
        urls = {name: backend.url for name, backend in {**fleet.backends, **able.backends}.items()}
        async with running_proxy(urls, tmp_path) as proxy:
            for number in range(5):
                await proxy.ended(await proxy.submit(text(str(number)), f"client {number}"))
            assert len(able["c"].executed) == 5


async def test_a_prompt_that_can_run_nowhere_gets_comfyuis_own_error(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet, running_proxy(fleet, tmp_path) as proxy:
        status, body = await proxy.post("/prompt", {"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}})
        assert (status, body["error"]["type"]) == (400, "missing_node_type")


async def test_secrets_reach_the_backend_and_nobody_else(tmp_path: Path) -> None:
    secrets = {"api_key_comfy_org": "hush-hush-key", "auth_token_comfy_org": "hush-hush-token"}
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path, max_concurrent=1) as proxy:
        running = await proxy.submit(endless(), "me", extra_data={**secrets, "more": 1})
        waiting = await proxy.submit(text(), "me", extra_data=dict(secrets))
        sent = fleet["a"].process.queue.running()[0][5]
        assert sent == secrets
        assert b"hush" not in await _raw(proxy, "/queue")
        await proxy.post("/interrupt", {"prompt_id": running})
        await proxy.ended(waiting)
        assert b"hush" not in await _raw(proxy, "/history")
        assert b"hush" not in b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


async def test_without_a_backend_the_client_is_told_when_to_try_again(tmp_path: Path) -> None:
    async with running_proxy({"a": "http://127.0.0.1:1"}, tmp_path, wait_ready=False) as proxy:
        async with proxy.session.post(f"{proxy.url}/prompt", json={"prompt": text()}) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            body = await answer.json()
        assert body["error"]["type"] == "no_backend_available"
        assert "a: " in body["error"]["details"]


async def test_a_client_that_names_no_client_id_gets_its_history(tmp_path: Path) -> None:
    async with Fleet("a") as fleet, running_proxy(fleet, tmp_path) as proxy:
        other = await proxy.socket("other")
        entry = await proxy.ended(await proxy.submit(sampling(preview=True)))
        assert entry["status"]["completed"]
        assert "client_id" not in entry["prompt"][3]
        assert set(other.names()) <= {"status"}


async def _raw(proxy: Any, path: str) -> bytes:
    async with proxy.session.get(proxy.url + path) as answer:
        return bytes(await answer.read())


def _data(frame: dict[str, Any]) -> dict[str, Any]:
    data = frame["data"]
    return data if isinstance(data, dict) else {}
