"""comfy-api-simplified, a Python library for scripts: it waits for the websocket to say that all is done."""

import hashlib
from pathlib import Path

import pytest
from client_packages import python_with
from client_programs import CHECKPOINT, fleet, impossible, picture, python_driver, saved, unending
from proxying import running_proxy
from simulator_support import png


@pytest.fixture(scope="module")
def python() -> Path:
    return python_with("comfy-api-simplified")


async def test_comfy_api_simplified_works_through_the_proxy(python: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(png(color=(200, 100, 50)))
    async with fleet() as backends, running_proxy(backends, tmp_path / "data") as proxy:
        given = {
            "url": proxy.url,
            "file": str(source),
            "workflow": picture(0, image="to be uploaded", preview=False),
            "workflows": [picture(seed) for seed in range(1, 7)],
            "unending": unending(8),
            "impossible": impossible(),
        }
        answer = await python_driver(python, "drive_comfy_api_simplified.py", tmp_path, given)

        assert answer["uploaded"] == {"name": "source.png", "subfolder": "default_upload_folder", "type": "input"}
        (data,) = answer["from_upload"].values()
        everything = [path for backend in backends.backends.values() for path in backend.folders.base.rglob("client_*")]
        assert data in {hashlib.sha256(path.read_bytes()).hexdigest() for path in everything}
        for made in answer["pictures"]:
            assert made["data"] == hashlib.sha256(saved(backends, made["image"])).hexdigest()
            assert made["previews"] > 0
        # Several at once: each waited for its own end, although servers ran idle meanwhile.
        assert len({made["data"] for made in answer["pictures"]}) == 6
        assert all(backends.executed.values())
        assert answer["cancelled"]["status"]["status_str"] == "error"
        assert answer["cancelled"]["status"]["messages"][-1][0] == "execution_interrupted"
        assert answer["refused"] == "Request failed with status code 400: Bad Request"
        assert answer["checkpoints"]["ckpt_name"][0] == [CHECKPOINT]
        assert answer["devices"] == 3
