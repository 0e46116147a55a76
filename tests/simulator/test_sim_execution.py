"""What running a prompt sends, keeps, and leaves behind."""

import json
from typing import Any

import pytest
from PIL import Image
from simulator_support import Client, endless, png, sampling, text, txt2img, upload

from comfyproxy.core import frames
from comfyproxy.simulator import SimulatedBackend
from comfyproxy.simulator.cache import KEPT, Cache, Result

METADATA = {"supports_preview_metadata": True}


async def test_a_prompt_tells_of_itself_in_comfyuis_order() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        await socket.until_done(await client.submit(sampling(steps=1), "a"))
        events = ["execution_start", "execution_cached", "executing", "executing", "progress", "executing", "executed"]
        assert socket.names() == [*events, "execution_success", "executing"]
        last = socket.data("progress_state")[-1]["nodes"]
        assert {node: (entry["state"], entry["value"]) for node, entry in last.items()} == {
            "1": ("finished", 1.0),
            "2": ("finished", 1),
            "3": ("finished", 1.0),
        }


async def test_the_history_entry_is_there_when_the_end_is_told() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        for seed in range(20):
            prompt_id = await client.submit(sampling(seed), "a")
            await socket.until_done(prompt_id)
            assert prompt_id in await client.get(f"/history/{prompt_id}")


async def test_a_repeated_prompt_is_answered_from_the_cache() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        first = await client.run(sampling())
        again = await client.run(sampling())
        assert again["status"]["messages"][1][1]["nodes"] == ["1", "2", "3"]
        assert again["outputs"] == first["outputs"]


async def test_what_is_cached_without_a_client_is_missing_from_the_history_of_new_versions() -> None:
    for version, shown in (("0.25.0", False), ("0.3.64", True)):
        async with SimulatedBackend(version=version) as backend, Client(backend) as client:
            await client.run(sampling())
            prompt_id = await client.submit(sampling())
            while not (history := await client.get(f"/history/{prompt_id}")):
                pass
            assert bool(history[prompt_id]["outputs"]) is shown


async def test_only_what_depends_on_a_change_runs_again() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        await client.run(sampling(seed=1))
        entry = await client.run(sampling(seed=2))
        assert entry["status"]["messages"][1][1]["nodes"] == ["1"]


@pytest.mark.parametrize(("version", "remembered"), [("0.25.0", ["1", "2", "3"]), ("0.3.64", [])])
async def test_older_versions_forget_what_the_next_prompt_does_not_use(version: str, remembered: list[str]) -> None:
    async with SimulatedBackend(version=version) as backend, Client(backend) as client:
        await client.run(sampling())
        await client.run(text())
        entry = await client.run(sampling())
        assert entry["status"]["messages"][1][1]["nodes"] == remembered


async def test_freeing_memory_empties_the_cache() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        await client.run(sampling())
        await client.post("/free", {"free_memory": True})
        entry = await client.run(text()) and await client.run(sampling())
        assert entry["status"]["messages"][1][1]["nodes"] == []


async def test_a_changed_input_file_is_loaded_again() -> None:
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    async with SimulatedBackend() as backend, Client(backend) as client:
        path = backend.folders.input / "x.png"
        path.write_bytes(png())
        await client.run(graph)
        assert (await client.run(graph))["status"]["messages"][1][1]["nodes"] == ["1", "2"]
        path.write_bytes(png(color=(1, 2, 3)))
        assert (await client.run(graph))["status"]["messages"][1][1]["nodes"] == []


async def test_previews_come_in_the_form_the_client_knows() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("new", METADATA)
        prompt_id = await client.submit(sampling(seed=1, preview=True), "new")
        await socket.until_done(prompt_id)
        new = [frame["data"] for frame in socket.frames if frame["type"] == "binary"]
        metadata, image = frames.split_metadata(new[0])
        assert (metadata["prompt_id"], metadata["node_id"], metadata["image_type"]) == (prompt_id, "2", "image/jpeg")
        assert image.startswith(b"\xff\xd8")
        socket = await client.socket("old")
        await socket.until_done(await client.submit(sampling(seed=2, preview=True), "old"))
        old = [frame["data"] for frame in socket.frames if frame["type"] == "binary"]
        assert len(new) == len(old) == 2
        assert frames.kind(old[0]) == frames.FrameKind.PREVIEW
        assert old[0][4:10] == b"\x00\x00\x00\x01\xff\xd8"


async def test_feature_flags_count_only_in_the_first_message() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        await socket.ws.send_str("not json")
        await socket.ws.send_json({"type": "other"})
        await socket.ws.send_json({"type": "feature_flags", "data": METADATA})
        await socket.until_done(await client.submit(sampling(preview=True), "a"))
        assert not socket.data("feature_flags")
        binary = next(frame["data"] for frame in socket.frames if frame["type"] == "binary")
        assert frames.kind(binary) == frames.FrameKind.PREVIEW


async def test_events_go_to_their_client_and_those_of_nobody_partly_to_all() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        one, two = await client.socket("one"), await client.socket("two")
        await one.until_done(await client.submit(sampling(seed=1), "one"))
        assert two.names() == []
        assert not two.data("progress_state")
        await client.submit(endless(), None)
        await two.until_event("progress")
        await client.post("/interrupt")
        await two.until_event("execution_interrupted")
        assert not {"execution_start", "executing", "executed"} & set(two.names())


async def test_a_client_that_comes_back_is_told_the_node_that_runs() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        first = await client.socket("a")
        await client.submit(endless(), "a")
        await first.until_event("progress")
        await first.close()
        again = await client.socket("a")
        assert (await again.until_event("executing"))["data"] == {"node": "2"}


async def test_a_socket_without_an_id_is_given_one() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        sid = (await client.socket(None)).data("status")[0]["sid"]
        assert len(sid) == 32
        int(sid, 16)


async def test_fast_steps_are_left_out_by_new_versions_only() -> None:
    for version, told in (("0.25.0", [1, 50]), ("0.3.64", list(range(1, 51)))):
        async with SimulatedBackend(version=version) as backend, Client(backend) as client:
            socket = await client.socket("a")
            await socket.until_done(await client.submit(sampling(steps=50), "a"))
            assert [progress["value"] for progress in socket.data("progress")] == told


async def test_a_slow_prompt_can_be_hurried_while_it_runs() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        prompt_id = await client.submit(sampling(steps=3000, seconds=300), "a")
        await socket.until_event("progress")
        backend.hurry(1_000_000)
        await socket.until_done(prompt_id)


async def test_a_failing_node_is_told_with_its_inputs_as_python_prints_them() -> None:
    async with SimulatedBackend() as backend, Client(backend) as client:
        entry = await client.run(sampling(fail_at=1))
        event, error = entry["status"]["messages"][-1]
        assert event == "execution_error"
        assert error["exception_type"] == "ValueError"
        assert (error["node_id"], error["node_type"], error["executed"]) == ("2", "ConformanceSampler", ["1"])
        assert error["current_inputs"]["steps"] == [2]
        assert error["current_inputs"]["image"][0].startswith("tensor([[[[0., 0., 0.],\n          [0., 0., 0.],")
        assert entry["outputs"] == {}


async def test_a_prompt_saved_outside_the_output_folder_fails() -> None:
    graph = sampling()
    graph["3"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "../x"}}
    async with SimulatedBackend() as backend, Client(backend) as client:
        error = (await client.run(graph))["status"]["messages"][-1][1]
        assert error["exception_type"] == "Exception"
        assert "outside the output folder is not allowed" in error["exception_message"]


async def test_the_stock_workflow_makes_a_picture_that_carries_its_workflow() -> None:
    workflow = {"id": "wf", "nodes": []}
    async with SimulatedBackend(checkpoints=("a.safetensors",), speed=100) as backend, Client(backend) as client:
        entry = await client.run(txt2img(width=96), extra_data={"extra_pnginfo": {"workflow": workflow}})
        (image,) = entry["outputs"]["9"]["images"]
        assert image == {"filename": "ComfyUI_00001_.png", "subfolder": "", "type": "output"}
        with Image.open(backend.folders.output / image["filename"]) as picture:
            assert (picture.format, picture.size) == ("PNG", (96, 64))
            assert json.loads(picture.info["prompt"]) == entry["prompt"][2]
            assert json.loads(picture.info["workflow"]) == workflow


async def test_pictures_depend_on_the_seeds_and_on_nothing_else() -> None:
    async def picture(seed: int, own_seed: int) -> bytes:
        options: dict[str, Any] = {"checkpoints": ("a.safetensors",), "speed": 1000, "seed": own_seed}
        async with SimulatedBackend(**options) as backend, Client(backend) as client:
            await client.run(txt2img(seed=seed))
            return (backend.folders.output / "ComfyUI_00001_.png").read_bytes()

    first = await picture(1, 0)
    assert first == await picture(1, 0)
    assert first != await picture(2, 0)
    assert first != await picture(1, 1)


async def test_the_sampler_reports_every_step_with_a_preview() -> None:
    async with SimulatedBackend(checkpoints=("a.safetensors",), speed=100) as backend, Client(backend) as client:
        socket = await client.socket("a", METADATA)
        await socket.until_done(await client.submit(txt2img(steps=3), "a"))
        assert [progress["value"] for progress in socket.data("progress")] == [1, 2, 3]
        assert len([frame for frame in socket.frames if frame["type"] == "binary"]) == 3


async def test_image_to_image_starts_from_the_uploaded_picture() -> None:
    graph = txt2img()
    graph["3"]["inputs"] |= {"latent_image": ["11", 0], "denoise": 0.5}
    graph["10"] = {"class_type": "LoadImage", "inputs": {"image": "x.png"}}
    graph["11"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}}
    async with SimulatedBackend(checkpoints=("a.safetensors",), speed=100) as backend, Client(backend) as client:
        await client.call("POST", "/upload/image", data=upload("x.png", png(40, 24)))
        entry = await client.run(graph)
        assert entry["status"]["status_str"] == "success"
        with Image.open(backend.folders.output / "ComfyUI_00001_.png") as picture:
            assert picture.size == (40, 24)


async def test_pictures_sent_over_the_websocket_are_whole_pngs() -> None:
    graph = sampling()
    graph["1"]["inputs"] |= {"width": 600, "height": 300, "batch_size": 2}
    graph["3"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["2", 0]}}
    async with SimulatedBackend() as backend, Client(backend) as client:
        socket = await client.socket("a")
        for _ in range(2):  # never from the cache
            prompt_id = await client.submit(graph, "a")
            await socket.until_done(prompt_id)
            pictures = [frame["data"] for frame in socket.frames if frame["type"] == "binary"]
            assert [data[:12] for data in pictures] == [b"\0\0\0\1\0\0\0\2\x89PNG"] * 2
            socket.frames.clear()
        assert (await client.get(f"/history/{prompt_id}"))[prompt_id]["outputs"] == {}


async def test_a_checkpoint_is_loaded_once_while_it_stays_in_memory() -> None:
    names = ("a.safetensors", "b.safetensors")
    async with SimulatedBackend(checkpoints=names, speed=100) as backend, Client(backend) as client:
        memory = backend.process.world.memory
        for checkpoint, seed in (("a", 1), ("a", 2), ("b", 1), ("b", 2), ("a", 3)):
            await client.run(txt2img(f"{checkpoint}.safetensors", seed))
        assert memory.loads == ["a.safetensors", "b.safetensors", "a.safetensors"]


async def test_more_memory_keeps_more_checkpoints_until_they_are_unloaded() -> None:
    names = ("a.safetensors", "b.safetensors")
    async with SimulatedBackend(checkpoints=names, speed=100, vram_models=2) as backend, Client(backend) as client:
        memory = backend.process.world.memory
        for number, checkpoint in enumerate("abab"):
            await client.run(txt2img(f"{checkpoint}.safetensors", number))
        assert memory.loads == list(names)
        await client.post("/free", {"unload_models": True})
        await client.run(txt2img("a.safetensors", 9))
        assert memory.loads == [*names, "a.safetensors"]


async def test_what_was_loaded_is_remembered_over_a_restart_that_empties_the_memory() -> None:
    async with SimulatedBackend(checkpoints=("a.safetensors",), speed=100) as backend, Client(backend) as client:
        for seed in (1, 2):
            await client.run(txt2img("a.safetensors", seed))
        await backend.restart()
        await client.run(txt2img("a.safetensors", 3))
        assert backend.loads == ["a.safetensors", "a.safetensors"]


async def test_loading_costs_what_was_said_divided_by_the_speed() -> None:
    options: dict[str, Any] = {"checkpoints": ("a.safetensors",), "speed": 10, "load_seconds": 3}
    async with SimulatedBackend(**options) as backend, Client(backend) as client:
        durations = []
        for seed in (1, 2):
            messages = (await client.run(txt2img(steps=1, seed=seed)))["status"]["messages"]
            durations.append(messages[-1][1]["timestamp"] - messages[0][1]["timestamp"])
        assert durations[0] >= 299 > durations[1]


async def test_a_link_to_an_output_that_is_not_there_is_nothing_where_validation_does_not_look() -> None:
    graph = text()
    graph["1"]["inputs"] |= {"unknown": ["2", 7], "other": ["2", -9]}
    graph["2"] = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    async with SimulatedBackend() as backend, Client(backend) as client:
        assert (await client.run(graph))["status"]["status_str"] == "success"


async def test_a_cycle_that_validation_cannot_see_fails_the_prompt_and_not_the_server() -> None:
    graph = text()
    graph["1"]["inputs"]["unknown"] = ["2", 0]
    graph["2"] = {"class_type": "EmptyImage", "inputs": {"unknown": ["1", 0]}}
    async with SimulatedBackend() as backend, Client(backend) as client:
        error = (await client.run(graph))["status"]["messages"][-1][1]
        assert error["exception_type"] == "graph.DependencyCycleError"
        assert (await client.run(text()))["status"]["status_str"] == "success"


def test_the_cache_forgets_the_oldest_results_and_none_of_the_running_prompt() -> None:
    cache = Cache(keeps_old=True)

    def run(start: int, count: int) -> list[str]:
        graph = {
            str(n): {"class_type": "ConformanceText", "inputs": {"text": str(n)}} for n in range(start, start + count)
        }
        cache.begin(graph, {})
        cached = [node for node in graph if cache.get(node)]
        for node in graph:
            cache.put(node, Result((), None, None))
        return cached

    run(0, KEPT + 50)
    assert len(run(0, KEPT + 50)) == KEPT + 50
    run(1000, 1)
    assert run(0, 51) == ["50"]
