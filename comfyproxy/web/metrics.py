"""GET /metrics, and the middleware that counts requests."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client.exposition import choose_encoder

from comfyproxy.metrics import Metrics
from comfyproxy.web.connection import CLIENT_CLOSED_REQUEST
from comfyproxy.web.keys import METRICS

UNMATCHED = "unmatched"


async def get_metrics(request: web.Request) -> web.Response:
    """GET /metrics: in the format that the scraper asks for."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(request.app[METRICS].registry), headers={"Content-Type": content_type})


def metrics_middleware(metrics: Metrics, *, clock: Callable[[], float] = time.perf_counter) -> Middleware:
    """Count every request by its route; it belongs outside of all other middlewares, to see what the client got."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        start_s = clock()
        status = 500
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as exc:
            status = exc.status
            raise
        except asyncio.CancelledError:
            status = CLIENT_CLOSED_REQUEST
            raise
        finally:
            seconds = None if status == 101 else clock() - start_s  # how long a websocket lived says nothing
            metrics.requested(route_of(request), request.method, status, seconds)

    return count


def route_of(request: web.Request) -> str:
    """Return the pattern that a request's path matched."""
    resource = request.match_info.route.resource
    return UNMATCHED if resource is None else resource.canonical


routes = [web.get("/metrics", get_metrics)]
