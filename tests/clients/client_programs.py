"""Running a client program that others wrote, and what all of them are asked to do."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from client_packages import node
from proxying import Fleet

_DRIVERS = Path(__file__).parent / "drivers"
_PATIENCE_S = 90.0  # a Python with big libraries may take seconds to start on a busy machine
_STOP_S = 10.0
_SYSTEM = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "TEMP", "TMP")

# They would tell their makers that they ran, and ask for newer versions: the switches are their own.
_QUIET = {"DO_NOT_TRACK": "1", "COMFY_NO_TELEMETRY": "1", "COMFY_NO_UPDATE_CHECK": "1"}

CHECKPOINT = "a.safetensors"


def fleet(version: str = "0.25.0") -> Fleet:
    """Return three servers, fast enough to wait for."""
    return Fleet("gpu-a", "gpu-b", "gpu-c", speed=20.0, checkpoints=(CHECKPOINT,), version=version)


def picture(seed: int, *, image: str | None = None, seconds: float = 20.0, preview: bool = True) -> dict[str, Any]:
    """Return a prompt that samples in 20 steps and saves one picture.

    Args:
        image: a file among the inputs to begin with; else an empty one.
        seconds: how long it takes a server at nominal speed.
        preview: send a preview with every step.
    """
    source = (
        {"class_type": "LoadImage", "inputs": {"image": image}}
        if image
        else {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 0}}
    )
    sampler = {"image": ["1", 0], "seed": seed, "steps": 20, "seconds": seconds, "preview": preview, "fail_at": 0}
    return {
        "1": {**source, "_meta": {"title": "Source"}},
        "2": {"class_type": "ConformanceSampler", "inputs": sampler, "_meta": {"title": "Sampler"}},
        "3": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": "client"},
            "_meta": {"title": "Result"},
        },
    }


def unending(seed: int) -> dict[str, Any]:
    """Return a prompt that runs for a minute, in steps after each of which it can be interrupted."""
    graph = picture(seed, seconds=1200, preview=False)
    graph["2"]["inputs"]["steps"] = 200  # a newer ComfyUI looks for an interrupt two hundred times at the most
    return graph


def impossible() -> dict[str, Any]:
    """Return a prompt that every server refuses."""
    graph = picture(1)
    graph["2"]["inputs"]["steps"] = 99_999
    return graph


def saved(backends: Fleet, image: Mapping[str, str]) -> bytes:
    """Return the file on the server that made it, by how history names it."""
    name, _, subfolder = image["subfolder"].partition("/")
    return (backends[name].folders.base / "output" / subfolder / image["filename"]).read_bytes()


class ClientFailedError(Exception):
    """A client program ended otherwise than it should; holds what it wrote."""


async def run(command: Sequence[str | Path], folder: Path, given: Any = None, **env: str) -> tuple[int, str, str]:
    """Run a program that reads JSON; return its exit code, and what it wrote to stdout and stderr."""
    async with _process(command, folder, env) as process:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                out, err = await process.communicate(json.dumps(given).encode())
        except TimeoutError:
            process.kill()
            out, err = await process.communicate()
            raise ClientFailedError(f"{command} did not end:\n{out.decode()}\n{err.decode()}") from None
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def python_driver(python: Path, name: str, folder: Path, given: Any, **env: str) -> Any:
    """Give JSON to a driver that is written in Python; return the JSON that its last line is."""
    return await _answer((python, _DRIVERS / name), folder, given, env)


async def node_driver(modules: Path, name: str, folder: Path, given: Any) -> Any:
    """Give JSON to a driver that is written in JavaScript; return the JSON that its last line is."""
    # Modules are looked for beside the script that asks for them.
    link = folder / "node_modules"
    if not link.exists():
        link.symlink_to(modules, target_is_directory=True)
    script = shutil.copy(_DRIVERS / name, folder)
    return await _answer((node(), script), folder, given, {})


async def _answer(command: Sequence[str | Path], folder: Path, given: Any, env: Mapping[str, str]) -> Any:
    code, out, err = await run(command, folder, given, **env)
    lines = out.strip().splitlines()
    if code != 0 or not lines:
        raise ClientFailedError(f"{command} ended with {code}:\n{out}\n{err}")
    return json.loads(lines[-1])


@asynccontextmanager
async def running(command: Sequence[str | Path], folder: Path, **env: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run a program in the background; yield what it writes to stdout, and end it."""
    async with _process(command, folder, env) as process:
        assert process.stdout is not None
        yield process.stdout


@asynccontextmanager
async def _process(
    command: Sequence[str | Path], folder: Path, env: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=folder,
        env={name: os.environ[name] for name in _SYSTEM if name in os.environ} | {"HOME": str(folder), **_QUIET, **env},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.communicate()
            except TimeoutError:
                process.kill()
                await process.communicate()
