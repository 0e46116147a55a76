"""Servers on Windows and on Linux in one fleet: one name for a model, wherever it runs."""

from pathlib import Path

import pytest
from proxying import Fleet, running_proxy
from simulator_support import txt2img

LINUX, WINDOWS = "SDXL/x.safetensors", "SDXL\\x.safetensors"


def fleet_of(*, windows: bool) -> Fleet:
    return Fleet("a", checkpoints=(LINUX, "plain.safetensors"), windows=windows)


@pytest.mark.parametrize(("written", "listed"), [(LINUX, WINDOWS), (WINDOWS, LINUX)])
async def test_a_prompt_runs_where_its_model_is_spelled_differently_and_history_shows_what_its_client_wrote(
    tmp_path: Path, written: str, listed: str
) -> None:
    async with fleet_of(windows=listed == WINDOWS) as fleet, running_proxy(fleet, tmp_path) as proxy:
        body = {"prompt": txt2img(written)}
        url = fleet["a"].url
        async with proxy.session.post(f"{url}/prompt", json=body) as refused:
            assert refused.status == 400, "the server itself takes its own spelling alone"
        prompt_id = await proxy.submit(txt2img(written), "me")
        entry = await proxy.ended(prompt_id)
        assert entry["status"]["completed"]
        assert entry["prompt"][2]["4"]["inputs"]["ckpt_name"] == written
        async with proxy.session.get(f"{url}/history/{prompt_id}") as answer:
            own = (await answer.json())[prompt_id]
        assert own["prompt"][2]["4"]["inputs"]["ckpt_name"] == listed


async def test_an_error_shows_the_model_as_its_client_wrote_it(tmp_path: Path) -> None:
    async with fleet_of(windows=True) as fleet, running_proxy(fleet, tmp_path) as proxy:
        fleet["a"].faults.fail_prompts = True
        socket = await proxy.socket("me")
        prompt_id = await proxy.submit(txt2img(LINUX), "me")
        await socket.until_done(prompt_id)
        (event,) = socket.data("execution_error")
        assert event["node_type"] == "CheckpointLoaderSimple"
        assert event["current_inputs"] == {"ckpt_name": [LINUX]}
        entry = (await proxy.get(f"/history/{prompt_id}"))[prompt_id]
        (told,) = (data for name, data in entry["status"]["messages"] if name == "execution_error")
        assert told["current_inputs"] == {"ckpt_name": [LINUX]}


async def test_a_fleet_of_both_kinds_lists_the_model_once_and_runs_it_anywhere(tmp_path: Path) -> None:
    async with fleet_of(windows=False) as linux, fleet_of(windows=True) as windows:
        urls = {"linux": linux["a"].url, "windows": windows["a"].url}
        async with running_proxy(urls, tmp_path) as proxy:
            (name,) = (name for name in await proxy.get("/models/checkpoints") if "SDXL" in name)
            info = await proxy.get("/object_info")
            offered = info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
            assert [choice for choice in offered if "SDXL" in choice] == [name]
            for backend in urls:
                pinned = {"X-Comfyproxy-Backend": backend}
                status, answer = await proxy.post("/prompt", {"prompt": txt2img(name)}, headers=pinned)
                assert status == 200, answer
                assert (await proxy.ended(answer["prompt_id"]))["status"]["completed"]
        assert len(linux["a"].executed) == len(windows["a"].executed) == 1
