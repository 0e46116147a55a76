"""Files on one backend: looked at, read and uploaded, always as streams."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote, urlencode

import aiohttp

from comfyproxy.core.errors import BadAnswer
from comfyproxy.core.files import FileRef, FileStamp
from comfyproxy.upstream import answers
from comfyproxy.upstream.answers import UploadAnswer
from comfyproxy.upstream.errors import upstream_errors
from comfyproxy.upstream.feed import Feed
from comfyproxy.upstream.wire import PLAIN, Wire


class OpenFile:
    """A file that is being read; good until its context ends."""

    def __init__(self, wire: Wire, response: aiohttp.ClientResponse) -> None:
        self._wire, self._response = wire, response

    @property
    def headers(self) -> Mapping[str, str]:
        """The answer's headers, as the backend sent them."""
        return self._response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """Read on. Raises DeliveryUnknown if the file breaks off or stops coming."""
        while True:
            with upstream_errors(self._wire.backend):
                chunk = await self._response.content.readany()
            if not chunk:
                return
            yield chunk


class FileCalls:
    """What files ask of one backend."""

    def __init__(self, wire: Wire, *, connect_timeout_s: float, idle_timeout_s: float) -> None:
        self._wire = wire
        self._idle_timeout_s = idle_timeout_s
        self.connect_within(connect_timeout_s)

    def connect_within(self, timeout_s: float) -> None:
        """Let another timeout hold for connections to stand."""
        self._timeout = aiohttp.ClientTimeout(total=None, connect=timeout_s, sock_read=self._idle_timeout_s)

    async def stat_file(self, ref: FileRef) -> FileStamp | None:
        """Ask whether the backend has a file. Raises an UpstreamError."""
        answer = await self._wire.exchange("HEAD", _view(ref), timeout=self._timeout)
        if answer.status in (400, 403, 404):  # a name that is not allowed, a folder outside, or no such file
            return None
        if answer.status != 200:
            raise answer.bad(f"status {answer.status}")
        size = answer.headers.get("Content-Length", "")
        return FileStamp(size=int(size) if size.isdecimal() else None, etag=answer.headers.get("ETag"))

    @asynccontextmanager
    async def open_file(self, ref: FileRef) -> AsyncIterator[OpenFile]:
        """Read a file. Raises an UpstreamError; BadAnswer if it is not to be had."""
        path_qs = _view(ref)
        async with self._wire.open("GET", path_qs, headers=PLAIN, timeout=self._timeout, inflate=True) as response:
            if response.status != 200:
                raise BadAnswer(f"{self._wire.backend}: GET {path_qs}: status {response.status}")
            yield OpenFile(self._wire, response)

    async def upload(
        self,
        source: AsyncIterable[bytes],
        *,
        name: str,
        type: str | None,
        subfolder: str | None,
        overwrite: bool,
        content_type: str,
    ) -> UploadAnswer:
        """Send an image to /upload/image; the stream is closed in the end.

        Raises an UpstreamError: DeliveryUnknown, too, if the source fails or the backend stops taking it.
        """
        fields = _fields(type=type, subfolder=subfolder, overwrite="true" if overwrite else None)
        return await self._upload("/upload/image", source, name, content_type, fields)

    async def upload_mask(
        self,
        source: AsyncIterable[bytes],
        *,
        name: str,
        type: str | None,
        subfolder: str | None,
        overwrite: bool,
        content_type: str,
        original_ref: str,
    ) -> UploadAnswer:
        """Send a mask to /upload/mask, with the JSON that names its original; as `upload` otherwise."""
        fields = _fields(
            type=type, subfolder=subfolder, overwrite="true" if overwrite else None, original_ref=original_ref
        )
        return await self._upload("/upload/mask", source, name, content_type, fields)

    async def _upload(
        self, path: str, source: AsyncIterable[bytes], name: str, content_type: str, fields: dict[str, str]
    ) -> UploadAnswer:
        loop = asyncio.get_running_loop()

        def on_progress(has_chunk: bool) -> None:
            """Count the time that the backend takes, and not the time that the source does."""
            if not patience.expired():
                patience.reschedule(loop.time() + self._idle_timeout_s if has_chunk else None)

        feed = Feed(source, on_progress=on_progress)
        form = aiohttp.FormData(quote_fields=False)  # quoted as percents, a name would not arrive as it is
        for key, value in fields.items():
            form.add_field(key, value)
        form.add_field("image", feed, filename=_one_line(name), content_type=_one_line(content_type))
        with upstream_errors(self._wire.backend):
            async with asyncio.timeout(None) as patience:
                answer = await self._wire.exchange("POST", path, form=form, feed=feed, timeout=self._timeout)
        return answers.upload_answer(answer)


def _view(ref: FileRef) -> str:
    query = {"filename": ref.name, "subfolder": ref.subfolder, "type": ref.type}
    return "/view?" + urlencode(query, quote_via=quote, safe="")


def _fields(**fields: str | None) -> dict[str, str]:
    return {key: value for key, value in fields.items() if value is not None}


def _one_line(value: str) -> str:
    """Write the characters that would end a header as browsers do (WHATWG HTML, multipart/form-data encoding)."""
    return value.replace("\r", "%0D").replace("\n", "%0A").replace("\0", "%00")
