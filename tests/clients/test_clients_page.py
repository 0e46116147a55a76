"""The examples of docs/clients.md do what they say, and the versions that it names are those that are tested."""

import json
import re
import shutil
from pathlib import Path

import pytest
from client_packages import modules_with, node, python_with
from client_programs import fleet, run, saved
from proxying import running_proxy
from simulator_support import png

_PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
_PINS = Path(__file__).parent / "pins"


def example(language: str) -> str:
    """Return the page's one example in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", _PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


async def test_the_curl_example_works(tmp_path: Path) -> None:
    if not shutil.which("curl") or not Path("/proc/sys/kernel/random/uuid").exists():
        pytest.skip("there is no curl here, or no Linux")
    (tmp_path / "cat.png").write_bytes(png(color=(1, 2, 3)))
    async with fleet() as backends, running_proxy(backends, tmp_path / "data") as proxy:
        code, _, err = await run(("sh", "-e", "-c", example("sh")), tmp_path, COMFYUI=proxy.url)
        assert (code, err) == (0, "")
        (entry,) = json.loads((tmp_path / "history.json").read_text()).values()
        (image,) = entry["outputs"]["3"]["images"]
        assert (tmp_path / "result.png").read_bytes() == saved(backends, image)


async def test_the_python_example_works(tmp_path: Path) -> None:
    python = python_with("websocket-client")
    async with fleet() as backends, running_proxy(backends, tmp_path / "data") as proxy:
        code, out, err = await run((python, "-c", example("python")), tmp_path, COMFYUI=proxy.url)
        assert (code, err) == (0, "")
        (server,) = [name for name, executed in backends.executed.items() if executed]
        data = (tmp_path / "script_00001_.png").read_bytes()
        assert f"{server}: script_00001_.png, {len(data)} bytes" in out
        assert data == saved(backends, {"subfolder": server, "filename": "script_00001_.png"})


async def test_the_python_example_works_with_one_server_behind_the_proxy(tmp_path: Path) -> None:
    python = python_with("websocket-client")
    async with fleet() as backends, running_proxy(backends, tmp_path / "data") as proxy:
        url = f"{proxy.url}/comfyproxy/backends/gpu-b"
        code, out, err = await run((python, "-c", example("python")), tmp_path, COMFYUI=url)
        assert (code, err) == (0, "")
        assert ": script_00001_.png" in out  # in no server's folder: nothing is translated there
        assert len(backends["gpu-b"].executed) == 1


async def test_the_javascript_example_works(tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(modules_with("comfyui-client"), target_is_directory=True)
    (tmp_path / "example.mjs").write_text(example("js"))
    async with fleet() as backends, running_proxy(backends, tmp_path / "data") as proxy:
        code, out, err = await run((node(), "example.mjs"), tmp_path, COMFYUI=proxy.url)
        assert (code, err) == (0, "")
        url = out.strip().splitlines()[-1]
        assert (await proxy.get(url.removeprefix(proxy.url)))[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_versions_are_those_that_are_pinned() -> None:
    pinned: dict[str, str] = {}
    for pins in _PINS.glob("*.txt"):
        pinned |= dict(line.split("==") for line in pins.read_text().splitlines())
    for pins in _PINS.glob("*.json"):
        pinned |= json.loads(pins.read_text())["dependencies"]
    table = _PAGE.read_text("utf-8").partition("## Held to it in the tests")[2]
    rows = re.findall(r"^\| ([^|]+) \| ([\d., ]+) \|", table, re.MULTILINE)
    told = dict(pair for names, versions in rows for pair in zip(names.split(", "), versions.split(", "), strict=True))
    assert len(told) == 7
    assert told == {name: pinned[name] for name in told}
