"""PATCH /internal/logs/subscribe: the terminal of the web page."""

from aiohttp import web

from comfyproxy.core.errors import BadRequest
from comfyproxy.web.bodies import read_object
from comfyproxy.web.keys import LOGS


async def subscribe_logs(request: web.Request) -> web.Response:
    """Send the home backend's log lines to a client, or no longer (ComfyUI 0.25.0, `internal_routes.py`)."""
    wanted = await read_object(request)
    client_id, enabled = wanted.get("clientId"), wanted.get("enabled")
    if not isinstance(client_id, str) or "enabled" not in wanted:
        raise BadRequest("invalid_request", "`clientId` and `enabled` are needed")
    if enabled:
        await request.app[LOGS].subscribe(client_id)
    else:
        await request.app[LOGS].unsubscribe(client_id)
    return web.Response()


routes = [web.patch("/internal/logs/subscribe", subscribe_logs)]
