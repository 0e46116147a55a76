"""A simulated ComfyUI server: its life, death and return.

async with SimulatedBackend(checkpoints=("a.safetensors",), speed=100) as backend:
    ...  # talk to backend.url, look at backend.accepted, set backend.faults
"""

import asyncio
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from . import application
from .control import Control
from .faults import Faults, Hooks, cut
from .folders import Folders
from .options import SimulatorOptions
from .process import Journal, Process
from .profile import profile_of
from .routes_page import write_page

_KEEPALIVE_S = 75.0  # aiohttp's default for years, and what ComfyUI runs with
_GRACE_S = 2.0  # how long a stop waits for requests that are being answered


class SimulatedBackend:
    """One simulated server.

    Attributes:
        faults: what to make go wrong.
    """

    def __init__(self, options: SimulatorOptions | None = None, **overrides: Any) -> None:
        """Take options, and single ones of them by name. Raises ValueError for an unknown version."""
        self.options = replace(options or SimulatorOptions(), **overrides)
        self._profile = profile_of(self.options.version)
        self.faults = Faults()
        self._journal = Journal()
        self._base: Path | None = self.options.base_dir
        self._process: Process | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._control: Control | None = None
        self._host, self._port = "127.0.0.1", 0

    def __repr__(self) -> str:
        state = f"at {self.url}" if self._runner else "not running"
        return f"<SimulatedBackend {self.options.name} {self.options.version} {state}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where it listens, or did before it was killed. Raises RuntimeError if it was never started."""
        if not self._port:
            raise RuntimeError("the simulated server was not started")
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    @property
    def control_url(self) -> str | None:
        """Where the faults can be set over HTTP, or None."""
        return self._control.url if self._control else None

    @property
    def accepted(self) -> list[str]:
        """The ids of all prompts ever accepted, in order."""
        return self._journal.accepted

    @property
    def executed(self) -> list[str]:
        """The ids of all prompts whose execution ever began, in order."""
        return self._journal.executed

    @property
    def loads(self) -> list[str]:
        """The checkpoints that had to be loaded, each time, in order."""
        return self._journal.loads

    @property
    def requests(self) -> deque[tuple[str, str]]:
        """The last requests received: method and path, still percent-encoded and without its query."""
        return self._journal.requests

    @property
    def process(self) -> Process:
        """The life it lives now, for a close look. Raises RuntimeError if there is none."""
        if self._process is None:
            raise RuntimeError("the simulated server is not running")
        return self._process

    @property
    def folders(self) -> Folders:
        """Its folders; they last until it is stopped, or for ever if `base_dir` was given."""
        return self.process.folders

    def app(self) -> web.Application:
        """Return an application that lives as long as whoever runs it wants, such as `aiohttp_server`.

        Refusing connections, `kill` and `restart` need `start` instead.
        """
        base = self._base
        if base is None:
            base = self._base = Path(tempfile.mkdtemp(prefix="simulated-comfyui-"))
        folders = Folders(base, self._profile, windows=self.options.windows)
        web_root = self.options.frontend or write_page(
            folders.base / "web", f"Simulated ComfyUI: {self.options.name}", self._profile.version
        )
        process = Process(self.options, self._profile, folders, self.faults, self._journal)
        app = application.build(process, web_root, self._working)

        async def live(_: web.Application) -> AsyncIterator[None]:
            folders.prepare(self.options.checkpoints)
            self.faults.attach(
                Hooks(self._stop_listening, self._listen, process.sockets.pause, process.sockets.cut_all)
            )
            self._process = process
            async with process.running():
                yield
            self.faults.attach(None)
            if self._runner is None:
                self._remove_own_base()

        async def hang_up(_: web.Application) -> None:
            self.faults.thaw()
            process.sockets.close_all()

        app.cleanup_ctx.append(live)
        app.on_shutdown.append(hang_up)
        return app

    def emit(self, event: str, data: Any, client_id: str | None = None) -> None:
        """Send a websocket event of any name, as custom nodes do: to one client, or to all."""
        self.process.sockets.send(event, data, client_id)

    def hurry(self, speed: float) -> None:
        """Go on at another speed, until it is killed."""
        self.process.world.pace.speed = speed

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen and work. Raises OSError if the port is taken, ControlPortError if the control port is."""
        if self._runner is not None:
            raise RuntimeError("the simulated server is running")
        self._host, self._port = host, port
        self._runner = web.AppRunner(
            self.app(), access_log=None, shutdown_timeout=_GRACE_S, keepalive_timeout=_KEEPALIVE_S
        )
        try:
            await self._runner.setup()
            await self._listen()
            self._port = self._runner.addresses[0][1]
            if self.options.control and self._control is None:
                self._control = Control(self)
                await self._control.start(host, self.options.control_port)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop as ComfyUI does: answer what was begun, and leave websockets without a close frame."""
        runner, self._runner, self._site = self._runner, None, None
        if self._control is not None:
            control, self._control = self._control, None
            await control.stop()
        if runner is not None:
            await runner.cleanup()
        self._process = None
        self._remove_own_base()

    async def kill(self) -> None:
        """Die: the port closes, every connection is reset, and nothing more is done or said."""
        runner = self._runner
        if runner is None:
            return
        self.process.halt()
        await self._stop_listening()
        for connection in list(runner.server.connections) if runner.server else []:
            cut(connection.transport)
        for task in self._working:
            task.cancel()
        await runner.cleanup()
        self._runner = self._process = None

    async def restart(self) -> None:
        """Die if need be, and come back on the same port: files are kept, but temp, queue and history are empty."""
        await self.kill()
        await self.start(self._host, self._port)

    async def _listen(self) -> None:
        if self._runner is None:
            raise RuntimeError("only a server that was started by itself can change what it listens on")
        if self._site is None:
            site = web.TCPSite(self._runner, self._host, self._port)
            await site.start()
            self._site = site

    async def _stop_listening(self) -> None:
        if self._runner is None:
            raise RuntimeError("only a server that was started by itself can change what it listens on")
        site, self._site = self._site, None
        if site is not None:
            await site.stop()

    def _remove_own_base(self) -> None:
        if self._base is not None and self._base != self.options.base_dir:
            shutil.rmtree(self._base, ignore_errors=True)
            self._base = None
