"""The list of all node classes: served from the proxy's memory, against passed through to one backend.

    python benchmarks/object_info.py [--classes N] [--models N] [--clients N] [--seconds S] [--rounds N]

Simulated servers describe as many node classes as a real one has, anew for every request, and some of them list models,
of which another one is added with every answer: so the proxy merges and compresses whenever it asks the servers again.
All ways are measured within every round, so that what else the machine does meets them alike. Figures are medians over
the rounds; ratios are to what is passed through. `stall` is the longest that a small request had to wait meanwhile.

Where processors are few, all of these processes wait for one another, too.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import aiohttp

from comfyproxy.simulator import SimulatedBackend
from comfyproxy.simulator.nodes.base import Call, InputTypes, Made, Node
from comfyproxy.simulator.world import World

BACKENDS = ("gpu-a", "gpu-b", "gpu-c")
# Of 785 classes of ComfyUI 0.25.0 about this share lists models.
WITH_MODELS = 0.08
START_S = 60.0

PASSED = "passed through"
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    PASSED: (f"/comfyproxy/backends/{BACKENDS[0]}/object_info", {"Accept-Encoding": "gzip"}),
    "from memory": ("/object_info", {"Accept-Encoding": "identity"}),
    "from memory, gzip": ("/object_info", {"Accept-Encoding": "gzip"}),
    "from memory, known": ("/object_info", {"Accept-Encoding": "gzip", "If-None-Match": "*"}),
}

_LISTENING = re.compile(r"listening on (http://\S+)")


@dataclass
class Measured:
    """What was seen of one way, by round."""

    per_s: list[float] = field(default_factory=list)
    median_ms: list[float] = field(default_factory=list)
    stall_ms: list[float] = field(default_factory=list)
    bytes: int = 0  # of one answer, on the wire


def describe_classes(backend: SimulatedBackend, *, classes: int, models: int) -> None:
    """Give a simulated server many node classes."""
    added = itertools.count()

    class Described(Node):
        category = "benchmark"
        returns = ("MODEL", "CLIP", "VAE")
        lists_models: ClassVar[bool] = False

        @classmethod
        def input_types(cls, world: World) -> InputTypes:
            inputs: dict[str, Any] = {
                name: [
                    "FLOAT",
                    {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01, "tooltip": "How much of it. " * 4},
                ]
                for name in ("strength", "start_percent", "end_percent", "denoise")
            }
            if cls.lists_models:
                names = [f"styles/some-model-{number:05}.safetensors" for number in range(models)]
                inputs["model_name"] = [[*names, f"added-{next(added)}.safetensors"], {"tooltip": "The model."}]
            return {"required": inputs}

        async def run(self, call: Call) -> Made:
            return Made()

    for number in range(classes):
        name = f"Benchmark{number}"
        members = {"name": name, "lists_models": number < classes * WITH_MODELS}
        backend.process.nodes[name] = type(name, (Described,), members)


def serve_backend(name: str, classes: int, models: int, told: Connection) -> None:
    """Run one server until it is killed, and tell its URL."""

    async def run() -> None:
        async with SimulatedBackend(name=name) as backend:
            describe_classes(backend, classes=classes, models=models)
            told.send(backend.url)
            await asyncio.Event().wait()

    asyncio.run(run())


def look(orders: Connection) -> None:
    """Ask for little, for as long as is ordered, and tell how long the longest wait was, in seconds."""

    async def run(url: str, seconds: float) -> float:
        waited_s = [0.0]
        end = time.perf_counter() + seconds
        async with aiohttp.ClientSession() as session:
            while (begun := time.perf_counter()) < end:
                async with session.get(f"{url}/healthz") as answer:
                    await answer.read()
                waited_s.append(time.perf_counter() - begun)
                await asyncio.sleep(0.005)
        return max(waited_s)

    while True:
        orders.send(asyncio.run(run(*orders.recv())))


@asynccontextmanager
async def running_proxy(urls: Sequence[str]) -> AsyncIterator[str]:
    """Run the proxy in a process of its own; yield its URL once all servers are ready."""
    with tempfile.TemporaryDirectory() as folder:
        options = [item for name, url in zip(BACKENDS, urls, strict=True) for item in ("--backend", f"{name}={url}")]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "comfyproxy", "serve", "--host", "127.0.0.1", "--port", "0", "--data-dir", folder),
            *options,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        written = process.stdout
        try:
            async with asyncio.timeout(START_S):
                while not (found := _LISTENING.search((await written.readline()).decode())):
                    if written.at_eof():
                        raise RuntimeError("the proxy did not start")
                reading = asyncio.create_task(_discard(written), name="output of the proxy")
                await _all_ready(found[1])
            yield found[1]
            process.terminate()
            await reading
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass


async def _all_ready(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/readyz") as answer:
                states = (await answer.json())["backends"]
            if all(state == "ready" for state in states.values()):
                return
            await asyncio.sleep(0.1)


async def measure(url: str, way: str, measured: Measured, looker: Connection, *, clients: int, seconds: float) -> None:
    """Ask in one way for some time, and add what was seen."""
    path, headers = WAYS[way]
    took_s: list[float] = []
    end = time.perf_counter() + seconds

    async def ask(session: aiohttp.ClientSession) -> None:
        while (begun := time.perf_counter()) < end:
            async with session.get(url + path, headers=headers) as answer:
                measured.bytes = len(await answer.read())
                assert answer.status in (200, 304), answer.status
            took_s.append(time.perf_counter() - begun)

    looker.send((url, seconds))
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(ask(session) for _ in range(clients)))
        measured.per_s.append(len(took_s) / (time.perf_counter() - begun))
    measured.median_ms.append(1000 * statistics.median(took_s))
    measured.stall_ms.append(1000 * await asyncio.to_thread(looker.recv))


def show(ways: dict[str, Measured]) -> None:
    """Print a table."""
    of_passed = statistics.median(ways[PASSED].per_s)
    print(f"{'way':<20} {'requests/s':>10} {'ratio':>7} {'ms each':>9} {'bytes':>10} {'MB/s':>7} {'stall ms':>9}")
    for way, measured in ways.items():
        per_s = statistics.median(measured.per_s)
        print(
            f"{way:<20} {per_s:>10.1f} {per_s / of_passed:>7.1f} {statistics.median(measured.median_ms):>9.1f} "
            f"{measured.bytes:>10} {per_s * measured.bytes / 1e6:>7.1f} {statistics.median(measured.stall_ms):>9.1f}"
        )


async def run(urls: Sequence[str], looker: Connection, *, clients: int, seconds: float, rounds: int) -> None:
    """Measure all ways, in turns."""
    ways = {way: Measured() for way in WAYS}
    async with running_proxy(urls) as url:
        for _ in range(rounds):
            for way, measured in ways.items():
                await measure(url, way, measured, looker, clients=clients, seconds=seconds)
    print(f"{len(urls)} servers, {clients} clients, {os.cpu_count()} processors; medians of {rounds} rounds")
    show(ways)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=800, help="node classes of each server (default: 800)")
    parser.add_argument("--models", type=int, default=500, help="models that a list of them has (default: 500)")
    parser.add_argument("--clients", type=int, default=4, help="who ask at the same time (default: 4)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    processes = []
    urls: list[str] = []
    try:
        for name in BACKENDS:
            told, tell = spawn.Pipe(duplex=False)
            processes.append(
                spawn.Process(target=serve_backend, args=(name, arguments.classes, arguments.models, tell), daemon=True)
            )
            processes[-1].start()
            urls.append(told.recv())
        looker, orders = spawn.Pipe()
        processes.append(spawn.Process(target=look, args=(orders,), daemon=True))
        processes[-1].start()
        asyncio.run(run(urls, looker, clients=arguments.clients, seconds=arguments.seconds, rounds=arguments.rounds))
    finally:
        for process in processes:
            process.kill()
            process.join()


if __name__ == "__main__":
    main()
