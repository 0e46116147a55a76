"""Routes of files: view, upload, and metadata of models.

Source: ComfyUI 0.25.0, `server.py` (`view_image`, `image_upload`, `upload_mask`, `view_metadata`).
"""

import json
import mimetypes
import os
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .process import Process

_UNSAFE = frozenset({"text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css"})
_HEADER_LIMIT = 1024 * 1024


class FileRoutes:
    """Handlers of one process."""

    def __init__(self, process: Process) -> None:
        self._folders = process.folders
        self._assets = process.profile.has_assets_api

    def table(self) -> list[web.RouteDef]:
        """Return the routes that exist bare and under /api."""
        return [
            web.get("/view", self.view),
            web.get("/view_metadata/{folder_name}", self.view_metadata),
            web.post("/upload/image", self.upload_image),
            web.post("/upload/mask", self.upload_mask),
        ]

    async def view(self, request: web.Request) -> web.StreamResponse:
        query = request.rel_url.query
        if "filename" not in query or (self._assets and query["filename"].startswith("blake3:")):
            return web.Response(status=404)
        file = self._locate(query["filename"], query.get("type", "output"), query.get("subfolder"))
        if isinstance(file, web.Response):
            return file
        if not file.is_file():
            return web.Response(status=404)
        disposition = {"Content-Disposition": f'filename="{file.name}"'}
        channel = query.get("channel", "rgba")
        if "preview" in query:
            body, kind = _preview(file, query["preview"], query.get("channel", ""))
            return web.Response(body=body, content_type=f"image/{kind}", headers=disposition)
        if channel in ("rgb", "a"):
            body = _rgb(file) if channel == "rgb" else _alpha(file)
            return web.Response(body=body, content_type="image/png", headers=disposition)
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        if kind in _UNSAFE:  # so that a browser downloads instead of running it
            kind = "application/octet-stream"
        return web.FileResponse(file, headers={**disposition, "Content-Type": kind})

    def _locate(self, name: str, kind: str, subfolder: str | None) -> Path | web.Response:
        """Return the file that a request names, or the refusal."""
        name, folder = self._folders.annotated(name)
        if not name or name[0] == "/" or ".." in name:
            return web.Response(status=400)
        folder = folder or self._folders.of_type(kind)
        if folder is None:
            return web.Response(status=400)
        if subfolder is not None:
            inner = Path(os.path.abspath(os.path.join(folder, subfolder)))  # noqa: PTH100, PTH118
            if not inner.is_relative_to(folder):
                return web.Response(status=403)
            folder = inner
        return folder / os.path.basename(name)  # noqa: PTH119  (a name that ends in a slash names nothing)

    async def upload_image(self, request: web.Request) -> web.Response:
        form = await request.post()

        def save(image: web.FileField, path: Path) -> None:
            path.write_bytes(image.file.read())

        return self._upload(form, save)

    async def upload_mask(self, request: web.Request) -> web.Response:
        form = await request.post()

        def save(image: web.FileField, path: Path) -> None:
            # What is wrong with the reference is passed over in silence: the answer is 200 and nothing was saved.
            ref = json.loads(str(form["original_ref"]))
            subfolder = ref.get("subfolder") or None
            file = self._locate(ref["filename"], ref.get("type", "output"), subfolder)
            if isinstance(file, Path) and file.is_file():
                _apply_mask(file, image, path)

        return self._upload(form, save)

    def _upload(self, form: Any, save: Callable[[web.FileField, Path], None]) -> web.Response:
        kind = form.get("type", "input")
        root = self._folders.of_type(kind)
        if root is None:
            raise ValueError(f"no such type: {kind}")  # a 500, as there
        image = form.get("image")
        if not isinstance(image, web.FileField) or not image.filename:
            return web.Response(status=400)
        subfolder = form.get("subfolder", "")
        folder = Path(os.path.join(root, os.path.normpath(subfolder)))  # noqa: PTH118
        name = image.filename
        path = Path(os.path.abspath(folder / name))  # noqa: PTH100
        if not path.is_relative_to(root):
            return web.Response(status=400)
        folder.mkdir(parents=True, exist_ok=True)
        duplicate = False
        if form.get("overwrite") not in ("true", "1"):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            number = 1
            while path.exists():
                duplicate = path.read_bytes() == image.file.read()
                image.file.seek(0)
                if duplicate:
                    break
                name = f"{stem} ({number}){suffix}"
                path = folder / name
                number += 1
        if not duplicate:
            save(image, path)
        return web.json_response({"name": name, "subfolder": subfolder, "type": kind})

    async def view_metadata(self, request: web.Request) -> web.Response:
        name = request.rel_url.query.get("filename", "")
        path = self._folders.model_path(request.match_info["folder_name"], name)
        if path is None or not name.endswith(".safetensors"):
            return web.Response(status=404)
        metadata = safetensors_metadata(path)
        return web.Response(status=404) if metadata is None else web.json_response(metadata)


def safetensors_metadata(path: Path) -> dict[str, Any] | None:
    """Return the free-form part of a safetensors header; None if there is none or it is too long."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _HEADER_LIMIT:
            return None
        header: dict[str, Any] = json.loads(file.read(length))
    return header.get("__metadata__")


def _preview(file: Path, wish: str, channel: str) -> tuple[bytes, str]:
    parts = wish.split(";")
    kind, quality = parts[0], parts[-1]
    if kind not in ("webp", "jpeg") or "a" in channel:
        kind = "webp"
    buffer = BytesIO()
    with Image.open(file) as image:
        shown = image.convert("RGB") if kind == "jpeg" or channel == "rgb" else image
        shown.save(buffer, format=kind, quality=int(quality) if quality.isdigit() else 90)
    return buffer.getvalue(), kind


def _rgb(file: Path) -> bytes:
    with Image.open(file) as image:
        return _png(image.convert("RGB"))


def _alpha(file: Path) -> bytes:
    with Image.open(file) as image:
        alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
        picture = Image.new("RGBA", image.size)
    picture.putalpha(alpha)
    return _png(picture)


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _apply_mask(file: Path, mask: web.FileField, path: Path) -> None:
    """Save a picture again with the alpha channel of another one, and with its own texts."""
    texts = PngInfo()
    with Image.open(file) as original, Image.open(mask.file) as other:
        for key, text in getattr(original, "text", {}).items():
            texts.add_text(key, text)
        picture = original.convert("RGBA")
        picture.putalpha(other.convert("RGBA").getchannel("A"))
    picture.save(path, compress_level=4, pnginfo=texts)
