"""GET /metrics, and how requests are counted."""

import pytest
from aiohttp import web
from aiohttp.pytest_plugin import AiohttpClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from reading_support import Client

from comfyproxy.core.errors import NoBackend
from comfyproxy.metrics import Metrics
from comfyproxy.web import keys, middleware
from comfyproxy.web.metrics import metrics_middleware, routes


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
async def client(aiohttp_client: AiohttpClient, metrics: Metrics) -> Client:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=request.match_info["name"])

    async def fail(request: web.Request) -> web.Response:
        raise NoBackend("none")

    async def socket(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        await response.receive()
        return response

    app = web.Application(middlewares=[metrics_middleware(metrics)])
    app[keys.METRICS] = metrics
    middleware.install(app)
    app.add_routes([*routes, web.get("/echo/{name}", echo), web.get("/fail", fail), web.get("/ws", socket)])
    return await aiohttp_client(app)


def requests(metrics: Metrics, route: str, status: int, method: str = "GET") -> float | None:
    labels = {"route": route, "method": method, "status": str(status)}
    return metrics.registry.get_sample_value("comfyproxy_http_requests_total", labels)


async def test_requests_are_counted_by_pattern_and_by_what_the_client_got(client: Client, metrics: Metrics) -> None:
    for path in ("/echo/a", "/echo/b", "/fail", "/nowhere/1", "/nowhere/2"):
        async with client.get(path) as response:
            await response.read()
    async with client.post("/echo/a") as response:
        await response.read()
    assert requests(metrics, "/echo/{name}", 200) == 2
    assert requests(metrics, "/fail", 503) == 1
    assert requests(metrics, "unmatched", 404) == 2
    assert requests(metrics, "unmatched", 405, "POST") == 1
    count = metrics.registry.get_sample_value("comfyproxy_http_request_seconds_count", {"route": "/echo/{name}"})
    assert count == 2


async def test_a_websocket_is_not_timed(client: Client, metrics: Metrics) -> None:
    async with client.ws_connect("/ws") as socket:
        await socket.close()
    assert requests(metrics, "/ws", 101) == 1
    assert metrics.registry.get_sample_value("comfyproxy_http_request_seconds_count", {"route": "/ws"}) is None


async def test_the_series_are_given_in_the_format_that_is_asked_for(client: Client) -> None:
    async with client.get("/metrics") as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        names = {family.name for family in text_string_to_metric_families(await response.text())}
    assert "comfyproxy_build_info" in names
    async with client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}) as response:
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


async def test_metrics_answer_head(client: Client) -> None:
    async with client.head("/metrics") as response:
        assert response.status == 200
