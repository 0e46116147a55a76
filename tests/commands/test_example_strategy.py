"""The example of a strategy in the docs: it is installed as users would, and chooses."""

import asyncio
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from commands_support import COMMAND, environment, invoke, running
from simulator_support import endless

from comfyproxy.simulator import SimulatedBackend

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-strategy"
SETTINGS = """
nodes:
  static_nodes:
    - {{node_id: a, url: "{a}", max_concurrent: 2}}
    - {{node_id: b, url: "{b}", max_concurrent: 2}}
  load_balancing: {{strategy: {strategy}}}
server: {{port: 0}}
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the example is installed."""
    folder = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, folder / "source")
    subprocess.run(
        (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", source),
        env=environment(),
        check=True,
        timeout=120,
    )
    return folder / "site"


async def test_the_example_is_installed_and_chooses(plugins: Path, tmp_path: Path) -> None:
    assert await _spread(tmp_path, "night_shift", plugins) == [2]
    assert await _spread(tmp_path, "least_loaded", plugins) == [1, 1]


def test_without_its_package_the_strategy_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(SETTINGS.format(a="http://a:1", b="http://b:1", strategy="night_shift"))
    done = invoke("check", "my.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert 'there is no strategy "night_shift"' in done.stderr


async def _spread(folder: Path, strategy: str, plugins: Path) -> list[int]:
    """Return how many of two endless prompts each backend gets, of those that get any."""
    async with SimulatedBackend() as a, SimulatedBackend() as b, asyncio.timeout(60):
        (folder / "my.yaml").write_text(SETTINGS.format(a=a.url, b=b.url, strategy=strategy))
        path = {"PYTHONPATH": str(plugins)}
        arguments = ("serve", "--config", "my.yaml", "--data-dir", strategy)
        async with (
            running(*arguments, cwd=folder, command=COMMAND, variables=path) as proxy,
            aiohttp.ClientSession(await proxy.url()) as session,
        ):
            while await _ready(session) < 2:
                await asyncio.sleep(0.02)
            chosen = Counter([await _submit(session, endless(seed), f"client {seed}") for seed in range(2)])
    return sorted(chosen.values())


async def _ready(session: aiohttp.ClientSession) -> int:
    async with session.get("/comfyproxy/v1/backends") as answer:
        return [backend["state"] for backend in (await answer.json())["backends"]].count("ready")


async def _submit(session: aiohttp.ClientSession, graph: Any, client_id: str) -> str:
    async with session.post("/prompt", json={"prompt": graph, "client_id": client_id}) as answer:
        assert answer.status == 200, await answer.text()
        return answer.headers["X-Comfyproxy-Backend"]
