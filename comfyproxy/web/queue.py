"""GET /queue and GET /prompt: what runs and waits in the whole fleet."""

from aiohttp import web

from comfyproxy.web.answers import send_parts
from comfyproxy.web.keys import QUERIES
from comfyproxy.web.twins import both


async def get_queue(request: web.Request) -> web.StreamResponse:
    """GET /queue: every running and waiting job with its graph."""
    return await send_parts(request, request.app[QUERIES].queue())


async def get_prompt(request: web.Request) -> web.Response:
    """GET /prompt: how many jobs are unfinished."""
    return web.json_response({"exec_info": {"queue_remaining": request.app[QUERIES].queue_remaining()}})


routes = [*both("GET", "/queue", get_queue), *both("GET", "/prompt", get_prompt)]
