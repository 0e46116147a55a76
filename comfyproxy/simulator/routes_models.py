"""Routes of what exists: node classes, models, features, the system.

Source: ComfyUI 0.25.0 and 0.3.64, `server.py`, `app/model_manager.py`.
"""

import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from .nodes import describe
from .process import Process

_GIB = 1024**3
_MODEL_GIB = 4  # what one simulated checkpoint takes of the simulated GPU's memory
_RAM_GIB = 64


class ModelRoutes:
    """Handlers of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._folders, self._profile = process.folders, process.profile

    def table(self) -> list[web.RouteDef]:
        """Return the routes that exist bare and under /api."""
        return [
            web.get("/object_info", self.object_info),
            web.get("/object_info/{node_class}", self.object_info_of),
            web.get("/models", self.kinds),
            web.get("/models/{folder}", self.models),
            web.get("/embeddings", self.embeddings),
            web.get("/experiment/models", self.folders),
            web.get("/experiment/models/{folder}", self.files),
            web.get("/experiment/models/preview/{folder}/{path_index}/{filename:.*}", self.preview),
            web.get("/features", self.features),
            web.get("/system_stats", self.system_stats),
        ]

    async def object_info(self, request: web.Request) -> web.Response:
        world = self._process.world
        return web.json_response({name: describe(node, world) for name, node in self._process.nodes.items()})

    async def object_info_of(self, request: web.Request) -> web.Response:
        name = request.match_info["node_class"]
        node = self._process.nodes.get(name)
        return web.json_response({} if node is None else {name: describe(node, self._process.world)})

    async def kinds(self, request: web.Request) -> web.Response:
        return web.json_response(list(self._profile.model_kinds))

    async def models(self, request: web.Request) -> web.Response:
        kind = request.match_info["folder"]
        if kind not in self._profile.model_kinds:
            return web.Response(status=404)
        return web.json_response(self._folders.model_names(kind))

    async def embeddings(self, request: web.Request) -> web.Response:
        names = self._folders.model_names("embeddings")
        return web.json_response([name.rpartition(".")[0] for name in names])

    async def folders(self, request: web.Request) -> web.Response:
        kinds = [kind for kind in self._profile.model_kinds if kind not in ("configs", "custom_nodes")]
        return web.json_response(
            [{"name": kind, "folders": [str(path) for path in self._folders.model_folders(kind)]} for kind in kinds]
        )

    async def files(self, request: web.Request) -> web.Response:
        kind = request.match_info["folder"]
        if kind not in self._profile.model_kinds:
            return web.Response(status=404)
        names = set(self._folders.model_names(kind))
        found: list[dict[str, Any]] = []
        for index, place in enumerate(self._folders.model_folders(kind)):
            for name in sorted(names):
                path = place / self._folders.local(name)
                if path.is_file():
                    found.append(_file_info(path, name, index))
        return web.json_response(found)

    async def preview(self, request: web.Request) -> web.Response:
        return web.Response(status=404)  # no placeholder has a picture

    async def features(self, request: web.Request) -> web.Response:
        return web.json_response(self._process.features())

    async def system_stats(self, request: web.Request) -> web.Response:
        used = _MODEL_GIB * len(self._process.world.memory.resident)
        vram_gib = self._process.options.vram_gb
        vram, free = int(vram_gib * _GIB), int(max(1, vram_gib - 1 - used) * _GIB)
        profile = self._profile
        newer = profile.describes_more
        system: dict[str, Any] = {
            "os": self._system(),
            "ram_total": _RAM_GIB * _GIB,
            "ram_free": _RAM_GIB * _GIB // 2,
            "comfyui_version": profile.version,
            "required_frontend_version": profile.frontend_version,
            "installed_templates_version": profile.templates_version,
            "required_templates_version": profile.templates_version,
        }
        if newer:
            packages = {
                "comfyui-frontend-package": profile.frontend_version,
                "comfyui-workflow-templates": profile.templates_version,
                "comfyui-embedded-docs": profile.docs_version,
            }
            system["comfy_package_versions"] = [
                {"name": name, "installed": version, "required": version} for name, version in packages.items()
            ]
        system |= {"python_version": sys.version, "pytorch_version": "2.7.0+cu128", "embedded_python": False}
        if newer:
            system["deploy_environment"] = "local-git"
        system["argv"] = ["main.py"]
        device = {
            "name": f"cuda:0 {self._process.options.name} : cudaMallocAsync",
            "type": "cuda",
            "index": 0,
            "vram_total": vram,
            "vram_free": free,
            "torch_vram_total": used * _GIB,
            "torch_vram_free": 0,
        }
        return web.json_response({"system": system, "devices": [device]})

    def _system(self) -> str:
        """Return `sys.platform` (newer) or `os.name`."""
        if self._process.options.windows:
            return "win32" if self._profile.describes_more else "nt"
        return sys.platform if self._profile.describes_more else "posix"


def _file_info(path: Path, name: str, index: int) -> dict[str, Any]:
    status = path.stat()
    return {
        "name": name,
        "pathIndex": index,
        "modified": status.st_mtime,
        "created": status.st_ctime,
        "size": status.st_size,
    }
