"""The web application: the routes of `surface.py` inside the middlewares."""

import jinja2
from aiohttp import web

from comfyproxy.metrics import Metrics
from comfyproxy.web import metrics, middleware, status
from comfyproxy.web.surface import ROUTES


def build(*, templates: jinja2.BaseLoader, counted_in: Metrics, cors_origin: str | None) -> web.Application:
    """Return the application; whoever runs it fills in what `keys.py` names.

    Args:
        counted_in: where requests are counted.
        cors_origin: the origin whose pages may use the proxy; `*` for all, None for its own only.
    """
    # Bodies are bounded where they are read; what passes through has no bound of ours.
    app = web.Application(client_max_size=0)
    app.middlewares.append(metrics.metrics_middleware(counted_in))
    middleware.install(app, cors_origin=cors_origin)
    status.install(app, templates)
    app.add_routes(ROUTES)
    return app
