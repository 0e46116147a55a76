"""The series of `/metrics`. Labels are bounded: backend, outcome, kind, route pattern; never a prompt or a client.

Counters are told what happens; what is true at this moment is looked up when somebody asks.
"""

from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from comfyproxy import __version__
from comfyproxy.core.jobs import BackendId, Job

# Every state has its series from the start: a gauge that appears with the trouble cannot be alerted on.
BACKEND_STATES = ("starting", "ready", "busy", "unhealthy", "draining", "drained")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_WAIT_BUCKETS = (0.01, 0.1, 1, 5, 30, 120, 600, 3600)
_RUN_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_PROBE_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10)
_HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class Settings(Protocol):
    """What is configured of a backend."""

    @property
    def max_concurrent(self) -> int: ...


class Link(Protocol):
    """The websocket to a backend."""

    @property
    def connected(self) -> bool: ...


class Backend(Protocol):
    """What can be seen of a backend."""

    @property
    def id(self) -> BackendId: ...
    @property
    def state(self) -> str: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def in_flight(self) -> set[str]: ...
    @property
    def queue_remaining(self) -> int: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def link(self) -> Link | None: ...


class Board(Protocol):
    """The unfinished jobs."""

    @property
    def count(self) -> int: ...
    @property
    def waiting_count(self) -> int: ...


class Metrics:
    """Counts what happens; it is the observer of service and streams."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        Info("comfyproxy_build", "Which proxy this is.", registry=registry).info({"version": __version__})

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"comfyproxy_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"comfyproxy_{name}_seconds", text, labels, buckets=buckets, registry=registry)

        self._submitted = counter("prompts_submitted", "POST /prompt by what the client was told.", "outcome")
        self._dispatches = counter("dispatches", "Attempts to hand a job to a backend.", "backend", "outcome")
        self._finished = counter("jobs_finished", "Jobs that have ended.", "backend", "outcome")
        self._failovers = counter("failovers", "Jobs that were lost by a backend and run again elsewhere.", "backend")
        self._queue_wait = histogram("queue_wait", "From submission to the start of execution.", _WAIT_BUCKETS)
        self._run = histogram("run", "Execution of a job.", _RUN_BUCKETS, "backend")
        self._upstream_errors = counter("upstream_errors", "Requests to a backend that failed.", "backend", "kind")
        self._relayed = counter("events_relayed", "Messages and frames that came over a backend's link.", "backend")
        self._probes = counter("probes", "Health probes.", "backend", "outcome")
        self._probe = histogram("probe", "How long a health probe took.", _PROBE_BUCKETS)
        self._previews_dropped = counter("previews_dropped", "Previews that a slow client did not get.")
        self._slow_clients = counter("slow_clients_closed", "Websockets closed because their client did not read.")
        self._requests = counter("http_requests", "Requests of clients.", "route", "method", "status")
        self._request = histogram("http_request", "How long a client's request took.", _HTTP_BUCKETS, "route")

    def watch(self, fleet: Iterable[Backend], board: Board, websocket_clients: Callable[[], int]) -> None:
        """Show the fleet, the queue and the sockets as they are whenever the series are read."""
        self.registry.register(_Present(fleet, board, websocket_clients))

    # What happens to jobs and backends

    def submitted(self, outcome: str) -> None:
        self._submitted.labels(outcome).inc()

    def dispatched(self, backend: BackendId, outcome: str) -> None:
        self._dispatches.labels(backend, outcome).inc()

    def finished(self, job: Job) -> None:
        backend = job.backend or ""
        self._finished.labels(backend, job.state).inc()
        if job.started_s is not None:
            self._queue_wait.observe(max(0.0, job.started_s - job.created_s))
            if job.finished_s is not None:
                self._run.labels(backend).observe(max(0.0, job.finished_s - job.started_s))

    def failed_over(self, backend: BackendId) -> None:
        self._failovers.labels(backend).inc()

    def upstream_error(self, backend: BackendId, kind: str) -> None:
        self._upstream_errors.labels(backend, kind).inc()

    def relayed(self, backend: BackendId) -> None:
        self._relayed.labels(backend).inc()

    def probed(self, backend: BackendId, ok: bool, seconds: float) -> None:
        self._probes.labels(backend, "ok" if ok else "failed").inc()
        self._probe.observe(seconds)

    # What happens to clients

    def preview_dropped(self) -> None:
        self._previews_dropped.inc()

    def slow_client_closed(self) -> None:
        self._slow_clients.inc()

    def requested(self, route: str, method: str, status: int, seconds: float | None) -> None:
        """Count a request.

        Args:
            route: the pattern, never the path.
            seconds: None where the time means nothing, as that of a websocket.
        """
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        if seconds is not None:
            self._request.labels(route).observe(seconds)


class _Present(Collector):
    """Gauges of what is true now."""

    def __init__(self, fleet: Iterable[Backend], board: Board, websocket_clients: Callable[[], int]) -> None:
        self._fleet, self._board, self._websocket_clients = fleet, board, websocket_clients

    def collect(self) -> Iterator[GaugeMetricFamily]:
        backends = list(self._fleet)
        states = Count(backend.state for backend in backends)
        family = GaugeMetricFamily("comfyproxy_backends", "Backends by state.", labels=["state"])
        for state in dict.fromkeys((*BACKEND_STATES, *states)):
            family.add_metric([state], states[state])
        yield family
        yield _by_backend("up", "Whether the backend takes new jobs.", backends, lambda b: b.is_ready)
        yield _by_backend("in_flight", "Our jobs on the backend.", backends, lambda b: len(b.in_flight))
        yield _by_backend("max_in_flight", "How many it takes at most.", backends, lambda b: b.settings.max_concurrent)
        yield _by_backend(
            "queue_remaining", "Prompts on the backend, also those of others.", backends, lambda b: b.queue_remaining
        )
        yield _by_backend(
            "link_up",
            "Whether the websocket to the backend is open.",
            backends,
            lambda b: b.link is not None and b.link.connected,
        )
        yield _single("jobs_unfinished", "Jobs that have not ended.", self._board.count)
        yield _single("jobs_waiting", "Jobs that wait in the proxy for a backend.", self._board.waiting_count)
        in_flight = sum(len(backend.in_flight) for backend in backends)
        yield _single("jobs_in_flight", "Jobs that are on a backend.", in_flight)
        yield _single("websocket_clients", "Open websockets of clients.", self._websocket_clients())


def _by_backend(
    name: str, text: str, backends: Iterable[Backend], value: Callable[[Backend], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"comfyproxy_backend_{name}", text, labels=["backend"])
    for backend in backends:
        family.add_metric([backend.id], float(value(backend)))
    return family


def _single(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"comfyproxy_{name}", text, value=value)
