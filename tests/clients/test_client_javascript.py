"""The best-known JavaScript libraries for ComfyUI: @saintno/comfyui-sdk and @stable-canvas/comfyui-client."""

import hashlib
from pathlib import Path

import pytest
from client_packages import modules_with
from client_programs import CHECKPOINT, fleet, impossible, node_driver, picture, saved, unending
from proxying import running_proxy
from simulator_support import png


@pytest.fixture(scope="module")
def comfyui_sdk() -> Path:
    return modules_with("comfyui-sdk")


@pytest.fixture(scope="module")
def comfyui_client() -> Path:
    return modules_with("comfyui-client")


async def test_saintnos_comfyui_sdk_works_through_the_proxy(comfyui_sdk: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(png(color=(5, 4, 3)))
    async with fleet() as backends, running_proxy(backends, tmp_path / "data", max_concurrent=1) as proxy:
        given = {
            "url": proxy.url,
            "file": str(source),
            "workflow": picture(1, image="to be uploaded"),
            "workflows": [picture(seed, seconds=10) for seed in range(2, 8)],
            "unending": [unending(seed) for seed in range(3)],
            "last": unending(4),
            "impossible": impossible(),
        }
        answer = await node_driver(comfyui_sdk, "drive_comfyui_sdk.mjs", tmp_path, given)

        assert answer["uploaded"]["name"] == "source.png"
        made = answer["made"]
        assert "error" not in made, made
        assert made["finished"] == made["started"] == made["id"]
        assert made["hash"] == hashlib.sha256(saved(backends, made["image"])).hexdigest()
        assert made["progress"] > 1
        assert made["previews"] > 1
        # The same again went where its results were still in memory, and so it names the same file.
        assert answer["again"]["image"] == made["image"]
        assert answer["refused"].startswith("EnqueueFailedError")
        assert answer["checkpoints"] == [CHECKPOINT]
        assert answer["devices"] == 3
        assert answer["cancelledRunning"]["error"].startswith("ExecutionInterruptedError")
        others = [*answer["together"], *answer["pool"]]
        assert [one["error"] for one in others if "error" in one] == []
        for one in others:
            assert one["hash"] == hashlib.sha256(saved(backends, one["image"])).hexdigest()
        assert len({one["hash"] for one in others}) == 6
        assert answer["running"] == 3
        assert (answer["cancelledWaiting"]["before"], answer["cancelledWaiting"]["after"]) == (True, False)
        assert all(answer["cancelledWaiting"]["id"] not in executed for executed in backends.executed.values())


async def test_stable_canvas_comfyui_client_works_through_the_proxy(comfyui_client: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(png(color=(3, 4, 5)))
    async with fleet() as backends, running_proxy(backends, tmp_path / "data", max_concurrent=1) as proxy:
        given = {
            "url": proxy.url,
            "file": str(source),
            "workflow": picture(1, image="to be uploaded"),
            "workflows": [picture(seed, seconds=10) for seed in range(2, 8)],
            "unending": [unending(seed) for seed in range(4)],
            "impossible": impossible(),
        }
        answer = await node_driver(comfyui_client, "drive_comfyui_client.mjs", tmp_path, given)

        assert answer["uploaded"]["name"] == "source.png"
        assert answer["made"]["progress"] > 1
        assert answer["made"]["previews"] > 1
        for made in [answer["made"], *answer["polled"]]:
            (image,) = (await proxy.ended(made["id"]))["outputs"]["3"]["images"]
            assert made["hashes"] == [hashlib.sha256(saved(backends, image)).hexdigest()]
        assert answer["refused"] is not None
        assert answer["checkpoints"] == [CHECKPOINT]
        assert answer["samplers"] > 1
        _, *others, last = answer["cancelled"]["ids"]
        assert answer["cancelled"]["waiting"] == {"running": False, "pending": False, "done": True}
        assert answer["cancelled"]["interrupted"] == "execution_interrupted"
        # An interrupt by id leaves the others alone.
        assert answer["cancelled"]["stillRunning"] == sorted(others)
        assert all(last not in executed for executed in backends.executed.values())
