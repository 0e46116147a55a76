"""Routes of user state: users, user data, settings. There is one user, as without `--multi-user`.

Source: ComfyUI 0.25.0, `app/user_manager.py`, `app/app_settings.py`.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from .process import Process

_SETTINGS = "comfy.settings.json"


class UserRoutes:
    """Handlers of one process."""

    def __init__(self, process: Process) -> None:
        self._root = process.folders.user / "default"
        self._times_in_ms = process.profile.file_times_in_ms

    def table(self) -> list[web.RouteDef]:
        """Return the routes that exist bare and under /api."""
        return [
            web.get("/settings", self.get_settings),
            web.get("/settings/{id}", self.get_setting),
            web.post("/settings", self.post_settings),
            web.post("/settings/{id}", self.post_setting),
            web.get("/users", self.get_users),
            web.post("/users", self.post_users),
            web.get("/userdata", self.list_files),
            web.get("/v2/userdata", self.list_tree),
            web.get("/userdata/{file}", self.get_file),
            web.post("/userdata/{file}", self.post_file),
            web.delete("/userdata/{file}", self.delete_file),
            web.post("/userdata/{file}/move/{dest}", self.move_file),
        ]

    async def get_settings(self, request: web.Request) -> web.Response:
        return web.json_response(self._settings())

    async def get_setting(self, request: web.Request) -> web.Response:
        return web.json_response(self._settings().get(request.match_info["id"]))

    async def post_settings(self, request: web.Request) -> web.Response:
        self._save_settings({**self._settings(), **await request.json()})
        return web.Response()

    async def post_setting(self, request: web.Request) -> web.Response:
        self._save_settings({**self._settings(), request.match_info["id"]: await request.json()})
        return web.Response()

    def _settings(self) -> dict[str, Any]:
        self._root.mkdir(parents=True, exist_ok=True)
        file = self._root / _SETTINGS
        if not file.is_file():
            return {}
        try:
            settings: dict[str, Any] = json.loads(file.read_bytes())
        except ValueError:
            return {}
        return settings

    def _save_settings(self, settings: dict[str, Any]) -> None:
        (self._root / _SETTINGS).write_text(json.dumps(settings, indent=4))

    async def get_users(self, request: web.Request) -> web.Response:
        return web.json_response({"storage": "server", "migrated": self._root.exists()})

    async def post_users(self, request: web.Request) -> web.Response:
        name = (await request.json())["username"]
        if name == "default":
            return web.json_response({"error": "Duplicate username."}, status=400)
        return web.json_response({"error": "username not provided"}, status=400)

    async def list_files(self, request: web.Request) -> web.Response:
        query = request.rel_url.query
        if not query.get("dir"):
            return web.Response(status=400, text="Directory not provided")
        folder = self._path(query["dir"])
        if folder is None:
            return web.Response(status=403, text="Invalid directory")
        if not folder.exists():
            return web.Response(status=404, text="Directory not found")
        recurse, full_info, split = (query.get(key, "").lower() == "true" for key in ("recurse", "full_info", "split"))
        found = folder.rglob("*") if recurse else folder.glob("*")
        files = [path for path in found if path.is_file() and not _hidden(path.relative_to(folder))]
        if full_info:
            return web.json_response([self._info(path, folder) for path in files])
        names = [path.relative_to(folder).as_posix() for path in files]
        return web.json_response([[name, *name.split("/")] for name in names] if split else names)

    async def list_tree(self, request: web.Request) -> web.Response:
        asked = unquote(request.rel_url.query.get("path", ""))
        folder = self._path(asked, make=False) if asked else self._root
        if folder is None:
            return web.Response(status=400, text="Invalid path requested")
        if not folder.exists():
            if folder == self._root:
                return web.json_response([])
            return web.Response(status=404, text="Requested path not found")
        if not folder.is_dir():
            return web.Response(status=400, text="Requested path is not a directory")
        entries = []
        for path in folder.rglob("*"):
            entry: dict[str, Any] = {"name": path.name, "path": path.relative_to(self._root).as_posix()}
            if path.is_dir():
                entry["type"] = "directory"
            else:
                status = path.stat()
                entry |= {"type": "file", "size": status.st_size, "modified": status.st_mtime}
            entries.append(entry)
        entries.sort(key=lambda entry: (entry["type"] != "directory", entry["name"].lower()))
        return web.json_response(entries)

    async def get_file(self, request: web.Request) -> web.StreamResponse:
        path = self._named(request, must_exist=True)
        return path if isinstance(path, web.Response) else web.FileResponse(path)

    async def post_file(self, request: web.Request) -> web.Response:
        path = self._named(request)
        if isinstance(path, web.Response):
            return path
        if request.query.get("overwrite") == "false" and path.exists():
            return web.Response(status=409, text="File already exists")
        body = await request.read()
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(body)
            os.replace(file.name, path)  # noqa: PTH105
        except OSError:
            return web.Response(status=400, reason='Invalid filename. Please avoid special characters like :\\/*?"<>|')
        return self._told(request, path)

    async def delete_file(self, request: web.Request) -> web.Response:
        path = self._named(request, must_exist=True)
        if isinstance(path, web.Response):
            return path
        path.unlink()
        return web.Response(status=204)

    async def move_file(self, request: web.Request) -> web.Response:
        source = self._named(request, must_exist=True)
        if isinstance(source, web.Response):
            return source
        target = self._named(request, "dest")
        if isinstance(target, web.Response):
            return target
        if request.query.get("overwrite") == "false" and target.exists():
            return web.Response(status=409, text="File already exists")
        source.replace(target)
        return self._told(request, target)

    def _named(self, request: web.Request, key: str = "file", *, must_exist: bool = False) -> Path | web.Response:
        path = self._path(request.match_info[key])
        if path is None:
            return web.Response(status=403)
        if must_exist and not path.exists():
            return web.Response(status=404)
        return path

    def _path(self, name: str, *, make: bool = True) -> Path | None:
        """Return the file of a name, which may be percent-encoded once more; None if it leaves the user's folder."""
        path = Path(os.path.abspath(os.path.join(self._root, unquote(name))))  # noqa: PTH100, PTH118
        if not path.is_relative_to(self._root):
            return None
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _told(self, request: web.Request, path: Path) -> web.Response:
        if request.query.get("full_info", "false").lower() == "true":
            return web.json_response(self._info(path, self._root))
        return web.json_response(path.relative_to(self._root).as_posix())

    def _info(self, path: Path, root: Path) -> dict[str, Any]:
        status = path.stat()
        times: dict[str, float] = {"modified": status.st_mtime, "created": status.st_ctime}
        if self._times_in_ms:
            times = {key: int(seconds * 1000) for key, seconds in times.items()}
        return {"path": path.relative_to(root).as_posix(), "size": status.st_size, **times}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
