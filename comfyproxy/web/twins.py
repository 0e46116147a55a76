"""ComfyUI has every route twice, bare and under `/api`."""

from aiohttp import web
from aiohttp.typedefs import Handler


def both(method: str, path: str, handler: Handler) -> list[web.RouteDef]:
    """Return the two routes; those for GET answer HEAD, too."""
    return [web.route(method, prefix + path, handler) for prefix in ("", "/api")]
