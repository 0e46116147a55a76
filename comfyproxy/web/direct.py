"""/comfyproxy/backends/{name}/...: straight to one backend, its web page and its websocket included."""

from aiohttp import web

from comfyproxy.core.errors import BadRequest
from comfyproxy.web.bridge import bridge, wants_websocket
from comfyproxy.web.keys import FLEET
from comfyproxy.web.passthrough import pass_through

PREFIX = "/comfyproxy/backends"


class UnknownBackend(BadRequest):
    """There is no backend of that name."""

    status = 404


async def to_backend(request: web.Request) -> web.StreamResponse:
    """Pass a request to the backend that its path names, less the prefix; nothing in it is translated."""
    name = request.match_info["name"]
    backend = request.app[FLEET].get(name)
    if backend is None:
        raise UnknownBackend("unknown_backend", f"There is no backend called {name!r}")
    raw = request.rel_url.raw_path_qs
    target = "/" + raw[len(PREFIX) + 1 :].partition("/")[2]
    if wants_websocket(request):
        return await bridge(request, backend, target)
    return await pass_through(request, backend, target=target)


async def add_slash(request: web.Request) -> web.Response:
    """Send a browser to the folder: the page finds its parts relative to it."""
    raise web.HTTPMovedPermanently(f"{request.rel_url.raw_path}/")


routes = [
    web.get(f"{PREFIX}/{{name}}", add_slash),
    web.route("*", f"{PREFIX}/{{name}}/{{path:.*}}", to_backend),
]
