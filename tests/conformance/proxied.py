"""The proxy as users start it: a process of its own, in front of given servers."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

import aiohttp

_START_S = 30.0  # until it listens, and again until all servers are ready
_STOP_S = 15.0
_POLL_S = 0.05
_LISTENING = re.compile(r"comfyproxy listening on (http://\S+)")


class ProxyFailedError(Exception):
    """The proxy did not start, did not get ready, or did not stop as it should; holds what it wrote."""


@asynccontextmanager
async def running_proxy(backends: Mapping[str, str]) -> AsyncIterator[str]:
    """Run `comfyproxy serve`; yield its URL once all backends are ready, and stop it at the end.

    Args:
        backends: URLs of servers by the names that they are to have.

    Raises ProxyFailedError.
    """
    with TemporaryDirectory(prefix="comfyproxy-") as folder:
        options = ["--host", "127.0.0.1", "--port", "0", "--data-dir", folder]
        for name, url in backends.items():
            options += ["--backend", f"{name}={url}"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "comfyproxy", "serve", *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = _Output(process)
        try:
            url = await output.listening()
            await _all_ready(url, list(backends), output)
            yield url
        finally:
            code = await _stopped(process)
            await output.read
        if code != 0:
            raise ProxyFailedError(f"the proxy ended with {code}:\n{output}")


class _Output:
    """What the process writes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: list[str] = []
        self._url: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.read = asyncio.create_task(self._read(), name="output of the proxy")

    def __str__(self) -> str:
        return "".join(self._lines)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode(errors="replace")
            self._lines.append(text)
            found = _LISTENING.search(text)
            if found and not self._url.done():
                self._url.set_result(found[1])
        if not self._url.done():
            self._url.set_result(None)

    async def listening(self) -> str:
        """Wait for the line that tells where the proxy listens."""
        done, _ = await asyncio.wait([self._url], timeout=_START_S)
        url = self._url.result() if done else None
        if url is None:
            raise ProxyFailedError(f"the proxy did not start:\n{self}")
        return url


async def _all_ready(url: str, backends: list[str], output: _Output) -> None:
    states: dict[str, str] = {}
    try:
        async with asyncio.timeout(_START_S), aiohttp.ClientSession() as session:
            while any(states.get(name) != "ready" for name in backends):
                await asyncio.sleep(_POLL_S)
                async with session.get(f"{url}/readyz") as response:
                    states = (await response.json())["backends"]
    except TimeoutError:
        raise ProxyFailedError(f"the backends did not get ready, but {states}:\n{output}") from None


async def _stopped(process: asyncio.subprocess.Process) -> int:
    """Ask the process to stop, and end it if it does not; return its exit code."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()
