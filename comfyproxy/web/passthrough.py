"""Pass a request on to a backend and its answer back, both as streams and as they came."""

import logging
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from comfyproxy.core.errors import BackendUnavailable, NotDelivered, UpstreamError, UpstreamFailed
from comfyproxy.core.headers import end_to_end
from comfyproxy.core.options import BACKEND_HEADER
from comfyproxy.service.file_ports import client_of
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.web.bridge import bridge, wants_websocket
from comfyproxy.web.connection import CLIENT_CLOSED_REQUEST, ClientGone, cut, is_gone, while_connected
from comfyproxy.web.keys import FLEET

log = logging.getLogger(__name__)


async def home_handler(request: web.Request) -> web.StreamResponse:
    """Whatever cannot be merged: the home backend answers.

    A backend that turns out to be dead is ejected by the attempt, and the next home gets the request as long as
    nothing of it has been read.
    """
    fleet = request.app[FLEET]
    if wants_websocket(request):
        return await bridge(request, fleet.home(), target_of(request))
    body = Body(request)
    for _ in fleet:
        backend = fleet.home()
        try:
            return await _attempt(request, backend, fleet, body, target_of(request))
        except BackendUnavailable:
            if body.begun or (backend.health.healthy and fleet.home() is backend):
                raise
    fleet.home()  # says that, and why, there is none
    raise BackendUnavailable("No backend could be reached")


async def pass_through(request: web.Request, backend: Backend, *, target: str | None = None) -> web.StreamResponse:
    """Let one backend answer.

    Args:
        target: path and query as they go out, encoded; the request's own by default.

    Raises BackendUnavailable if the backend has read nothing, UpstreamFailed if it may have, and both only before the
    answer has begun: later the connection is cut.
    """
    return await _attempt(request, backend, request.app[FLEET], Body(request), target or target_of(request))


async def relay(request: web.Request, backend: Backend, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Send a backend's answer to the client, chunk by chunk, at the speed of the slower one.

    Raises ClientGone.
    """
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=end_to_end(answer.headers))
    response.headers[BACKEND_HEADER] = backend.id
    try:
        await response.prepare(request)
    except ConnectionError:
        raise ClientGone from None
    while True:
        try:
            chunk = await answer.content.readany()
        except (aiohttp.ClientError, OSError) as exc:
            log.warning("%s %s: the answer of %s broke off: %r", request.method, request.path, backend.id, exc)
            cut(request)
            return response
        try:
            if not chunk:
                await response.write_eof()
                return response
            await response.write(chunk)
        except ConnectionError:
            raise ClientGone from None


def target_of(request: web.Request) -> str:
    """Return path and query as the client encoded them: `/userdata/workflows%2Fa.json` is one segment."""
    return request.rel_url.raw_path_qs


def with_query(request: web.Request, query: str) -> str:
    """Return the request's path with another encoded query."""
    path = request.rel_url.raw_path
    return f"{path}?{query}" if query else path


class Body:
    """A request's body on its way to a backend; remembers whether it was touched, and whose fault an end was."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.begun = False
        self.is_broken = False  # the client failed to send it whole

    def stream(self) -> AsyncIterator[bytes] | None:
        """Return the body as it arrives; None where there is none, lest it go out as an empty chunked one."""
        return self._chunks() if self._request.body_exists else None

    async def _chunks(self) -> AsyncIterator[bytes]:
        self.begun = True
        try:
            async for chunk in self._request.content.iter_any():
                yield chunk
        except Exception:
            self.is_broken = True
            raise


async def _attempt(request: web.Request, backend: Backend, fleet: Fleet, body: Body, target: str) -> web.StreamResponse:
    try:
        async with (
            while_connected(request),
            client_of(backend).request(request.method, target, headers=request.headers, data=body.stream()) as answer,
        ):
            return await relay(request, backend, answer)
    except ClientGone:
        return web.Response(status=CLIENT_CLOSED_REQUEST)
    except UpstreamError as exc:
        if body.is_broken or is_gone(request):
            return web.Response(status=CLIENT_CLOSED_REQUEST if is_gone(request) else 400)
        fleet.note_failure(backend, exc)
        if isinstance(exc, NotDelivered):
            raise BackendUnavailable(f"Backend {backend.id} cannot be reached", details=str(exc)) from exc
        raise UpstreamFailed(f"Backend {backend.id} failed to answer", details=str(exc)) from exc
