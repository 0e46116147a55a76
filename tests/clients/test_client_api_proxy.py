"""comfy-api-proxy, which offers ComfyUI's API v2 in front of one ComfyUI: here the proxy is that one."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from client_packages import python_with
from client_programs import ClientFailedError, fleet, impossible, picture, python_driver, running, saved, unending
from proxying import running_proxy
from simulator_support import png

CANCELS_BY_ID = "0.26.0"  # it cancels by `POST /api/jobs/{id}/cancel`, as it would at a ComfyUI of that age
_LISTENING = re.compile(rb"Running on (http://\S+)")


@pytest.fixture(scope="module")
def python() -> Path:
    return python_with("comfy-api-proxy")


@asynccontextmanager
async def api_proxy(python: Path, comfyui: str, folder: Path) -> AsyncIterator[str]:
    """Run comfy-api-proxy in front of a ComfyUI; yield its URL."""
    command = (python, "-m", "comfy_api_proxy.cli", "run", "--comfyui", comfyui, "--port", "0")
    async with running(command, folder, PYTHONUNBUFFERED="1") as output:
        yield await _listening(output)


async def _listening(output: asyncio.StreamReader) -> str:
    async with asyncio.timeout(60):
        async for line in output:
            if found := _LISTENING.search(line):
                return found[1].decode()
    raise ClientFailedError("comfy-api-proxy has ended")


async def test_comfy_api_proxy_works_in_front_of_the_proxy(python: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    source.write_bytes(png(color=(9, 8, 7)))
    async with (
        fleet(CANCELS_BY_ID) as backends,
        running_proxy(backends, tmp_path / "data", max_concurrent=1) as proxy,
        api_proxy(python, proxy.url, tmp_path) as url,
    ):
        given = {
            "file": str(source),
            "workflow": picture(1, image="to be uploaded", seconds=40),
            "unending": [unending(seed) for seed in range(5)],
            "impossible": impossible(),
        }
        answer = await python_driver(python, "drive_comfy_sdk.py", tmp_path, given, COMFY_BASE_URL=url)

        made = answer["made"]
        assert made["statuses"][-1] == "succeeded"
        assert made["events"]["Progress"] > 1
        assert made["events"]["Preview"] > 1
        # The id that it chose is the prompt's id.
        (image,) = (await proxy.ended(made["id"]))["outputs"]["3"]["images"]
        assert made["name"] == image["filename"]
        assert made["data"] == hashlib.sha256(saved(backends, image)).hexdigest()
        assert made["part_is_right"]
        # "expired": what is taken out of a queue leaves nothing behind, as at any ComfyUI.
        assert answer["cancelled"]["statuses"] == ["canceled", "canceled", "canceled", "expired", "expired"]
        assert await proxy.queue() == ([], [])
        assert answer["refused"] != "accepted"


async def test_comfy_api_proxy_tells_events_while_the_prompt_runs(python: Path, tmp_path: Path) -> None:
    async with (
        fleet(CANCELS_BY_ID) as backends,
        running_proxy(backends, tmp_path / "data") as proxy,
        api_proxy(python, proxy.url, tmp_path) as url,
        aiohttp.ClientSession() as session,
    ):
        async with session.post(f"{url}/api/v2/jobs", json={"workflow": picture(1, seconds=40)}) as response:
            job = await response.json()
        told: list[tuple[str, dict[str, Any]]] = []
        async with asyncio.timeout(60), session.get(job["urls"]["events"]) as response:
            async for kind, data in server_sent_events(response):
                if kind == "preview" and "preview" not in [kind for kind, _ in told]:
                    assert (await proxy.queue())[0] == [job["id"]]
                told.append((kind, data))
        assert {kind for kind, _ in told} == {"status", "progress", "preview", "output"}
        assert "2" in [data.get("current_node") for kind, data in told if kind == "progress"]
        assert [data["status"] for kind, data in told if kind == "status"][-1] == "succeeded"
        (output,) = [data for kind, data in told if kind == "output"]
        (image,) = (await proxy.ended(job["id"]))["outputs"]["3"]["images"]
        async with session.get(output["url"]) as response:
            assert await response.read() == saved(backends, image)


async def server_sent_events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the data of each event."""
    kind = ""
    async for line in response.content:
        name, _, value = line.decode().strip().partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)
