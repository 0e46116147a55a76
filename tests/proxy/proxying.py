"""A whole proxy in front of simulated servers, on real sockets and in this process."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from simulator_support import Client

from comfyproxy import app
from comfyproxy.settings import HealthCheck, LoadBalancing, Nodes, NodeSettings, ServerSettings, Settings, StoreSettings
from comfyproxy.simulator import SimulatedBackend

# Nothing may depend on a probe coming by soon, except what is about probes.
PATIENT = HealthCheck(interval=30.0, timeout=5.0, heartbeat_timeout=60.0, rise=1, fall=3)
EAGER = HealthCheck(interval=0.1, timeout=0.5, heartbeat_timeout=1.0, rise=1, fall=2)


class Fleet:
    """Simulated servers by name; enter it to have them run."""

    def __init__(self, *names: str, speed: float = 20.0, **options: Any) -> None:
        self.backends = {name: SimulatedBackend(name=name, speed=speed, **options) for name in names}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for backend in self.backends.values():
            await self._stack.enter_async_context(backend)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def __getitem__(self, name: str) -> SimulatedBackend:
        return self.backends[name]

    @property
    def executed(self) -> dict[str, list[str]]:
        """The prompts that each server has begun to run."""
        return {name: list(backend.executed) for name, backend in self.backends.items()}


class Proxy(Client):
    """A running proxy as its clients see it, and a way to stop it."""

    def __init__(self, url: str, stop: asyncio.Event, configured: list[Settings] | None = None) -> None:
        self.url = url
        super().__init__(self)
        self.stop = stop
        self._configured = [] if configured is None else configured

    @property
    def settings(self) -> Settings:
        """What a reload reads."""
        return self._configured[-1]

    async def reload(self, settings: Settings) -> dict[str, list[str]]:
        """Configure something else, and let it be read; return what became of the changes."""
        self._configured.append(settings)
        status, body = await self.post("/comfyproxy/v1/reload")
        assert status == 200, body
        reloaded: dict[str, list[str]] = body
        return reloaded

    async def states(self) -> dict[str, str]:
        """Return the state of each backend."""
        _, body = await self.call("GET", "/readyz")
        states: dict[str, str] = body["backends"]
        return states

    async def ready(self, *names: str) -> None:
        """Wait until backends are ready: these, or all."""
        async with asyncio.timeout(10):
            while any(state not in ("ready", "busy") for name, state in (await self.states()).items() if name in names):
                await asyncio.sleep(0.01)

    async def state_is(self, name: str, *wanted: str) -> None:
        """Wait until a backend is in one of these states."""
        async with asyncio.timeout(10):
            while (await self.states())[name] not in wanted:
                await asyncio.sleep(0.01)

    async def ended(self, prompt_id: str) -> Any:
        """Wait for a prompt's history entry."""
        async with asyncio.timeout(20):
            while prompt_id not in (found := await self.get(f"/history/{prompt_id}")):
                await asyncio.sleep(0.01)
        return found[prompt_id]

    async def queue(self) -> tuple[list[str], list[str]]:
        """Return the ids of what runs and of what waits, the next one first."""
        queue = await self.get("/queue")
        running, pending = queue["queue_running"], sorted(queue["queue_pending"], key=lambda item: item[0])
        return [item[1] for item in running], [item[1] for item in pending]


@asynccontextmanager
async def running_proxy(
    backends: Fleet | Mapping[str, str],
    data_dir: Path,
    *,
    max_concurrent: int = 2,
    health_check: HealthCheck = PATIENT,
    load_balancing: LoadBalancing = LoadBalancing(),  # noqa: B008  (frozen)
    wait_ready: bool = True,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> AsyncIterator[Proxy]:
    """Run a proxy in front of servers.

    Args:
        backends: a fleet, or urls by name.
        each: more settings of nodes, by name.
        settings: further sections of `Settings`.
    """
    urls = {name: b.url for name, b in backends.backends.items()} if isinstance(backends, Fleet) else backends
    nodes = tuple(
        NodeSettings(node_id=name, url=url, **{"max_concurrent": max_concurrent, **(each or {}).get(name, {})})
        for name, url in urls.items()
    )
    whole = replace(
        Settings(
            nodes=Nodes(static_nodes=nodes, health_check=health_check, load_balancing=load_balancing),
            server=ServerSettings(port=0, shutdown_timeout=5.0),
            store=StoreSettings(data_dir=data_dir, synchronous="normal"),
        ),
        **settings,
    )
    stop = asyncio.Event()
    configured = [whole]
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = app.serve(whole, stop, on_listening=listening.set_result, read=lambda: configured[-1])
    task = asyncio.create_task(serving, name="proxy")
    # It either listens or fails; the future is never set by anybody else.
    await asyncio.wait({task, asyncio.ensure_future(_heard(listening))}, return_when=asyncio.FIRST_COMPLETED)
    if not listening.done():
        listening.cancel()
        await task
    try:
        async with Proxy(listening.result(), stop, configured) as proxy:
            if wait_ready:
                await proxy.ready(*urls)
            yield proxy
    finally:
        stop.set()
        await task


async def _heard(listening: asyncio.Future[str]) -> None:
    await listening
