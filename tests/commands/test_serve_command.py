"""`comfyproxy serve` as users run it: a process with an environment, signals and a log."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from commands_support import COMMAND, COMMAND_WITHOUT_UVLOOP, DEAD, Running, running

from comfyproxy.simulator import SimulatedBackend

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


async def get(url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.json()


async def backends(proxy: Running) -> list[str]:
    body = await get(f"{await proxy.url()}/readyz")
    return list(body["backends"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_where_it_listens_and_a_signal_stops_it_with_0(number: signal.Signals, tmp_path: Path) -> None:
    async with running("serve", "--backend", DEAD, "--port", "0", "--log-level", "error", cwd=tmp_path) as proxy:
        line = await proxy.line()
        assert line.startswith("comfyproxy listening on http://127.0.0.1:")
        assert (await get(f"{line.split()[-1]}/prompt")) == {"exec_info": {"queue_remaining": 0}}
        assert await proxy.stopped(number) == (0, "", "")
    assert (tmp_path / "data" / "comfyproxy.sqlite3").exists()


@pytest.mark.parametrize("command", [COMMAND, COMMAND_WITHOUT_UVLOOP], ids=["uvloop", "asyncio"])
async def test_a_prompt_goes_through_on_either_event_loop(command: tuple[str, ...], tmp_path: Path) -> None:
    workflow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    async with (
        SimulatedBackend(speed=100) as backend,
        running("serve", "--backend", f"a={backend.url}", "--port", "0", cwd=tmp_path, command=command) as proxy,
        aiohttp.ClientSession(await proxy.url()) as session,
        asyncio.timeout(20),
    ):
        async with session.ws_connect("/ws", params={"clientId": "c"}) as socket:
            while (await session.get("/readyz")).status != 200:
                await asyncio.sleep(0.02)
            answer = await session.post("/prompt", json={"prompt": workflow, "client_id": "c"})
            prompt_id = (await answer.json())["prompt_id"]
            while (await socket.receive_json())["type"] != "execution_success":
                pass
        entry = (await (await session.get(f"/history/{prompt_id}")).json())[prompt_id]
        assert entry["status"]["status_str"] == "success"
        assert (await proxy.stopped())[0] == 0


async def test_the_nodes_come_from_the_file_that_the_environment_names(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("nodes: {static_nodes: [{node_id: of-the-file, url: 'http://127.0.0.1:9'}]}\n")
    variables = {"COMFYPROXY_CONFIG": "my.yaml", "COMFYPROXY_SERVER_PORT": "0"}
    async with running("serve", cwd=tmp_path, variables=variables) as proxy:
        assert await backends(proxy) == ["of-the-file"]


async def test_the_environment_comes_before_the_file_and_the_command_line_before_both(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("nodes: {static_nodes: [{node_id: of-the-file, url: 'http://127.0.0.1:9'}]}\n")
    variables = {
        "COMFYPROXY_BACKENDS": f"of-the-environment={DEAD}",
        "COMFYPROXY_SERVER_PORT": "99",  # nobody may use it, but nobody does
        "COMFYPROXY_STORE_DATA_DIR": "elsewhere",
    }
    arguments = ("serve", "--config", "my.yaml", "--port", "0")
    async with running(*arguments, cwd=tmp_path, variables=variables) as proxy:
        assert await backends(proxy) == ["of-the-environment"]
        await proxy.stopped()
        assert (tmp_path / "elsewhere" / "comfyproxy.sqlite3").exists()
    async with running(*arguments, "--backend", f"of-the-command={DEAD}", cwd=tmp_path, variables=variables) as proxy:
        assert await backends(proxy) == ["of-the-command"]


async def test_a_log_in_json_is_one_object_a_line(tmp_path: Path) -> None:
    variables = {"COMFYPROXY_LOGGING_FORMAT": "json", "COMFYPROXY_LOGGING_LEVEL": "debug"}
    async with (
        SimulatedBackend() as backend,
        running("serve", "--backend", backend.url, "--port", "0", cwd=tmp_path, variables=variables) as proxy,
    ):
        url = await proxy.url()
        async with asyncio.timeout(20):
            while not (await get(f"{url}/readyz"))["ready"]:
                await asyncio.sleep(0.02)
        code, _, errors = await proxy.stopped()
    assert code == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    assert lines
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
