"""A large file through the proxy, down and up: how fast beside the way without it, and what memory that takes.

    python benchmarks/streaming.py [--sizes MB [MB ...]] [--rounds N] [--dir DIR]

Two simulated backends give a sparse file through /view, and count what /upload/image brings without keeping it. They
and the proxy are processes of their own. An upload through the proxy is on its disk (in DIR) before it goes to one
backend and then to the other, and the answer comes when both have it, or some seconds after the first: of what the
client sends once the proxy writes one copy, reads two and sends two. Directly, one backend gets it and no disk.

Every size is measured both ways within every round, in turns, so that what else the machine does meets both alike; the
file is in the system's cache. Speeds are medians over the rounds in megabytes (of 1,000,000 bytes) per second;
`x direct` is to the way without the proxy. `CPU` is the processor time of the proxy, all of its threads: what can be
compared where other work on the machine makes speeds meaningless. RSS is the proxy's, in MB: before the first
transfer of its kind and size, the highest during all of them as the kernel counts it, and after the last one. Memory is
flat where the peak does not grow with the size. Linux only.
"""

import argparse
import asyncio
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web
from aiohttp.typedefs import Handler
from chaos_processes import HOST, Child, free_ports
from yarl import URL

from comfyproxy.simulator import SimulatedBackend

NAMES = ("gpu-a", "gpu-b")
FILE = "film.mp4"
RECEIVED = "received"  # a backend's account of its uploads, one a line
MB = 1_000_000
BLOCK = bytes(range(256)) * 4096
ANSWER_S = 600.0

FORM_HEAD = (
    f'--cut\r\nContent-Disposition: form-data; name="image"; filename="{FILE}"\r\nContent-Type: video/mp4\r\n\r\n'
).encode()
FORM_END = b"\r\n--cut--\r\n"


class Discarding(SimulatedBackend):
    """A simulated server that counts what is uploaded to it, and keeps none of it: its disk is not measured."""

    def app(self) -> web.Application:
        @web.middleware
        async def discard(request: web.Request, handler: Handler) -> web.StreamResponse:
            if (request.method, request.path) != ("POST", "/upload/image"):
                return await handler(request)
            received = 0
            async for chunk in request.content.iter_any():
                received += len(chunk)
            with (self.folders.base / RECEIVED).open("a") as journal:
                journal.write(f"{received}\n")
            return web.json_response({"name": FILE, "subfolder": "", "type": "input"})

        app = super().app()
        app.middlewares.insert(0, discard)
        return app


async def serve(name: str, port: int, folder: Path) -> None:
    """Be a backend, until killed."""
    backend = Discarding(name=name, base_dir=folder)
    await backend.start(HOST, port)
    await asyncio.Event().wait()


class Proxy(Child):
    """The proxy, and the memory that it takes."""

    def __init__(self, folder: Path, port: int, backends: dict[str, str]) -> None:
        self.url = f"http://{HOST}:{port}"
        nodes = [{"node_id": name, "url": url} for name, url in backends.items()]
        settings = {
            "nodes": {"static_nodes": nodes, "health_check": {"rise": 1}},
            "server": {"port": port, "shutdown_timeout": 2.0},
            "store": {"data_dir": str(folder / "data")},
        }
        config = folder / "comfyproxy.yaml"
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "comfyproxy", "serve", "--config", str(config)]
        super().__init__("proxy", command, folder / "proxy.log", f"{self.url}/readyz")

    async def all_ready(self, session: aiohttp.ClientSession) -> None:
        """Wait until it has seen every backend."""
        async with asyncio.timeout(ANSWER_S):
            while set((await _readiness(session, self.url)).values()) != {"ready"}:  # noqa: ASYNC110  (another process)
                await asyncio.sleep(0.05)

    def rss_mb(self) -> float:
        """Return what it holds now."""
        return self._status("VmRSS")

    def peak_mb(self) -> float:
        """Return the most that it held since `forget_peak`."""
        return self._status("VmHWM")

    def cpu_s(self) -> float:
        """Return the processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, key: str) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024 / MB
        raise LookupError(key)


async def _readiness(session: aiohttp.ClientSession, url: str) -> dict[str, str]:
    async with session.get(f"{url}/readyz") as answer:
        states: dict[str, str] = (await answer.json())["backends"]
        return states


def download(url: str, target: str, size: int) -> None:
    """Read a file of that size, without a look at it: a client that costs next to nothing."""
    with _connected(url) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        rest = _answer_head(sock, length=size)
        received, buffer = len(rest), bytearray(len(BLOCK))
        while received < size:
            if not (count := sock.recv_into(buffer)):
                raise SystemExit(f"{url}{target} broke off after {received} bytes")
            received += count


def upload(url: str, size: int) -> None:
    """Send a file of that size as curl does."""
    length = len(FORM_HEAD) + size + len(FORM_END)
    with _connected(url) as sock:
        sock.sendall(
            f"POST /upload/image HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n"
            "Content-Type: multipart/form-data; boundary=cut\r\n\r\n".encode()
        )
        sock.sendall(FORM_HEAD)
        block = memoryview(BLOCK)
        for start in range(0, size, len(BLOCK)):
            sock.sendall(block[: size - start])
        sock.sendall(FORM_END)
        _answer_head(sock)


def _connected(url: str) -> socket.socket:
    parsed = URL(url)
    return socket.create_connection((parsed.host, parsed.port), timeout=ANSWER_S)


def _answer_head(sock: socket.socket, length: int | None = None) -> bytes:
    """Read the head of a 200, which must announce that length; return what came behind it."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (chunk := sock.recv(65536)):
            raise SystemExit("a connection was closed before its answer")
        received += chunk
    head, _, rest = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"not a 200: {head.decode()}")
    if length is not None and f"content-length: {length}" not in head.decode().lower():
        raise SystemExit(f"not {length} bytes: {head.decode()}")
    return rest


@dataclass
class Measured:
    """What was seen of one kind of transfer of one size."""

    direct: list[float] = field(default_factory=list)  # MB/s
    proxied: list[float] = field(default_factory=list)
    cpu_s_per_gb: list[float] = field(default_factory=list)  # the proxy's
    before_mb: float = 0.0
    peak_mb: float = 0.0
    after_mb: float = 0.0


Results = dict[tuple[str, int], Measured]  # by kind and megabytes


async def speed(transfer: Callable[[], None], size: int) -> float:
    """Return the MB/s of a transfer."""
    begun = time.perf_counter()
    await asyncio.to_thread(transfer)
    return size / MB / (time.perf_counter() - begun)


@dataclass(frozen=True)
class Stage:
    """What runs, and where."""

    folder: Path
    urls: dict[str, str]
    proxy: Proxy

    def place(self, size: int) -> None:
        """Let the second backend have a file of that size, in the system's cache."""
        path = self.folder / NAMES[-1] / "output" / FILE
        with path.open("wb") as file:
            file.truncate(size)  # sparse
        with path.open("rb") as file:
            while file.read(len(BLOCK)):
                pass

    async def all_received(self, counts: dict[str, int], size: int) -> None:
        """Wait until every backend has had so many uploads, and see that none was short."""
        async with asyncio.timeout(ANSWER_S):
            for name, count in counts.items():
                while len(received := self._received(name)) < count:  # noqa: ASYNC110  (another process's file)
                    await asyncio.sleep(0.05)
                if received[-1] < size:
                    raise SystemExit(f"{name} got {received[-1]} bytes of {size}")

    def _received(self, name: str) -> list[int]:
        path = self.folder / name / RECEIVED
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    async def proxied(self, transfer: Callable[[], None], size: int, seen: Measured, counts: dict[str, int]) -> None:
        """Measure a transfer through the proxy, and its memory until the last backend has all."""
        seen.before_mb = seen.before_mb or self.proxy.rss_mb()
        self.proxy.forget_peak()
        begun_s = self.proxy.cpu_s()
        seen.proxied.append(await speed(transfer, size))
        await self.all_received(counts, size)
        seen.cpu_s_per_gb.append((self.proxy.cpu_s() - begun_s) * 1e9 / size)
        seen.peak_mb = max(seen.peak_mb, self.proxy.peak_mb())
        seen.after_mb = self.proxy.rss_mb()


async def measure(stage: Stage, sizes_mb: list[int], rounds: int) -> Results:
    """Measure all."""
    results: Results = {(kind, size_mb): Measured() for kind in ("download", "upload") for size_mb in sizes_mb}
    owner, owner_url = NAMES[-1], stage.urls[NAMES[-1]]
    counts = dict.fromkeys(NAMES, 0)
    for turn in range(rounds):
        for size_mb in sizes_mb:
            size = size_mb * MB
            stage.place(size)
            for is_proxied in (False, True) if turn % 2 == 0 else (True, False):
                down, up = results["download", size_mb], results["upload", size_mb]
                if is_proxied:
                    target = f"/view?filename={FILE}&subfolder={owner}"
                    await stage.proxied(partial(download, stage.proxy.url, target, size), size, down, {})
                    counts = {name: count + 1 for name, count in counts.items()}
                    await stage.proxied(partial(upload, stage.proxy.url, size), size, up, counts)
                else:
                    target = f"/view?filename={FILE}"
                    down.direct.append(await speed(partial(download, owner_url, target, size), size))
                    counts[owner] += 1
                    up.direct.append(await speed(partial(upload, owner_url, size), size))
                    await stage.all_received({owner: counts[owner]}, size)
    return results


async def run(*, sizes_mb: list[int], rounds: int, folder: Path) -> Results:
    """Start all, and measure."""
    ports = free_ports(len(NAMES) + 1)
    urls = {name: f"http://{HOST}:{port}" for name, port in zip(NAMES, ports, strict=False)}
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        for name, port in zip(NAMES, ports, strict=False):
            command = [sys.executable, __file__, "--serve", name, str(port), str(folder / name)]
            backend = Child(name, command, folder / f"{name}.log", f"{urls[name]}/prompt")
            stack.push_async_callback(backend.end)
            await backend.start(session)
        proxy = Proxy(folder, ports[-1], urls)
        stack.push_async_callback(proxy.end)
        await proxy.start(session)
        await proxy.all_ready(session)
        return await measure(Stage(folder, urls, proxy), sizes_mb, rounds)


def show(results: Results) -> None:
    """Print the table."""
    print(
        f"{'transfer':<10} {'MB':>6} {'direct MB/s':>12} {'proxy MB/s':>11} {'x direct':>9} {'CPU s/GB':>9}"
        f" {'RSS before':>11} {'peak':>7} {'after':>7}"
    )
    for (kind, size_mb), seen in results.items():
        direct, proxied = statistics.median(seen.direct), statistics.median(seen.proxied)
        print(
            f"{kind:<10} {size_mb:>6} {direct:>12.0f} {proxied:>11.0f} {proxied / direct:>9.2f}"
            f" {statistics.median(seen.cpu_s_per_gb):>9.2f}"
            f" {seen.before_mb:>11.1f} {seen.peak_mb:>7.1f} {seen.after_mb:>7.1f}"
        )


def main() -> None:
    """Read the command line and measure."""
    if sys.argv[1:2] == ["--serve"]:
        _, _, name, port, own = sys.argv
        asyncio.run(serve(name, int(port), Path(own)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 512], metavar="MB", help="of the files (default: 64 512)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument(
        "--dir", type=Path, help="where the proxy keeps uploads meanwhile (default: the temporary files)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        show(asyncio.run(run(sizes_mb=arguments.sizes, rounds=arguments.rounds, folder=Path(folder))))


if __name__ == "__main__":
    main()
