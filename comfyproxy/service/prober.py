"""Looks at every backend from time to time, and at once where traffic raised a suspicion."""

import asyncio
import logging
from collections.abc import Callable

from comfyproxy.core.errors import ConnectionRefused, UpstreamError
from comfyproxy.core.jobs import BackendId
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.ports import Observer
from comfyproxy.service.reconciler import Reconciler
from comfyproxy.service.sources import Sources

log = logging.getLogger(__name__)

# A backend that is out, or under suspicion, is looked at this often: it shall not wait for a whole interval.
EAGER_S = 1.0
# And one that answers but has not yet answered often enough, this often.
RISING_S = 0.1
# What a backend can run seldom changes while it is up.
RELEARN_S = 300.0
# One that cannot say it is not asked at every probe: the answer may be twenty megabytes.
RETRY_LEARN_S = 10.0


class Prober:
    """Probes; one task per backend runs `watch`.

    Args:
        interval_s: between two probes of a healthy backend.
        now: seconds, monotonic.
        jitter: returns a number between its two arguments.
    """

    def __init__(
        self,
        fleet: Fleet,
        reconciler: Reconciler,
        sources: Sources,
        observer: Observer,
        *,
        interval_s: float,
        now: Callable[[], float],
        jitter: Callable[[float, float], float],
    ) -> None:
        self._fleet, self._reconciler, self._sources, self._observer = fleet, reconciler, sources, observer
        self.interval_s, self._now, self._jitter = interval_s, now, jitter
        self._wanted: dict[BackendId, asyncio.Event] = {}  # of those that are watched
        self._tried_s: dict[BackendId, float] = {}  # when each was last asked what it can do
        self.on_load: Callable[[], None] = lambda: None

    def suspect(self, backend: Backend) -> None:
        """Look at a backend soon; one that has left does not matter."""
        if (wanted := self._wanted.get(backend.id)) is not None:
            wanted.set()

    def forget(self, backend: Backend) -> None:
        """Let go of a backend that has left; nobody watches it any more."""
        self._wanted.pop(backend.id, None)
        self._tried_s.pop(backend.id, None)

    def probe_every(self, interval_s: float) -> None:
        """Let another interval hold from now on, also for those probes that are due by the old one."""
        self.interval_s = interval_s
        for wanted in self._wanted.values():
            wanted.set()

    def relearn(self, backend: Backend) -> None:
        """Look at a backend soon, and ask it again what it can do: it may have been restarted."""
        self._sources.expire(backend)
        self._tried_s.pop(backend.id, None)
        self._reconciler.haunt(backend)
        self.suspect(backend)

    async def watch(self, backend: Backend) -> None:
        """Probe a backend, for ever."""
        wanted = self._wanted.setdefault(backend.id, asyncio.Event())
        while True:
            wanted.clear()
            is_answering = await self._probe(backend)
            if is_answering and not backend.health.healthy:
                await asyncio.sleep(EAGER_S if self._reconciler.is_haunted(backend) else RISING_S)
                continue
            # A failing backend raises suspicion all the time: it still gets this rest.
            eager_s = min(EAGER_S, self.interval_s)
            await asyncio.sleep(RISING_S if is_answering else self._jitter(0.5, 1.0) * eager_s)
            rest_s = self.interval_s * self._jitter(0.9, 1.1) if is_answering else eager_s
            try:
                async with asyncio.timeout(rest_s):
                    await wanted.wait()
            except TimeoutError:
                continue

    async def _probe(self, backend: Backend) -> bool:
        """Probe once; return whether the backend answered."""
        begun_s = self._now()
        try:
            backend.queue_remaining = await backend.client.probe()
        except UpstreamError as exc:
            self._observer.probed(backend.id, False, self._now() - begun_s)
            is_dead = isinstance(exc, ConnectionRefused)
            self._fleet.observe_failure(backend, exc, is_dead=is_dead)
            self._reconciler.failed(backend, str(exc), is_dead=is_dead)
            return False
        self._observer.probed(backend.id, True, self._now() - begun_s)
        self._fleet.note_alive(backend)
        if not backend.health.healthy:
            self._reconciler.haunt(backend)
        tried_s = self._tried_s.get(backend.id, float("-inf"))
        if self._sources.age_s(backend) > RELEARN_S and self._now() - tried_s > RETRY_LEARN_S:
            self._tried_s[backend.id] = self._now()
            await self._sources.learn(backend)
        # Before it takes new work: what it has from before must not meet the same prompt's next run there.
        try:
            await self._reconciler.check(backend)
        except (UpstreamError, StoreUnavailable) as exc:
            self._reconciler.haunt(backend)
            log.warning("the jobs on %s could not be checked: %s", backend.id, exc)
        if not backend.health.healthy and self._reconciler.is_haunted(backend):
            return True  # it comes back once it has let go of what has moved on
        self._fleet.observe_probe(backend, True)
        self.on_load()
        if backend.link is not None:
            backend.link.wake()
        return True
