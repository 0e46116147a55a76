"""Writes of user data, settings and users: to every backend, answered as the home backend does."""

from collections.abc import AsyncIterator

from aiohttp import web

from comfyproxy.core.headers import end_to_end
from comfyproxy.core.options import BACKEND_HEADER
from comfyproxy.service.mirroring import Write
from comfyproxy.web.keys import FILES, FLEET, MIRROR
from comfyproxy.web.passthrough import home_handler, target_of
from comfyproxy.web.twins import both


async def write_user_state(request: web.Request) -> web.StreamResponse:
    """Change what a user has stored. The body rests on the disk until every backend has it."""
    if len(request.app[FLEET]) == 1:
        return await home_handler(request)
    body = await request.app[FILES].receive(_chunks(request))
    try:
        answer = await request.app[MIRROR].write(Write(request.method, target_of(request), request.headers, body))
    finally:
        body.release()
    headers = end_to_end(answer.headers)
    headers.popall("Content-Length", None)  # aiohttp counts itself
    headers[BACKEND_HEADER] = answer.backend
    return web.Response(status=answer.status, headers=headers, body=answer.body)


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    async for chunk in request.content.iter_any():
        yield chunk


routes = [
    *both("POST", "/users", write_user_state),
    *both("POST", "/settings", write_user_state),
    *both("POST", "/settings/{id}", write_user_state),
    *both("POST", "/userdata/{file}", write_user_state),
    *both("DELETE", "/userdata/{file}", write_user_state),
    *both("POST", "/userdata/{file}/move/{dest}", write_user_state),
]
