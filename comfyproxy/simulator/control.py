"""The faults of a simulated server over HTTP, on a port of their own that outlives the server's deaths.

GET  /faults                    what is set
POST /faults {"name": ..., "value": ...}
POST /kill | /restart
GET  /journal                   accepted and executed prompts, and the checkpoints that had to be loaded
"""

from typing import TYPE_CHECKING, Any

from aiohttp import web

from .faults import COUNTED, Faults

if TYPE_CHECKING:
    from .backend import SimulatedBackend

_SWITCHES = ("mint_prompt_ids",)
_DEEDS = ("freeze", "thaw", "drop_websockets", "refuse_connections", "accept_connections")
NAMES = (*COUNTED, *_SWITCHES, "delay_s", *_DEEDS)


class ControlPortError(OSError):
    """The control port cannot be had."""


class Control:
    """The control port of one backend."""

    def __init__(self, backend: "SimulatedBackend") -> None:
        self._backend = backend
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises ControlPortError if the port is taken."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/faults", self._get_faults),
                web.post("/faults", self._post_fault),
                web.post("/kill", self._kill),
                web.post("/restart", self._restart),
                web.get("/journal", self._journal),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as exc:
            raise ControlPortError(exc.errno, exc.strerror) from exc
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _get_faults(self, request: web.Request) -> web.Response:
        return web.json_response(self._backend.faults.as_dict())

    async def _post_fault(self, request: web.Request) -> web.Response:
        try:
            wish = await request.json()
            await apply(self._backend.faults, wish.get("name"), wish.get("value", True))
        except (ValueError, AttributeError, RuntimeError) as exc:
            return web.json_response({"error": str(exc)}, status=400)
        return await self._get_faults(request)

    async def _kill(self, request: web.Request) -> web.Response:
        await self._backend.kill()
        return web.json_response({})

    async def _restart(self, request: web.Request) -> web.Response:
        await self._backend.restart()
        return web.json_response({"url": self._backend.url})

    async def _journal(self, request: web.Request) -> web.Response:
        backend = self._backend
        return web.json_response({"accepted": backend.accepted, "executed": backend.executed, "loads": backend.loads})


async def apply(faults: Faults, name: Any, value: Any) -> None:
    """Set a fault by name. Raises ValueError for a name or a value that does not fit, RuntimeError without a server."""
    if (name in COUNTED and isinstance(value, int)) or (name in _SWITCHES and isinstance(value, bool)):
        setattr(faults, name, value)
    elif name == "delay_s" and isinstance(value, int | float) and not isinstance(value, bool):
        faults.delay_s = float(value)
    elif name == "freeze":
        faults.freeze()
    elif name == "thaw":
        faults.thaw()
    elif name == "drop_websockets":
        faults.drop_websockets()
    elif name == "refuse_connections":
        await faults.refuse_connections()
    elif name == "accept_connections":
        await faults.accept_connections()
    elif name in NAMES:
        raise ValueError(f"{name} cannot be set to {value!r}")
    else:
        raise ValueError(f"no fault called {name!r}; there are {', '.join(NAMES)}")
