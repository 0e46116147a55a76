"""Every route of the proxy in one table; what is not in it belongs to the home backend."""

import jinja2
from aiohttp import web

from comfyproxy.metrics import Metrics
from comfyproxy.web import (
    admin,
    catalog,
    control,
    direct,
    history,
    jobs,
    logs,
    metrics,
    middleware,
    prompt,
    queue,
    status,
    user_state,
)
from comfyproxy.web.passthrough import home_handler
from comfyproxy.web.twins import both
from comfyproxy.web.uploads import upload_image, upload_mask
from comfyproxy.web.view import view
from comfyproxy.web.ws import websocket_handler

ROUTES = [
    *prompt.routes,
    *queue.routes,
    *control.routes,
    *history.routes,
    *jobs.routes,
    *both("GET", "/ws", websocket_handler),
    *both("GET", "/view", view),
    *both("POST", "/upload/image", upload_image),
    *both("POST", "/upload/mask", upload_mask),
    *catalog.routes,
    *user_state.routes,
    *logs.routes,
    *direct.routes,
    *admin.routes,
    *status.routes,
    *metrics.routes,
    web.route("*", "/{path:.*}", home_handler),
]


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
