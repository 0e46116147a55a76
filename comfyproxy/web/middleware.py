"""Around every handler: the check of the origin, and errors in the shape in which ComfyUI's clients expect them."""

import logging
from collections.abc import Container

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from comfyproxy.core.errors import RequestError, UpstreamError, UpstreamFailed
from comfyproxy.core.origin import LOOPBACK_NAMES, is_foreign
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.web.connection import CLIENT_CLOSED_REQUEST, ClientGone, cut, is_gone

log = logging.getLogger(__name__)

STORE_RETRY_AFTER_S = 5
# What aiohttp itself answers, and so ComfyUI.
SERVER_ERROR = "500 Internal Server Error\n\nServer got itself in trouble"


class StoreFailed(RequestError):
    """The proxy's own store cannot be read or written."""

    status = 503
    kind = "store_unavailable"
    retry_after_s = STORE_RETRY_AFTER_S


def install(
    app: web.Application, *, cors_origin: str | None = None, loopback_names: Container[str] = LOOPBACK_NAMES
) -> None:
    """Put the middlewares around an application.

    Args:
        cors_origin: other web pages (`*` for all, or one origin) may use the proxy, as with ComfyUI's
            `--enable-cors-header`; the check of the origin is off then, as it is there.
    """
    if cors_origin is None:
        app.middlewares.append(origin_middleware(loopback_names))
    else:
        app.middlewares.append(preflight_middleware)
        app.on_response_prepare.append(_CorsHeaders(cors_origin))
    app.middlewares.append(error_middleware)


def origin_middleware(loopback_names: Container[str] = LOOPBACK_NAMES) -> Middleware:
    """Refuse what a web page of another origin sends (403, empty), and answer OPTIONS, as ComfyUI 0.25.0 does."""

    @web.middleware
    async def check_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers
        host, origin = headers.get("Host"), headers.get("Origin")
        if is_foreign(host, origin, headers.get("Sec-Fetch-Site"), loopback_names=loopback_names):
            log.warning("refused a request of a foreign origin: host %r, origin %r", host, origin)
            return web.Response(status=403)
        return await preflight_middleware(request, handler)

    return check_origin


@web.middleware
async def preflight_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer OPTIONS without asking anybody (200, empty), as ComfyUI does on every path."""
    return web.Response() if request.method == "OPTIONS" else await handler(request)


class _CorsHeaders:
    """Adds the headers when an answer begins: those that are streamed have long gone when a middleware sees them."""

    def __init__(self, allowed_origin: str) -> None:
        self._headers = {
            "Access-Control-Allow-Origin": allowed_origin,
            "Access-Control-Allow-Methods": "POST, GET, DELETE, PUT, OPTIONS, PATCH",
            "Access-Control-Allow-Headers": "Content-Type, Authorization",
            "Access-Control-Allow-Credentials": "true",
        }

    async def __call__(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        response.headers.update(self._headers)


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn our errors into answers; what nobody expected is logged and becomes a 500."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception as exc:
        if request.writer.output_size:
            # Half an answer is out: only a broken connection can still say that it is not whole.
            log.exception("%s %s failed after its answer had begun", request.method, request.path)
            cut(request)
            return web.Response()
        return _answer(request, exc)


def _answer(request: web.Request, exc: Exception) -> web.Response:
    if isinstance(exc, ClientGone) or is_gone(request):
        log.debug("%s %s: the client has gone: %r", request.method, request.path, exc)
        return web.Response(status=CLIENT_CLOSED_REQUEST)
    if isinstance(exc, StoreUnavailable):
        log.error("%s %s: the store failed: %s", request.method, request.path, exc)
        exc = StoreFailed("The proxy's store is unavailable", details=str(exc))
    elif isinstance(exc, UpstreamError):
        log.warning("%s %s: %s", request.method, request.path, exc)
        exc = UpstreamFailed("A ComfyUI backend failed to answer", details=str(exc))
    if isinstance(exc, RequestError):
        headers = {} if exc.retry_after_s is None else {"Retry-After": str(exc.retry_after_s)}
        return web.json_response(exc.body(), status=exc.status, headers=headers)
    log.error("%s %s failed", request.method, request.path, exc_info=exc)
    return web.Response(status=500, text=SERVER_ERROR)
