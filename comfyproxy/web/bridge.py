"""A websocket straight to one backend: what either side says, the other hears."""

import asyncio
import logging

import aiohttp
from aiohttp import WSMsgType, hdrs, web

from comfyproxy.core.errors import UpgradeRefused
from comfyproxy.service.file_ports import client_of
from comfyproxy.service.fleet import Backend
from comfyproxy.web.keys import FLEET

log = logging.getLogger(__name__)

_GOING_AWAY = 1001


def wants_websocket(request: web.Request) -> bool:
    """Whether a request asks to become a websocket."""
    return request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


async def bridge(request: web.Request, backend: Backend, target: str) -> web.StreamResponse:
    """Connect a client with a backend until one of them goes.

    Args:
        target: path and query at the backend, encoded.

    Raises UpstreamError.
    """
    offered = [name.strip() for name in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",") if name.strip()]
    try:
        async with client_of(backend).websocket(target, headers=request.headers, protocols=offered) as theirs:
            ours = web.WebSocketResponse(protocols=(theirs.protocol,) if theirs.protocol else (), max_msg_size=0)
            await ours.prepare(request)
            async with asyncio.TaskGroup() as group:
                up = group.create_task(_copy(ours, theirs), name=f"bridge to {backend.id}")
                down = group.create_task(_copy(theirs, ours), name=f"bridge from {backend.id}")
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                up.cancel()
                down.cancel()
            await theirs.close(code=_code(ours.close_code))
            await ours.close(code=_code(theirs.close_code))
            return ours
    except UpgradeRefused as exc:
        request.app[FLEET].note_alive(backend)
        log.info("%s: %s", request.path, exc)
        return web.Response(status=exc.status)


async def _copy(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    target: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    try:
        async for message in source:
            if message.type is WSMsgType.TEXT:
                await target.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await target.send_bytes(message.data)
    except (ConnectionError, aiohttp.ClientError):
        return  # one side has gone, which ends both


def _code(code: int | None) -> int:
    """Return the code to close the other side with; some codes only say that there was none."""
    return code if code is not None and code not in (1005, 1006, 1015) else _GOING_AWAY
