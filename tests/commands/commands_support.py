"""The command as a process of its own, in a folder and an environment that say nothing of this machine."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

COMMAND = ("-m", "comfyproxy")
# As where uvloop cannot be installed.
COMMAND_WITHOUT_UVLOOP = (
    "-c",
    "import sys; sys.modules['uvloop'] = None; from comfyproxy.cli import main; sys.exit(main())",
)
DEAD = "http://127.0.0.1:9"  # a backend that is never there: the port of `discard`, which nothing runs


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without settings of comfyproxy, but with these variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COMFYPROXY_")} | variables


def invoke(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        (sys.executable, *COMMAND, *arguments),
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@dataclass
class Running:
    """A command that runs until it is told to stop."""

    process: asyncio.subprocess.Process

    async def line(self) -> str:
        """Return the next line that it prints; empty if it has ended."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def url(self) -> str:
        """Return where it says that it listens."""
        words = "comfyproxy listening on "
        while not (line := await self.line()).startswith(words):
            assert self.process.stdout is not None
            assert not self.process.stdout.at_eof(), await self.ended()
        return line.removeprefix(words)

    async def stopped(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; return what `ended` does."""
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> tuple[int, str, str]:
        """Wait for its end; return the exit code and what is left to read of stdout and stderr."""
        async with asyncio.timeout(30):
            output, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, output.decode(), errors.decode()


@asynccontextmanager
async def running(
    *arguments: str, cwd: Path, command: tuple[str, ...] = COMMAND, variables: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    """Run a command while the block lasts, and kill it then if it still runs."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, *arguments, cwd=cwd, env=environment(**(variables or {})), stdout=pipe, stderr=pipe
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@contextmanager
def taken_port() -> Iterator[int]:
    """Listen on a port while the block lasts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]
