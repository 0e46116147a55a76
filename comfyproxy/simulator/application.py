"""Puts the routes of a simulated server together, bare and under /api."""

import asyncio
from pathlib import Path

from aiohttp import web

from .middleware import cache_headers, disturb, same_origin_only
from .process import Process
from .routes_files import FileRoutes
from .routes_models import ModelRoutes
from .routes_page import PageRoutes
from .routes_prompt import PromptRoutes
from .routes_user import UserRoutes


def build(process: Process, web_root: Path, working: set[asyncio.Task[None]]) -> web.Application:
    """Return the application of one life of a server.

    Args:
        web_root: the folder of the web page.
        working: is kept filled with the tasks that handle a request right now.
    """
    app = web.Application(
        client_max_size=round(process.options.max_upload_mb * 1024 * 1024),
        middlewares=[
            disturb(process.faults, lambda *request: process.journal.requests.append(request), working),
            cache_headers(process.profile),
            same_origin_only(process.profile),
        ],
    )
    prompts, page = PromptRoutes(process), PageRoutes(process, web_root)
    twins = [
        *prompts.table(),
        *FileRoutes(process).table(),
        *ModelRoutes(process).table(),
        *UserRoutes(process).table(),
        *page.table(),
    ]
    app.add_routes(prompts.api_table())
    app.add_routes(page.bare_table())
    app.add_routes([web.route(route.method, f"/api{route.path}", route.handler, **route.kwargs) for route in twins])
    app.add_routes(twins)
    app.add_routes([web.static("/", web_root)])
    return app
