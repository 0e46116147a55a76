"""What files and pass-through need of a backend's client, as protocols."""

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol, cast

from comfyproxy.core.files import FileRef, FileStamp

if TYPE_CHECKING:
    import aiohttp

    from comfyproxy.service.fleet import Backend


class OpenFile(Protocol):
    """A file that is being read from a backend."""

    @property
    def headers(self) -> Mapping[str, str]: ...
    def chunks(self) -> AsyncIterator[bytes]: ...


class UploadAnswer(Protocol):
    """A backend's answer to an upload; `ref` says under which name it keeps the file, if it does."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...
    @property
    def ref(self) -> FileRef | None: ...


class FileClient(Protocol):
    """What files ask of one backend. Every method raises an UpstreamError."""

    async def stat_file(self, ref: FileRef) -> FileStamp | None: ...

    def open_file(self, ref: FileRef) -> AbstractAsyncContextManager[OpenFile]: ...

    async def upload(
        self,
        source: AsyncIterable[bytes],
        *,
        name: str,
        type: str | None,
        subfolder: str | None,
        overwrite: bool,
        content_type: str,
    ) -> UploadAnswer: ...

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
    ) -> UploadAnswer: ...

    def request(
        self,
        method: str,
        path_qs: str,
        *,
        headers: Mapping[str, str],
        data: AsyncIterable[bytes] | None,
        idle_timeout_s: float | None = None,
    ) -> "AbstractAsyncContextManager[aiohttp.ClientResponse]": ...

    def websocket(
        self, path_qs: str, *, headers: Mapping[str, str], protocols: Sequence[str]
    ) -> "AbstractAsyncContextManager[aiohttp.ClientWebSocketResponse]": ...


def client_of(backend: "Backend") -> FileClient:
    """Return the backend's client in the role that it has for files."""
    return cast(FileClient, backend.client)
