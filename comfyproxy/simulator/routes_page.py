"""Routes of the web page and of what only the page asks for; also those of parts that a simulated server lacks.

Source: ComfyUI 0.25.0 and 0.3.64, `server.py`, `api_server/routes/internal/`, `app/custom_node_manager.py`,
`app/subgraph_manager.py`, `app/assets/api/routes.py`.
"""

import os
from pathlib import Path

from aiohttp import web

from .process import Process

_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
# What the page shows of the workflow templates, a package of its own that a simulated server lacks.
_TEMPLATE_LISTS = {"index.json": b"[]", "index_logo.json": b"{}", "fuse_options.json": b"{}"}
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body><h1>{title}</h1>
<p>This server answers as ComfyUI {version} does, and computes nothing.</p>
<p><a href="queue">queue</a> <a href="history">history</a> <a href="object_info">object_info</a>
<a href="system_stats">system_stats</a></p></body></html>
"""


class PageRoutes:
    """Handlers of one process."""

    def __init__(self, process: Process, web_root: Path) -> None:
        self._process, self._web_root = process, web_root

    def table(self) -> list[web.RouteDef]:
        """Return the routes that exist bare and under /api."""
        routes = [
            web.get("/", self.index),
            web.get("/extensions", self.extensions),
            web.get("/workflow_templates", self.nothing),
            web.get("/i18n", self.nothing),
        ]
        if self._process.profile.has_subgraphs:
            routes += [
                web.get("/global_subgraphs", self.nothing),
                web.get("/global_subgraphs/{id}", self.no_subgraph),
                web.get("/node_replacements", self.nothing),
            ]
        return routes

    def bare_table(self) -> list[web.RouteDef]:
        """Return the routes that exist as they are, with no twin under /api."""
        routes = [
            web.get("/internal/logs", self.logs),
            web.get("/internal/logs/raw", self.raw_logs),
            web.patch("/internal/logs/subscribe", self.subscribe),
            web.get("/internal/folder_paths", self.folder_paths),
            web.get("/internal/files/{directory_type}", self.files),
            *(web.get(f"/templates/{name}", self.no_templates) for name in _TEMPLATE_LISTS),
        ]
        if self._process.profile.has_assets_api:
            asset = f"/api/assets/{{id:{_UUID}}}"
            one_asset = (web.get, web.put, web.delete)
            routes += [
                *(make(path, self.no_assets) for path in ("/api/assets",) for make in (web.get, web.post)),
                *(make(asset, self.no_assets) for make in one_asset),
                web.get(f"{asset}/content", self.no_assets),
                web.post(f"{asset}/tags", self.no_assets),
                web.delete(f"{asset}/tags", self.no_assets),
                web.head("/api/assets/hash/{hash}", self.no_assets),
                *(
                    web.post(f"/api/assets/{verb}", self.no_assets)
                    for verb in ("from-hash", "seed", "seed/cancel", "prune")
                ),
                *(
                    web.get(f"/api/{path}", self.no_assets)
                    for path in ("assets/seed/status", "assets/tags/refine", "tags")
                ),
            ]
        return routes

    async def index(self, request: web.Request) -> web.StreamResponse:
        headers = {
            "Cache-Control": self._process.profile.page_cache_control,
            "Pragma": "no-cache",
            "Expires": "0",
        }
        return web.FileResponse(self._web_root / "index.html", headers=headers)

    async def no_templates(self, request: web.Request) -> web.Response:
        return web.Response(body=_TEMPLATE_LISTS[request.path.rpartition("/")[2]], content_type="application/json")

    async def extensions(self, request: web.Request) -> web.Response:
        found = (self._web_root / "extensions").rglob("*.js")
        return web.json_response([f"/{path.relative_to(self._web_root).as_posix()}" for path in found])

    async def nothing(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def no_subgraph(self, request: web.Request) -> web.Response:
        return web.json_response(None)

    async def no_assets(self, request: web.Request) -> web.Response:
        message = "Assets system is disabled. Start the server with --enable-assets to use this feature."
        error = {"code": "SERVICE_DISABLED", "message": message, "details": {}}
        return web.json_response({"error": error}, status=503)

    async def logs(self, request: web.Request) -> web.Response:
        return web.json_response("".join(f"{line['t']} - {line['m']}" for line in self._process.logs))

    async def raw_logs(self, request: web.Request) -> web.Response:
        return web.json_response({"entries": list(self._process.logs), "size": {"cols": 80, "rows": 24}})

    async def subscribe(self, request: web.Request) -> web.Response:
        body = await request.json()
        client_id, enabled = body["clientId"], body["enabled"]
        if enabled:
            self._process.log_subscribers.add(client_id)
        else:
            self._process.log_subscribers.discard(client_id)
        return web.Response()

    async def folder_paths(self, request: web.Request) -> web.Response:
        folders = self._process.folders
        return web.json_response(
            {kind: [str(path) for path in folders.model_folders(kind)] for kind in self._process.profile.model_kinds}
        )

    async def files(self, request: web.Request) -> web.Response:
        kind = request.match_info["directory_type"]
        folder = self._process.folders.of_type(kind)
        if folder is None:
            return web.json_response({"error": "Invalid directory type"}, status=400)
        entries = [entry for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
        entries.sort(key=lambda entry: -entry.stat().st_mtime)
        return web.json_response([f"{entry.name} [{kind}]" for entry in entries])


def write_page(folder: Path, title: str, version: str) -> Path:
    """Write a page of a few lines, for a server without a frontend; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(_PAGE.format(title=title, version=version))
    return folder
