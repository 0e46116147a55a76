"""Lives of a proxy that kills itself at a chosen point, and what its client has seen of each."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proxying import Fleet, Proxy

KILLED = -signal.SIGKILL
PATIENCE_S = 60.0


class Lives:
    """A server of proxies; enter it to have it run."""

    def __init__(self) -> None:
        self._server: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        script = Path(__file__).with_name("crash_server.py")
        self._server = await asyncio.create_subprocess_exec(
            sys.executable, str(script), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._server.stdin is not None
        self._server.stdin.close()
        await self._server.wait()

    async def _line(self, wanted: str) -> list[str]:
        assert self._server is not None
        assert self._server.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            words = (await self._server.stdout.readline()).decode().split()
        assert words, "the server of proxies has ended"
        assert words[0] == wanted, words
        return words[1:]

    @asynccontextmanager
    async def life(
        self, fleet: Fleet, data_dir: Path, *, max_concurrent: int, point: int = 0, side: str = "before"
    ) -> AsyncIterator["Life"]:
        """Let a proxy live; it is killed at the end if it has not died before."""
        assert self._server is not None
        assert self._server.stdin is not None
        urls = {name: backend.url for name, backend in fleet.backends.items()}
        wish = {"data_dir": str(data_dir), "urls": urls, "max_concurrent": max_concurrent, "point": point, "side": side}
        self._server.stdin.write(f"{json.dumps(wish)}\n".encode())
        url, pid = await self._line("listening")
        async with Proxy(url, asyncio.Event()) as proxy:
            life = Life(self, proxy, int(pid))
            try:
                yield life
            finally:
                await life.end()


@dataclass
class Life:
    """One of them."""

    _lives: Lives
    proxy: Proxy
    pid: int
    _death: asyncio.Task[list[str]] | None = None

    async def arm(self) -> None:
        """Let it die at its point, counted from now on."""
        os.kill(self.pid, signal.SIGUSR1)
        await self._lives._line("armed")

    async def outlives(self, steps: Callable[[], Awaitable[None]]) -> bool:
        """Take steps with it; return whether it lived to see the last of them."""
        self._death = asyncio.create_task(self._lives._line("ended"))
        taking = asyncio.ensure_future(steps())
        await asyncio.wait({self._death, taking}, return_when=asyncio.FIRST_COMPLETED)
        if not self._death.done() and taking.exception() is not None:
            # A step that broke off since the proxy has just died.
            await asyncio.wait({self._death}, timeout=2.0)
        if not self._death.done():
            await taking
            return True
        assert int(self._death.result()[0]) == KILLED, "the proxy has not died of its point"
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        return False

    async def end(self) -> None:
        if self._death is None:
            self._death = asyncio.create_task(self._lives._line("ended"))
        if not self._death.done():
            os.kill(self.pid, signal.SIGKILL)
        await self._death


@dataclass
class Seen:
    """What the client knows of its prompt."""

    prompt_id: str
    body: dict[str, Any] = field(default_factory=dict)
    is_accepted: bool = False
    is_cancelled: bool = False  # asked for, and answered
    was_to_be_cancelled: bool = False
