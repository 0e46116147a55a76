"""The series, read with the parser of those who scrape them."""

from dataclasses import dataclass, field, replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from comfyproxy.core.jobs import BackendId, Job, JobState
from comfyproxy.metrics import BACKEND_STATES, Metrics

A = BackendId("gpu-a")
JOB = Job(
    prompt_id="p",
    number=0.0,
    client_id="c",
    fingerprint="",
    created_s=100.0,
    backend=A,
    started_s=104.0,
    finished_s=110.0,
    state=JobState.SUCCEEDED,
)


@dataclass
class FakeSettings:
    max_concurrent: int = 2


@dataclass
class FakeLink:
    connected: bool = True


@dataclass
class FakeBackend:
    id: BackendId
    state: str = "ready"
    is_ready: bool = True
    in_flight: set[str] = field(default_factory=set)
    queue_remaining: int = 0
    settings: FakeSettings = field(default_factory=FakeSettings)
    link: FakeLink | None = None


@dataclass
class FakeBoard:
    count: int = 0
    waiting_count: int = 0


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"comfyproxy_{name}", labels)


def tell_everything(metrics: Metrics) -> None:
    metrics.submitted("accepted")
    metrics.dispatched(A, "accepted")
    metrics.finished(JOB)
    metrics.upstream_error(A, "NotDelivered")
    metrics.relayed(A)
    metrics.probed(A, True, 0.01)
    metrics.preview_dropped()
    metrics.slow_client_closed()
    metrics.requested("/history/{prompt_id}", "GET", 200, 0.1)
    metrics.watch([FakeBackend(A)], FakeBoard(), lambda: 1)


def test_prometheus_own_parser_reads_all_series(metrics: Metrics) -> None:
    tell_everything(metrics)
    families = {family.name for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())}
    assert {
        "comfyproxy_backends",
        "comfyproxy_backend_up",
        "comfyproxy_backend_in_flight",
        "comfyproxy_backend_max_in_flight",
        "comfyproxy_backend_queue_remaining",
        "comfyproxy_backend_link_up",
        "comfyproxy_build_info",
        "comfyproxy_dispatches",
        "comfyproxy_events_relayed",
        "comfyproxy_http_requests",
        "comfyproxy_http_request_seconds",
        "comfyproxy_jobs_finished",
        "comfyproxy_jobs_in_flight",
        "comfyproxy_jobs_unfinished",
        "comfyproxy_jobs_waiting",
        "comfyproxy_previews_dropped",
        "comfyproxy_probe_seconds",
        "comfyproxy_probes",
        "comfyproxy_prompts_submitted",
        "comfyproxy_queue_wait_seconds",
        "comfyproxy_run_seconds",
        "comfyproxy_slow_clients_closed",
        "comfyproxy_upstream_errors",
        "comfyproxy_websocket_clients",
    } <= families


def test_the_openmetrics_parser_reads_them_too(metrics: Metrics) -> None:
    tell_everything(metrics)
    text = openmetrics.generate_latest(metrics.registry).decode()  # type: ignore[no-untyped-call]
    assert list(parse_openmetrics(text))  # type: ignore[no-untyped-call]


def test_a_finished_job_is_counted_with_its_times(metrics: Metrics) -> None:
    metrics.finished(JOB)
    assert value(metrics, "jobs_finished_total", backend="gpu-a", outcome="succeeded") == 1
    assert value(metrics, "queue_wait_seconds_sum") == 4
    assert value(metrics, "run_seconds_sum", backend="gpu-a") == 6


def test_a_job_that_never_ran_has_no_times(metrics: Metrics) -> None:
    metrics.finished(replace(JOB, state=JobState.CANCELLED, backend=None, started_s=None))
    assert value(metrics, "jobs_finished_total", backend="", outcome="cancelled") == 1
    assert value(metrics, "queue_wait_seconds_count") == 0


def test_clocks_that_disagree_do_not_break_the_sums(metrics: Metrics) -> None:
    metrics.finished(replace(JOB, started_s=99.0, finished_s=98.0))
    assert value(metrics, "queue_wait_seconds_sum") == value(metrics, "run_seconds_sum", backend="gpu-a") == 0


def test_the_present_is_looked_up_when_it_is_asked_for(metrics: Metrics) -> None:
    link = FakeLink()
    a, b = FakeBackend(A, link=link), FakeBackend(BackendId("b"), state="unhealthy", is_ready=False)
    board, clients = FakeBoard(), [3]
    metrics.watch([a, b], board, lambda: clients[0])
    assert value(metrics, "backend_link_up", backend="gpu-a") == 1
    a.in_flight, a.queue_remaining, a.state, link.connected = {"p", "q"}, 5, "busy", False
    board.count, board.waiting_count = 9, 7
    assert {state: value(metrics, "backends", state=state) for state in BACKEND_STATES} == {
        "starting": 0,
        "ready": 0,
        "busy": 1,
        "unhealthy": 1,
        "draining": 0,
        "drained": 0,
    }
    assert value(metrics, "backend_up", backend="gpu-a") == 1
    assert value(metrics, "backend_up", backend="b") == 0
    assert value(metrics, "backend_in_flight", backend="gpu-a") == 2
    assert value(metrics, "backend_max_in_flight", backend="gpu-a") == 2
    assert value(metrics, "backend_queue_remaining", backend="gpu-a") == 5
    assert value(metrics, "backend_link_up", backend="gpu-a") == 0
    assert value(metrics, "backend_link_up", backend="b") == 0
    assert value(metrics, "jobs_unfinished") == 9
    assert value(metrics, "jobs_waiting") == 7
    assert value(metrics, "jobs_in_flight") == 2
    assert value(metrics, "websocket_clients") == 3


def test_a_method_nobody_knows_does_not_make_a_series_of_its_own(metrics: Metrics) -> None:
    metrics.requested("unmatched", "BREW", 405, 0.1)
    assert value(metrics, "http_requests_total", route="unmatched", method="other", status="405") == 1


def test_a_websocket_is_counted_but_not_timed(metrics: Metrics) -> None:
    metrics.requested("/ws", "GET", 101, None)
    assert value(metrics, "http_requests_total", route="/ws", method="GET", status="101") == 1
    assert value(metrics, "http_request_seconds_count", route="/ws") is None
