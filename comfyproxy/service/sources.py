"""What every backend says of itself: asked for in one place, and kept until the backend says something else."""

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import msgspec

from comfyproxy.core import rawjson
from comfyproxy.core.catalog import Catalog
from comfyproxy.core.errors import BadAnswer, UpstreamError
from comfyproxy.core.jobs import BackendId
from comfyproxy.service.contents import Content, Listing, Pool, Worker
from comfyproxy.service.fleet import Backend, Fleet

log = logging.getLogger(__name__)

FEATURES, SYSTEM_STATS, OBJECT_INFO = LEARNED = ("/features", "/system_stats", "/object_info")

# So many paths are remembered beyond those that every backend is asked for: a client can think of any folder's name.
MAX_PATHS = 4096
# So many answers are read at a time; each may be 20 MB until it is known which part of it is new.
MAX_ASKED = 32


class Answer(Protocol):
    """A whole answer, whatever its status."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


class Askable(Protocol):
    """What a backend's client must be able to do. Raises an UpstreamError."""

    async def get(self, path: str) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a backend said that it has no such thing."""

    status: int
    body: bytes
    content_type: str | None


@dataclass(slots=True, eq=False)
class _Known:
    """What one backend said at one path.

    Attributes:
        asked_s: when it was asked last, and answered_s when the request went out that it answered last.
        content: its last good answer, which outlives failures, but not a 404.
    """

    asked_s: float = -math.inf
    answered_s: float = -math.inf
    task: asyncio.Task[None] | None = None  # while it is being asked
    content: Content | None = None
    refusal: Refusal | None = None


class Sources:
    """The answers of all backends by path.

    Args:
        now: seconds, monotonic.
        patience_s: nobody waits longer for a backend, as long as anything is known; its answer is taken when it comes.

    Attributes:
        worker: does what takes long.
        generation: grows with whatever may change an answer that is made of those of all backends.
    """

    def __init__(self, fleet: Fleet, *, now: Callable[[], float], patience_s: float) -> None:
        self._fleet, self._now, self.patience_s = fleet, now, patience_s
        self._paths: OrderedDict[str, dict[BackendId, _Known]] = OrderedDict()
        self._pool = Pool()
        self.worker = Worker()
        self._gate = asyncio.Semaphore(MAX_ASKED)
        self._tasks: set[asyncio.Task[None]] = set()
        self.generation = 0

    def changed(self) -> None:
        """Note that backends came or went."""
        self.generation += 1

    async def learn(self, backend: Backend) -> None:
        """Ask a backend what it is and what it can run, whatever it said before; failures are logged."""
        self.expire(backend)
        knowns = [self._known(backend, path) for path in LEARNED]
        # What it was asked before it may answer as what it was before.
        while under_way := [known.task for known in knowns if known.task is not None]:
            await self._wait(under_way)
        # Whoever probes it draws his own conclusions from its failures.
        await self._wait([self._ask(backend, path, is_suspicious=False) for path in LEARNED])
        if backend.catalog is not None:
            log.info("%s is ComfyUI %s with %d node classes", backend.id, backend.version, len(backend.catalog.classes))

    def age_s(self, backend: Backend) -> float:
        """Return the age of the oldest thing that `learn` found out; infinity if one of them is not known."""
        return self._now() - min(self._known(backend, path).answered_s for path in LEARNED)

    def expire(self, backend: Backend) -> None:
        """Hold nothing of what a backend said for new: it may have been restarted."""
        for known_of in self._paths.values():
            if (known := known_of.get(backend.id)) is not None:
                known.asked_s = known.answered_s = -math.inf
        self.generation += 1

    def forget(self, backend: Backend) -> None:
        """Let go of what a backend said that has left; one that is called the same may be another server."""
        for known_of in self._paths.values():
            known_of.pop(backend.id, None)
        self.generation += 1

    async def refresh(self, path: str, backends: Sequence[Backend], *, max_age_s: float) -> None:
        """Ask those backends at a path whose answers are older than that, or wait for those who are being asked.

        Each is waited for no longer than the patience allows, but as long as nothing is known of any of them, for the
        first who answers.
        """
        now = self._now()
        known_of = {backend.id: self._known(backend, path) for backend in backends}
        waited: list[asyncio.Task[None]] = []
        until = now
        for backend in backends:
            known = known_of[backend.id]
            task = known.task
            if task is None and now - known.asked_s >= max_age_s:
                task = self._ask(backend, path)
            if task is not None and known.asked_s + self.patience_s > now:
                waited.append(task)
                until = max(until, known.asked_s + self.patience_s)
        if waited:
            await self._wait(waited, timeout_s=until - now)
        while not any(known.content or known.refusal for known in known_of.values()):
            under_way = [known.task for known in known_of.values() if known.task is not None]
            if not under_way:
                return
            await self._wait(under_way, return_when=asyncio.FIRST_COMPLETED)

    def contents(self, path: str, backends: Sequence[Backend]) -> dict[BackendId, Content]:
        """Return what is known, of those of whom something is."""
        known_of = ((backend.id, self._known(backend, path).content) for backend in backends)
        return {name: content for name, content in known_of if content is not None}

    def refusals(self, path: str, backends: Sequence[Backend]) -> dict[BackendId, Refusal]:
        """Return the last answers of those who refused."""
        known_of = ((backend.id, self._known(backend, path).refusal) for backend in backends)
        return {name: refusal for name, refusal in known_of if refusal is not None}

    def fresh_until_s(self, path: str, backends: Sequence[Backend], *, max_age_s: float) -> float:
        """Return when one of the answers gets too old."""
        return max_age_s + min(self._known(backend, path).asked_s for backend in backends)

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.worker.close()

    def _known(self, backend: Backend, path: str) -> _Known:
        known_of = self._paths.setdefault(path, {})
        self._paths.move_to_end(path)
        if len(self._paths) > MAX_PATHS + len(LEARNED):
            del self._paths[next(oldest for oldest in self._paths if oldest not in LEARNED)]
        return known_of.setdefault(backend.id, _Known())

    async def _wait(
        self,
        tasks: list[asyncio.Task[None]],
        *,
        timeout_s: float | None = None,
        return_when: str = asyncio.ALL_COMPLETED,
    ) -> None:
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=return_when)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _ask(self, backend: Backend, path: str, *, is_suspicious: bool = True) -> asyncio.Task[None]:
        """Begin to ask, unless it is being asked.

        Args:
            is_suspicious: whether a failure counts against the backend's health.
        """
        known = self._known(backend, path)
        if known.task is None:
            known.asked_s = self._now()
            work = self._fetch(backend, path, known, is_suspicious=is_suspicious)
            known.task = asyncio.create_task(work, name=f"GET {path} of {backend.id}")
            self._tasks.add(known.task)
            known.task.add_done_callback(lambda task: self._done(known, task))
        return known.task

    def _done(self, known: _Known, task: asyncio.Task[None]) -> None:
        known.task = None
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def _fetch(self, backend: Backend, path: str, known: _Known, *, is_suspicious: bool) -> None:
        asked_s = known.asked_s
        try:
            async with self._gate:
                answer = await cast(Askable, backend.client).get(path)
                content = await self._read(backend, path, answer) if answer.status == 200 else None
        except UpstreamError as exc:
            log.warning("%s did not answer GET %s: %s", backend.id, path, exc)
            if is_suspicious and not isinstance(exc, BadAnswer):
                self._fleet.note_failure(backend, exc)
            return
        refusal = None
        is_error = content is None and not 400 <= answer.status < 500
        if content is None:
            refusal = Refusal(answer.status, answer.body, answer.headers.get("Content-Type"))
        if is_error:
            log.warning("%s answered GET %s with %d", backend.id, path, answer.status)
            content = known.content
        if content is not known.content or refusal != known.refusal:
            self.generation += 1
        known.content, known.refusal = content, refusal
        if not is_error and known.asked_s == asked_s:  # else it may be another process by now
            known.answered_s = asked_s
        self._note(backend, path, content)

    async def _read(self, backend: Backend, path: str, answer: Answer) -> Content:
        read = self._pool.catalog if path == OBJECT_INFO else self._pool.listing
        try:
            return await self.worker.run(len(answer.body), lambda: read(answer.body))
        except msgspec.MsgspecError as exc:
            raise BadAnswer(f"{backend.id}: GET {path}: not what ComfyUI answers ({exc})") from exc

    def _note(self, backend: Backend, path: str, content: Content | None) -> None:
        """Let the rest of the proxy know what a backend said of itself."""
        if path == OBJECT_INFO and isinstance(content, Catalog):
            self._fleet.note_catalog(backend, content)
        elif path in (FEATURES, SYSTEM_STATS):
            said = _object(content)
            if path == FEATURES:
                backend.features = said
            else:
                system = said.get("system")
                version = system.get("comfyui_version") if isinstance(system, dict) else None
                backend.version = version if isinstance(version, str) else None
                backend.vram = _largest_vram(said.get("devices"))


def _largest_vram(devices: object) -> int:
    sizes = [
        device.get("vram_total")
        for device in (devices if isinstance(devices, list) else [])
        if isinstance(device, dict)
    ]
    return max((size for size in sizes if isinstance(size, int)), default=0)


def _object(content: Content | None) -> dict[str, object]:
    try:
        value = rawjson.decode(content.body) if isinstance(content, Listing) else None
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}
