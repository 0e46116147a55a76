"""POST /upload/image and /upload/mask: to the disk first, then to every backend."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, web
from aiohttp.hdrs import CONTENT_TRANSFER_ENCODING

from comfyproxy.core.headers import end_to_end
from comfyproxy.core.options import BACKEND_HEADER
from comfyproxy.service.files import Files
from comfyproxy.service.spool import Spooled
from comfyproxy.service.uploads import Upload
from comfyproxy.web.keys import FILES, FLEET
from comfyproxy.web.passthrough import home_handler

CHUNK_BYTES = 256 * 1024
MAX_FIELDS_BYTES = 1024 * 1024  # all fields besides the file; they are kept in memory


@dataclass
class _Form:
    """The parts that ComfyUI reads."""

    fields: dict[str, str] = field(default_factory=dict)
    file: Spooled | None = None
    filename: str = ""
    content_type: str = "application/octet-stream"

    def upload(self, file: Spooled) -> Upload:
        return Upload(
            file=file,
            name=self.filename,
            content_type=self.content_type,
            type=self.fields.get("type"),
            subfolder=self.fields.get("subfolder"),
            overwrite=self.fields.get("overwrite"),
        )


async def upload_image(request: web.Request) -> web.StreamResponse:
    """POST /upload/image: answers as the home backend does."""
    return await _upload(request, is_mask=False)


async def upload_mask(request: web.Request) -> web.StreamResponse:
    """POST /upload/mask: the original may be an output of any backend."""
    return await _upload(request, is_mask=True)


async def _upload(request: web.Request, *, is_mask: bool) -> web.StreamResponse:
    # Only a plain form can be taken apart; of all else the backend says itself what is wrong with it.
    is_form = request.content_type == "multipart/form-data" and "Content-Encoding" not in request.headers
    if len(request.app[FLEET]) == 1 or not is_form:
        return await home_handler(request)
    files = request.app[FILES]
    form = _Form()
    try:
        await _receive(request, files, form)
        original_ref = form.fields.get("original_ref")
        if form.file is None or (is_mask and original_ref is None):
            return web.Response(status=400)
        if is_mask and original_ref is not None:
            backend, answer = await files.upload_mask(form.upload(form.file), original_ref)
        else:
            backend, answer = await files.upload(form.upload(form.file))
    finally:
        if form.file is not None:
            form.file.release()
    headers = end_to_end(answer.headers)
    headers[BACKEND_HEADER] = backend.id
    headers.pop("Content-Length", None)  # aiohttp counts itself
    return web.Response(status=answer.status, headers=headers, body=answer.body)


async def _receive(request: web.Request, files: Files, form: _Form) -> None:
    """Read the form: the file to the disk, the fields to memory."""
    fields_bytes = 0
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader):
            continue  # a form inside the form: not ComfyUI's
        if part.name == "image" and part.filename and form.file is None:
            form.filename = part.filename
            form.content_type = part.headers.get("Content-Type", form.content_type)
            form.file = await files.receive(_chunks(part))
        elif part.name and not part.filename:
            value = bytearray()
            async for chunk in _chunks(part):
                value += chunk
                if fields_bytes + len(value) > MAX_FIELDS_BYTES:
                    raise web.HTTPRequestEntityTooLarge(MAX_FIELDS_BYTES, fields_bytes + len(value))
            fields_bytes += len(value)
            form.fields.setdefault(part.name, value.decode(part.get_charset("utf-8"), errors="replace"))


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    is_encoded = CONTENT_TRANSFER_ENCODING in part.headers
    while chunk := await part.read_chunk(CHUNK_BYTES):
        yield part.decode(chunk) if is_encoded else chunk
