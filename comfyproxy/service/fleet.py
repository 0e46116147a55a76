"""The backends as they are now: health, load, what they can run, and which of them is home."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comfyproxy.core import health as health_rules
from comfyproxy.core.catalog import Catalog
from comfyproxy.core.combos import Combos
from comfyproxy.core.errors import ConnectionRefused, NoBackend, UpstreamError
from comfyproxy.core.health import Health
from comfyproxy.core.jobs import BackendId
from comfyproxy.core.offers import Offer

if TYPE_CHECKING:
    from comfyproxy.service.ports import BackendApi, Link, Observer
    from comfyproxy.settings import HealthCheck, NodeSettings

log = logging.getLogger(__name__)

# Servers from this version on put `create_time` into a prompt's extra_data (0.3.64 does not, 0.25.0 does).
_CREATE_TIME_SINCE = (0, 4)
# And from this one on they have the cancel routes of the jobs API.
_CANCEL_ROUTES_SINCE = (0, 26)
# The oldest version seen to honour the id of POST /interrupt.
_INTERRUPTS_BY_ID_SINCE = (0, 3, 64)
# What the scheduler must know at once; the second ones change who can run what.
_DECISIVE = frozenset({"health", "is_drained", "is_leaving", "epoch", "queue_remaining", "catalog", "settings"})
_ABILITIES = frozenset({"catalog", "settings"})


@dataclass(slots=True, eq=False)
class Backend:
    """One ComfyUI server: what is configured of it, and what we have seen."""

    id: BackendId
    settings: "NodeSettings"
    client: "BackendApi"
    link: "Link | None" = None
    health: Health = field(default_factory=Health)
    is_drained: bool = False  # an operator wants it so
    is_leaving: bool = False  # it is not configured any more, and finishes what it has
    epoch: int = 0  # how often it has come up: its temp folder, queue and history may be empty since
    in_flight: set[str] = field(default_factory=set)  # prompt ids of our jobs there
    visitors: set[str] = field(default_factory=set)  # prompt ids that are there only to be validated
    queue_remaining: int = 0  # the backend's own count, ours and others'
    last_alive_s: float | None = None  # on the monotonic clock
    last_error: str | None = None
    mints_ids: bool | None = None  # whether it calls prompts by ids of its own; None until it took one
    version: str | None = None
    vram: int = 0  # bytes, of its largest GPU; 0 where it is not known
    features: dict[str, Any] = field(default_factory=dict)
    catalog: Catalog | None = None
    takes_other_jobs: bool = True  # what it can run has changed, and the scheduler has not been told
    _offer: "tuple[Offer, NodeSettings] | None" = field(default=None, init=False, repr=False)
    on_touched: "Callable[[Backend], None] | None" = field(default=None, repr=False)

    def __setattr__(self, name: str, value: Any) -> None:
        """Let whoever watches know of changes that decide which jobs it gets."""
        object.__setattr__(self, name, value)
        if name in _DECISIVE:
            if name in _ABILITIES:
                object.__setattr__(self, "takes_other_jobs", True)
            self.touch()

    def touch(self) -> None:
        """Say that something has changed that decides which jobs it gets."""
        watcher = getattr(self, "on_touched", None)  # not yet there while it is being built
        if watcher is not None:
            watcher(self)

    @property
    def offer(self) -> Offer:
        """What it has for jobs: the same object until it says or is configured to have something else."""
        if self._offer is None or self._offer[0].catalog is not self.catalog or self._offer[1] is not self.settings:
            self._offer = Offer(self.id, frozenset(self.settings.capabilities), self.catalog), self.settings
        return self._offer[0]

    @property
    def is_ready(self) -> bool:
        """Healthy, and neither drained nor about to leave."""
        return self.health.healthy and not self.is_drained and not self.is_leaving

    @property
    def is_available(self) -> bool:
        """Whether it may take one more.

        Strangers' prompts count against the bound, but never keep our last one out: else a server that others use
        all the time would never run a job of ours.
        """
        load = len(self.in_flight) + self.foreign
        return load < self.settings.max_concurrent or not self.in_flight

    @property
    def state(self) -> str:
        """One word for the operator."""
        if self.is_drained or self.is_leaving:
            return "draining" if self.in_flight else "drained"
        if not self.health.healthy:
            return "unhealthy" if self.epoch or self.last_error else "starting"
        return "ready" if self.is_available else "busy"

    @property
    def foreign(self) -> int:
        """Prompts that others put there past the proxy."""
        return max(0, self.queue_remaining - len(self.in_flight) - len(self.visitors))

    @property
    def shows_create_time(self) -> bool:
        """Whether this server's queue and history carry `create_time`."""
        return self._is_since(_CREATE_TIME_SINCE)

    @property
    def has_cancel_routes(self) -> bool:
        """Whether this server has POST /api/jobs/{id}/cancel."""
        return self._is_since(_CANCEL_ROUTES_SINCE)

    @property
    def interrupts_by_id(self) -> bool:
        """Whether an interrupt that names a prompt leaves all others alone."""
        return self._is_since(_INTERRUPTS_BY_ID_SINCE) and not self.mints_ids

    def _is_since(self, wanted: tuple[int, ...]) -> bool:
        if self.version is None:
            return False
        parts = []
        for part in self.version.lstrip("v").split(".")[:3]:
            digits = part[: len(part) - len(part.lstrip("0123456789"))]
            parts.append(int(digits or 0))
        return tuple(parts) >= wanted

    def declares(self, capabilities: frozenset[str]) -> bool:
        """Whether the operator says that it is good for all of them; who says nothing means everything."""
        return not self.settings.capabilities or capabilities <= set(self.settings.capabilities)


class Fleet:
    """All configured backends.

    Observations (probes and traffic) come in, `on_restored` and `on_ejected` go out; both are called synchronously.
    """

    def __init__(
        self,
        backends: list[Backend],
        *,
        health_check: "HealthCheck",
        prefix_outputs: bool,
        now: Callable[[], float],
        observer: "Observer",
    ) -> None:
        self._backends = {backend.id: backend for backend in backends}
        self._touched = dict.fromkeys(backends)
        for backend in backends:
            backend.on_touched = self._note_touched
        self.health_check = health_check
        self._now = now
        self._since_s = now()
        self._observer = observer
        self._home: Backend | None = None
        self._prefix_outputs = prefix_outputs
        self.prefixes = False
        self.names: frozenset[str] = frozenset()
        self._renamed()
        self.combos = Combos()
        for backend in backends:
            self.note_catalog(backend, backend.catalog)
        self.on_restored: Callable[[Backend], None] = lambda backend: None
        self.on_ejected: Callable[[Backend], None] = lambda backend: None
        self.on_suspicion: Callable[[Backend], None] = lambda backend: None
        self.on_left: Callable[[Backend], None] = lambda backend: None

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())

    def __len__(self) -> int:
        return len(self._backends)

    def get(self, backend_id: BackendId | str | None) -> Backend | None:
        """Return a backend by its name."""
        return self._backends.get(BackendId(backend_id)) if backend_id is not None else None

    def add(self, backend: Backend) -> None:
        """Take in a backend that has been configured just now."""
        backend.last_alive_s = self._now()  # that is since when its silence counts
        self._backends[backend.id] = backend
        backend.on_touched = self._note_touched
        backend.touch()
        self._renamed()

    def remove(self, backend: Backend) -> None:
        """Let a backend go; nothing of ours is there any more."""
        self.note_catalog(backend, None)
        del self._backends[backend.id]
        backend.on_touched = None
        self._touched.pop(backend, None)
        if self._home is backend:
            self._home = None
        self._renamed()
        self.on_left(backend)

    def arrange(self, names: list[BackendId]) -> None:
        """Put the backends in this order, and those that are not named behind them."""
        there = self._backends
        self._backends = {name: there[name] for name in dict.fromkeys((*names, *there)) if name in there}

    def _renamed(self) -> None:
        self.names = frozenset(str(name) for name in self._backends)
        # Clients hold names with a prefix until the next start, also where only one backend is left.
        self.prefixes = self.prefixes or (self._prefix_outputs and len(self._backends) > 1)

    def take_touched(self) -> list[Backend]:
        """Return the backends of which something decisive has changed since the last time, in order."""
        touched = list(self._touched)
        self._touched.clear()
        return touched

    def _note_touched(self, backend: Backend) -> None:
        self._touched[backend] = None

    def ready(self) -> list[Backend]:
        """Return the backends that take new work, in configured order."""
        return [backend for backend in self if backend.is_ready]

    def home(self) -> Backend:
        """Return the backend that serves what cannot be merged: the same one for as long as it is healthy.

        Raises NoBackend where none is.
        """
        if self._home is None or not self._home.health.healthy:
            home = next((backend for backend in self if backend.health.healthy), None)
            if home is None:
                raise NoBackend("No ComfyUI backend is available", details=self.describe_absence())
            if home is not self._home:
                log.info("home backend is now %s", home.id)
            self._home = home
        return self._home

    def describe_absence(self) -> str:
        """Say of every backend why it is not ready, for people."""
        return "; ".join(f"{b.id}: {b.last_error or b.state}" for b in self if not b.is_ready)

    def note_catalog(self, backend: Backend, catalog: Catalog | None) -> None:
        """Record what a backend can run; None where that is not known any more, or where it is gone."""
        if self._backends.get(backend.id) is not backend:
            return  # it has left before it answered
        self.combos.note(backend.id, catalog)
        if backend.catalog is not catalog:  # else whoever asks who can run what would have to find out anew
            backend.catalog = catalog

    def note_alive(self, backend: Backend) -> None:
        """Record a sign of life: an answer, or a message on the link."""
        backend.last_alive_s = self._now()

    def note_failure(self, backend: Backend, error: Exception) -> None:
        """Fold in what traffic shows: a refused connection is proof of death, anything else only asks for a probe."""
        self._observer.upstream_error(backend.id, type(error).__name__)
        backend.last_error = str(error) or type(error).__name__
        if isinstance(error, ConnectionRefused):
            self._set_health(backend, health_rules.eject(backend.health))
        if isinstance(error, UpstreamError):
            self.on_suspicion(backend)

    def eject(self, backend: Backend, reason: str) -> None:
        """Take a backend out although it answers."""
        backend.last_error = reason
        self._set_health(backend, health_rules.eject(backend.health))

    def observe_failure(self, backend: Backend, error: Exception, *, is_dead: bool) -> None:
        """Fold in a probe that failed.

        Args:
            is_dead: nothing listens there, so no further probe is needed to know.
        """
        self._observer.upstream_error(backend.id, type(error).__name__)
        backend.last_error = str(error) or type(error).__name__
        if is_dead:
            self._set_health(backend, health_rules.eject(backend.health))
        else:
            self.observe_probe(backend, False)

    def observe_probe(self, backend: Backend, ok: bool) -> None:
        """Fold in the outcome of one probe."""
        if ok:
            self.note_alive(backend)
        check = self.health_check
        self._set_health(backend, health_rules.observe(backend.health, ok, rise=check.rise, fall=check.fall))

    def silent_for_s(self, backend: Backend) -> float:
        """Return the seconds since the last sign of life, or since we began to listen for one."""
        return self._now() - (self._since_s if backend.last_alive_s is None else backend.last_alive_s)

    def _set_health(self, backend: Backend, health: Health) -> None:
        was, backend.health = backend.health.healthy, health
        if health.healthy and not was:
            backend.epoch += 1
            backend.last_error = None
            log.info("backend %s is up", backend.id)
            self.on_restored(backend)
        elif was and not health.healthy:
            log.warning("backend %s is out: %s", backend.id, backend.last_error)
            self.on_ejected(backend)
