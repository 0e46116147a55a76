"""The processes that chaos breaks: the proxy, and the simulated backends."""

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
START_S = 60.0
STOP_S = 20.0
HEARTBEAT_TIMEOUT_S = 6.0


class ChaosFailed(Exception):
    """The stage itself broke: no result."""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Child:
    """One process, and its next lives."""

    def __init__(self, name: str, command: list[str], log: Path, ready_url: str) -> None:
        self.name, self._command, self._log, self._ready_url = name, command, log, ready_url
        self._process: asyncio.subprocess.Process | None = None
        self._is_meant_to_end = True
        self.ended_by_itself: list[int] = []  # exit codes that nobody asked for

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ChaosFailed(f"{self.name} does not run")
        return self._process.pid

    async def start(self, session: aiohttp.ClientSession) -> None:
        """Start, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=log, stderr=log, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )
        self._is_meant_to_end = False
        try:
            async with asyncio.timeout(START_S):
                while not await _answers(session, self._ready_url):
                    if self._process.returncode is not None:
                        raise ChaosFailed(f"{self.name} ended at its start with {self._process.returncode}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise ChaosFailed(f"{self.name} does not answer after its start") from None

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that runs."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def end(self, number: int = signal.SIGKILL) -> None:
        """End it, by this signal if that helps within some seconds."""
        process = self._process
        if process is None:
            return
        self.note()
        self._is_meant_to_end = True
        if process.returncode is None:
            self.send_signal(number)
            self.send_signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        self._process = None

    def note(self) -> None:
        """Take note if it has ended by itself."""
        if self._process is not None and self._process.returncode is not None and not self._is_meant_to_end:
            self._is_meant_to_end = True
            self.ended_by_itself.append(self._process.returncode)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds."""

    rss_mb: float
    descriptors: int


class Proxy(Child):
    """The proxy."""

    def __init__(self, folder: Path, port: int, backends: "list[Backend]") -> None:
        self.url = f"http://{HOST}:{port}"
        config = folder / "comfyproxy.yaml"
        check = {"interval": 0.5, "timeout": 2.0, "heartbeat_timeout": HEARTBEAT_TIMEOUT_S, "rise": 1, "fall": 2}
        nodes = [{"node_id": each.name, "url": each.url, "max_concurrent": 2} for each in backends]
        settings = {
            # With more retries than faults: what is given up is not lost, but it would hide what is.
            "nodes": {"static_nodes": nodes, "load_balancing": {"max_retries": 1000}, "health_check": check},
            "server": {"port": port, "shutdown_timeout": 3.0},
            "store": {"data_dir": str(folder / "data"), "synchronous": "normal"},
            "history": {"max_items": 1_000_000},
        }
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "comfyproxy", "serve", "--config", str(config)]
        super().__init__("proxy", command, folder / "proxy.log", f"{self.url}/healthz")
        self.log = folder / "proxy.log"
        self.usages: list[tuple[Usage, float]] = []  # at the start of each life, with its time

    async def start(self, session: aiohttp.ClientSession) -> None:
        await super().start(session)
        self.usages.append((self.usage(), time.time()))

    def usage(self) -> Usage:
        """Return what it holds now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (rss,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        return Usage(int(rss) / 1024, len(list(Path(f"/proc/{self.pid}/fd").iterdir())))


class Backend(Child):
    """A simulated backend with its control port."""

    def __init__(self, name: str, folder: Path, port: int, control_port: int) -> None:
        self.url, self.control_url = f"http://{HOST}:{port}", f"http://{HOST}:{control_port}"
        self._folder = folder
        folder.mkdir()
        command = [sys.executable, str(ROOT / "benchmarks/chaos_backend.py"), name, str(port), str(control_port)]
        log = folder.with_suffix(".log")
        super().__init__(name, [*command, str(folder)], log, f"{self.control_url}/faults")
        self.is_busy = False  # something is being done to it

    async def fault(self, session: aiohttp.ClientSession, name: str, value: Any = True) -> None:
        """Set a fault."""
        await self.deed(session, "faults", {"name": name, "value": value})

    async def deed(self, session: aiohttp.ClientSession, path: str, said: Any = None) -> None:
        """Post to the control port."""
        async with session.post(f"{self.control_url}/{path}", json=said) as answer:
            if answer.status != 200:
                raise ChaosFailed(f"{self.name}: {path} {said}: {await answer.text()}")

    def runs(self) -> list[tuple[float, str]]:
        """Return when it began to run what, over all its lives."""
        journal = self._folder / "journal"
        lines = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
        return [(float(line[0]), line[1]) for line in lines if len(line) == 2]


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
