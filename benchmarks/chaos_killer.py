"""Breaks things at random, one after the other and several at once, and mends them again."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
from chaos_clients import Client
from chaos_processes import HEARTBEAT_TIMEOUT_S, Backend, Proxy

REST_S = 1.5  # after a fault of a backend, until the next one


@dataclass(slots=True)
class Fault:
    """Something that was done; `ended_s` is when it was mended."""

    kind: str
    target: str
    begun_s: float
    ended_s: float = field(default=float("inf"))

    def explains(self, first: str, first_s: float, second: str, second_s: float) -> bool:
        """Whether a prompt that began on one backend had to begin again, or might begin again, on another.

        The first may have been lost while it ran; or the second while it waited there, and then awoke with it.
        """
        if self.kind in ("frozen", "stopped"):
            if self.target == first and self.begun_s <= second_s and self.ended_s >= first_s - 1.0:
                return min(self.ended_s, second_s) - self.begun_s > HEARTBEAT_TIMEOUT_S / 2
            if self.target == second and self.begun_s <= first_s and self.ended_s >= first_s - 1.0:
                return min(self.ended_s, second_s) - self.begun_s > HEARTBEAT_TIMEOUT_S / 2
            return False
        is_in_time = self.begun_s <= second_s and self.ended_s >= first_s - 1.0
        return self.kind in ("killed", "restarted", "refusing") and self.target == first and is_in_time


class Killer:
    """Everything it does is over when `run` returns, and mended after `calm`."""

    def __init__(
        self,
        proxy: Proxy,
        backends: list[Backend],
        clients: list[Client],
        session: aiohttp.ClientSession,
        rng: random.Random,
    ) -> None:
        self._proxy, self._backends, self._clients = proxy, backends, clients
        self._session, self._rng = session, rng
        self._proxy_is_busy = False
        self.faults: list[Fault] = []
        of_backends: dict[Callable[[Backend], Awaitable[None]], int] = {
            self._kill: 4,
            self._restart: 2,
            self._freeze: 4,
            self._stop: 3,
            self._cut_links: 4,
            self._refuse: 2,
            self._cut_before: 2,
            self._cut_after: 2,
            self._slow: 2,
        }
        of_proxy: dict[Callable[[], Awaitable[None]], int] = {
            self._kill_proxy: 3,
            self._restart_proxy: 1,
            self._stop_proxy: 1,
        }
        self._of_backends = [deed for deed, weight in of_backends.items() for _ in range(weight)]
        self._of_proxy = [deed for deed, weight in of_proxy.items() for _ in range(weight)]

    async def run(self, end_s: float, *, every_s: float) -> None:
        """Break things until the time has come, on the average one in `every_s`."""
        async with asyncio.TaskGroup() as group:
            while (left_s := end_s - time.monotonic()) > 0:
                await asyncio.sleep(min(left_s, self._rng.uniform(0.2, 2 * every_s - 0.2)))
                group.create_task(self._strike())

    async def _strike(self) -> None:
        kind = self._rng.random()
        if kind < 0.15:
            self._cut_client()
        elif kind < 0.3 and not self._proxy_is_busy:
            self._proxy_is_busy = True
            await self._rng.choice(self._of_proxy)()
            self._proxy_is_busy = False
        elif free := [backend for backend in self._backends if not backend.is_busy]:
            backend = self._rng.choice(free)
            backend.is_busy = True
            await self._rng.choice(self._of_backends)(backend)
            await asyncio.sleep(REST_S)
            backend.is_busy = False

    async def calm(self) -> None:
        """Leave nothing broken that `run` may have left so."""
        for backend in self._backends:
            for name in ("cut_before_accepting", "cut_after_accepting"):
                await backend.fault(self._session, name, 0)

    def _begin(self, kind: str, target: str) -> Fault:
        fault = Fault(kind, target, time.time())
        self.faults.append(fault)
        return fault

    # What is done to a backend

    async def _kill(self, backend: Backend) -> None:
        fault = self._begin("killed", backend.name)
        await backend.end(signal.SIGKILL)
        await asyncio.sleep(self._rng.uniform(0.0, 5.0))
        await backend.start(self._session)
        fault.ended_s = time.time()

    async def _restart(self, backend: Backend) -> None:
        fault = self._begin("restarted", backend.name)
        await backend.deed(self._session, "restart")
        fault.ended_s = time.time()

    async def _freeze(self, backend: Backend) -> None:
        fault = self._begin("frozen", backend.name)
        await backend.fault(self._session, "freeze")
        await asyncio.sleep(self._rng.uniform(0.5, 1.7 * HEARTBEAT_TIMEOUT_S))
        await backend.fault(self._session, "thaw")
        fault.ended_s = time.time()

    async def _stop(self, backend: Backend) -> None:
        fault = self._begin("stopped", backend.name)
        backend.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._rng.uniform(0.5, 1.7 * HEARTBEAT_TIMEOUT_S))
        backend.send_signal(signal.SIGCONT)
        fault.ended_s = time.time()

    async def _refuse(self, backend: Backend) -> None:
        fault = self._begin("refusing", backend.name)
        await backend.fault(self._session, "refuse_connections")
        await asyncio.sleep(self._rng.uniform(0.5, 3.0))
        await backend.fault(self._session, "accept_connections")
        fault.ended_s = time.time()

    async def _slow(self, backend: Backend) -> None:
        fault = self._begin("slow", backend.name)
        await backend.fault(self._session, "delay_s", self._rng.uniform(0.2, 2.0))
        await asyncio.sleep(self._rng.uniform(1.0, 4.0))
        await backend.fault(self._session, "delay_s", 0.0)
        fault.ended_s = time.time()

    async def _cut_links(self, backend: Backend) -> None:
        await self._at_once("links cut", backend, "drop_websockets", True)

    async def _cut_before(self, backend: Backend) -> None:
        await self._at_once("cut before accepting", backend, "cut_before_accepting", self._rng.randint(1, 2))

    async def _cut_after(self, backend: Backend) -> None:
        await self._at_once("cut after accepting", backend, "cut_after_accepting", self._rng.randint(1, 2))

    async def _at_once(self, kind: str, backend: Backend, name: str, value: int) -> None:
        fault = self._begin(kind, backend.name)
        await backend.fault(self._session, name, value)
        fault.ended_s = time.time()

    # What is done to the proxy, and to clients

    async def _kill_proxy(self) -> None:
        fault = self._begin("killed", "proxy")
        await self._proxy.end(signal.SIGKILL)
        await asyncio.sleep(self._rng.choice((0.0, 0.0, 1.0, 3.0)))
        await self._proxy.start(self._session)
        fault.ended_s = time.time()

    async def _restart_proxy(self) -> None:
        fault = self._begin("restarted", "proxy")
        await self._proxy.end(signal.SIGTERM)
        await self._proxy.start(self._session)
        fault.ended_s = time.time()

    async def _stop_proxy(self) -> None:
        fault = self._begin("stopped", "proxy")
        self._proxy.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._rng.uniform(0.5, 1.7 * HEARTBEAT_TIMEOUT_S))
        self._proxy.send_signal(signal.SIGCONT)
        fault.ended_s = time.time()

    def _cut_client(self) -> None:
        client = self._rng.choice(self._clients)
        if client.cut():
            self._begin("cut", "client").ended_s = time.time()
