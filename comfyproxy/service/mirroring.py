"""User data and settings are written to every backend, so that another home still has the user's workflows.

The home backend answers. What it has taken goes to the others in the same order, each in its own time: one that is
away gets it when it is back, as long as the proxy lives and there is room.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from comfyproxy.core.errors import BackendUnavailable, NotDelivered, UpstreamError, UpstreamFailed
from comfyproxy.core.jobs import BackendId
from comfyproxy.service.file_ports import client_of
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.ports import Spawn
from comfyproxy.service.spool import Spooled

log = logging.getLogger(__name__)

# What one backend may have missed; beyond it the oldest is forgotten.
MAX_WRITES = 1_000
MAX_BYTES = 256 * 1024 * 1024
WAIT_FOR_OTHERS_S = 2.0  # those that need longer go on unwatched
ANSWER_WITHIN_S = 30.0
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Write:
    """One request that changes a user's state."""

    method: str
    target: str  # path and query, encoded as they came
    headers: Mapping[str, str]
    body: Spooled

    def chunks(self) -> AsyncIterator[bytes] | None:
        """Return the body; None where there is none, lest it go out as an empty chunked one."""
        return self.body.chunks() if self.body.size else None


@dataclass(frozen=True, slots=True)
class Written:
    """A backend's answer."""

    backend: BackendId
    status: int
    headers: Mapping[str, str]
    body: bytes


class Mirror:
    """Writes to all backends."""

    def __init__(self, fleet: Fleet, spawn: Spawn, *, wait_s: float = WAIT_FOR_OTHERS_S) -> None:
        self._fleet, self._spawn, self._wait_s = fleet, spawn, wait_s
        self._turn = asyncio.Lock()  # the others get the writes in the order in which home took them
        self._queues: dict[BackendId, _Queue] = {}

    async def write(self, write: Write) -> Written:
        """Write at home and, where home took it, everywhere; return home's answer.

        Raises NoBackend, BackendUnavailable, UpstreamFailed.
        """
        async with self._turn:
            answer = await self._at_home(write)
            if answer.status >= 400:
                return answer
            waiting = [
                self._queue(backend).put(write, self._spawn) for backend in self._fleet if backend.id != answer.backend
            ]
        ready = [done for backend, done in waiting if backend.is_ready]
        if ready:
            await asyncio.wait(ready, timeout=self._wait_s)
        return answer

    def restored(self, backend: Backend) -> None:
        """Bring a backend what it missed."""
        self._queue(backend).start(self._spawn)

    def forget(self, backend: Backend) -> None:
        """Let go of what a backend that has left did not get."""
        if (queue := self._queues.pop(backend.id, None)) is not None:
            queue.close()

    def close(self) -> None:
        """Let go of all that was not delivered."""
        for queue in self._queues.values():
            queue.close()

    def _queue(self, backend: Backend) -> "_Queue":
        if (queue := self._queues.get(backend.id)) is None:
            queue = self._queues[backend.id] = _Queue(backend, self._fleet)
        return queue

    async def _at_home(self, write: Write) -> Written:
        while True:
            home = self._fleet.home()
            try:
                return await _send(write, home)
            except UpstreamError as exc:
                self._fleet.note_failure(home, exc)
                if isinstance(exc, NotDelivered) and self._fleet.home() is not home:
                    continue
                if isinstance(exc, NotDelivered):
                    raise BackendUnavailable(f"Backend {home.id} cannot be reached", details=str(exc)) from exc
                raise UpstreamFailed(f"Backend {home.id} failed to answer", details=str(exc)) from exc


class _Queue:
    """The writes that one backend has not got yet, in order."""

    def __init__(self, backend: Backend, fleet: Fleet) -> None:
        self._backend, self._fleet = backend, fleet
        self._writes: deque[tuple[Write, asyncio.Future[None]]] = deque()
        self._bytes = 0
        self._is_working = False

    def put(self, write: Write, spawn: Spawn) -> tuple[Backend, asyncio.Future[None]]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        write.body.hold()
        self._writes.append((write, done))
        self._bytes += write.body.size
        while len(self._writes) > 1 and (len(self._writes) > MAX_WRITES or self._bytes > MAX_BYTES):
            lost, _ = self._writes[0]
            log.warning("%s misses too much: %s %s is forgotten", self._backend.id, lost.method, lost.target)
            self._drop_first()
        self.start(spawn)
        return self._backend, done

    def start(self, spawn: Spawn) -> None:
        if self._writes and not self._is_working and self._backend.health.healthy:
            self._is_working = True
            spawn(self._work(), name=f"user data for {self._backend.id}")

    def close(self) -> None:
        while self._writes:
            self._drop_first()

    async def _work(self) -> None:
        try:
            while self._writes and self._backend.health.healthy:
                write, _ = entry = self._writes[0]
                try:
                    answer = await _send(write, self._backend)
                except UpstreamError as exc:
                    log.warning("%s %s did not reach %s: %s", write.method, write.target, self._backend.id, exc)
                    self._fleet.note_failure(self._backend, exc)
                    if isinstance(exc, NotDelivered):
                        await asyncio.sleep(RETRY_S)
                        continue  # as long as it counts as healthy; afterwards `restored` goes on
                else:
                    if answer.status >= 400:
                        log.warning(
                            "%s refused %s %s with %d", self._backend.id, write.method, write.target, answer.status
                        )
                if self._writes and self._writes[0] is entry:
                    self._drop_first()
        finally:
            self._is_working = False

    def _drop_first(self) -> None:
        write, done = self._writes.popleft()
        self._bytes -= write.body.size
        write.body.release()
        if not done.done():
            done.set_result(None)


async def _send(write: Write, backend: Backend) -> Written:
    """Send a write to one backend and read the answer. Raises an UpstreamError."""
    async with client_of(backend).request(
        write.method,
        write.target,
        headers=write.headers,
        data=write.chunks(),
        idle_timeout_s=ANSWER_WITHIN_S,
    ) as answer:
        return Written(backend.id, answer.status, answer.headers, await answer.read())
