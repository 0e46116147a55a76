"""The whole surface: every route of ComfyUI with what the proxy does about it, and the proxy's own.

`docs/surface.md` shows the same table; a test compares the two. What is not in it (custom nodes' routes, the files of
the web page) is the home backend's.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from aiohttp import web

from comfyproxy.web import (
    admin,
    catalog,
    control,
    direct,
    history,
    jobs,
    logs,
    metrics,
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


class How(StrEnum):
    """What the proxy does with a request."""

    SCHEDULED = "sent to the backend that is chosen for it"
    STORE = "answered from the store"
    RELAYED = "answered by the proxy with the events of all backends"
    MERGED = "merged over the backends"
    ALL = "sent to all backends"
    OWNER = "sent to the backend that has it"
    HOME = "sent to the home backend"
    OWN = "the proxy's own"


class Row(NamedTuple):
    """Routes of one group that are treated alike."""

    group: str
    how: How
    routes: Sequence[web.RouteDef]


def _home(*routes: str, only_api: bool = False, only_bare: bool = False) -> list[web.RouteDef]:
    """Return the routes that the home backend serves; each has its name in the metrics by standing here."""
    found: list[web.RouteDef] = []
    for route in routes:
        method, path = route.split(" ")
        if only_api or only_bare:
            found.append(web.route(method, path, home_handler))
        else:
            found += both(method, path, home_handler)
    return found


SURFACE: Sequence[Row] = (
    Row("prompts", How.SCHEDULED, prompt.routes),
    Row("prompts", How.STORE, [*queue.routes, *history.routes]),
    Row("prompts", How.OWNER, control.queue_routes),
    Row("prompts", How.ALL, control.free_routes),
    Row("jobs", How.STORE, jobs.list_routes),
    Row("jobs", How.OWNER, jobs.cancel_routes),
    Row("live", How.RELAYED, both("GET", "/ws", websocket_handler)),
    Row("files", How.OWNER, both("GET", "/view", view)),
    Row(
        "files",
        How.ALL,
        [*both("POST", "/upload/image", upload_image), *both("POST", "/upload/mask", upload_mask)],
    ),
    Row("files", How.OWNER, catalog.owner_routes),
    Row("what exists", How.MERGED, catalog.merged_routes),
    Row(
        "what exists",
        How.HOME,
        _home(
            "GET /extensions",
            "GET /global_subgraphs",
            "GET /global_subgraphs/{id}",
            "GET /node_replacements",
            "GET /workflow_templates",
            "GET /i18n",
        ),
    ),
    Row("user state", How.ALL, user_state.routes),
    Row(
        "user state",
        How.HOME,
        _home(
            "GET /users",
            "GET /userdata",
            "GET /userdata/{file}",
            "GET /v2/userdata",
            "GET /settings",
            "GET /settings/{id}",
        ),
    ),
    Row(
        "assets",
        How.HOME,
        _home(
            "GET /api/assets",
            "POST /api/assets",
            "POST /api/assets/from-hash",
            "POST /api/assets/prune",
            "POST /api/assets/seed",
            "POST /api/assets/seed/cancel",
            "GET /api/assets/seed/status",
            "GET /api/assets/tags/refine",
            "GET /api/assets/{id}",
            "PUT /api/assets/{id}",
            "DELETE /api/assets/{id}",
            "GET /api/assets/{id}/content",
            "POST /api/assets/{id}/tags",
            "DELETE /api/assets/{id}/tags",
            "GET /api/tags",
            only_api=True,
        ),
    ),
    Row("internal", How.RELAYED, logs.routes),
    Row(
        "internal",
        How.HOME,
        _home(
            "GET /internal/logs",
            "GET /internal/logs/raw",
            "GET /internal/folder_paths",
            "GET /internal/files/{directory_type}",
            only_bare=True,
        ),
    ),
    Row(
        "page",
        How.HOME,
        [
            *_home("GET /"),
            *_home("GET /docs/{path:.*}", "GET /templates/{path:.*}", "GET /extensions/{path:.*}", only_bare=True),
        ],
    ),
    Row("operators", How.OWN, [*status.routes, *metrics.routes, *admin.routes]),
    Row("operators", How.OWNER, direct.routes),
)

ROUTES: Sequence[web.RouteDef] = (
    *(route for row in SURFACE for route in row.routes),
    web.route("*", "/{path:.*}", home_handler),
)
