"""A proxy of nothing but files and pass-through, in front of small servers on real sockets."""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, Self, cast

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict
from yarl import URL

from comfyproxy.core.errors import ConnectionRefused, DeliveryUnknown
from comfyproxy.core.files import FileRecord, FileRef, FileStamp
from comfyproxy.core.health import Health
from comfyproxy.core.jobs import BackendId
from comfyproxy.service.files import Files
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.keeping import Keeper
from comfyproxy.web import middleware
from comfyproxy.web.keys import FILES, FLEET, KEEPER
from comfyproxy.web.passthrough import home_handler
from comfyproxy.web.uploads import upload_image, upload_mask
from comfyproxy.web.view import view


class LikeProduction(TestServer):
    """A server whose handlers are not cancelled when their client leaves, as under `run_app`."""

    async def _make_runner(self, **kwargs: Any) -> web.BaseRunner:
        return await super()._make_runner(**{**kwargs, "handler_cancellation": False})


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    ref: FileRef | None


@dataclass
class OpenFile:
    response: aiohttp.ClientResponse

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    def chunks(self) -> AsyncIterator[bytes]:
        return self.response.content.iter_any()


class SocketClient:
    """The least client that files and pass-through can do with."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.session = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None))

    def _view(self, ref: FileRef) -> str:
        query = {"filename": ref.name, "subfolder": ref.subfolder, "type": ref.type}
        return str(URL.build(path="/view", query=query))

    async def stat_file(self, ref: FileRef) -> FileStamp | None:
        async with self.request("HEAD", self._view(ref), headers={}, data=None) as response:
            if response.status != 200:
                return None
            return FileStamp(size=response.content_length, etag=response.headers.get("ETag"))

    @asynccontextmanager
    async def open_file(self, ref: FileRef) -> AsyncIterator[OpenFile]:
        async with self.request("GET", self._view(ref), headers={}, data=None) as response:
            yield OpenFile(response)

    async def upload(
        self,
        source: AsyncIterable[bytes],
        *,
        name: str,
        type: str | None,
        subfolder: str | None,
        overwrite: bool,
        content_type: str,
    ) -> Answer:
        return await self._post("/upload/image", source, name, content_type, type, subfolder, overwrite, None)

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
    ) -> Answer:
        return await self._post("/upload/mask", source, name, content_type, type, subfolder, overwrite, original_ref)

    async def _post(
        self,
        path: str,
        source: AsyncIterable[bytes],
        name: str,
        content_type: str,
        type: str | None,
        subfolder: str | None,
        overwrite: bool,
        original_ref: str | None,
    ) -> Answer:
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("image", source, filename=name, content_type=content_type)
        fields = {"type": type, "subfolder": subfolder, "original_ref": original_ref}
        for key, value in fields.items():
            if value is not None:
                form.add_field(key, value)
        if overwrite:
            form.add_field("overwrite", "true")
        with _errors():
            async with self.session.post(self.url.join(URL(path)), data=form) as response:
                body = await response.read()
        ref = None
        if response.status == 200:
            said = json.loads(body)
            ref = FileRef(said["name"], said["subfolder"], said["type"])
        return Answer(response.status, response.headers, body, ref)

    @asynccontextmanager
    async def request(
        self, method: str, path_qs: str, *, headers: Mapping[str, str], data: AsyncIterable[bytes] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        dropped = {"host", "origin", "sec-fetch-site", "connection", "transfer-encoding", "expect"}
        kept = CIMultiDict((key, value) for key, value in headers.items() if key.lower() not in dropped)
        url = URL(f"http://{self.url.authority}{path_qs}", encoded=True)
        with _errors():
            async with self.session.request(
                method,
                url,
                headers=kept,
                data=data,
                allow_redirects=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            ) as response:
                yield response


class _errors:  # noqa: N801
    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, exc: BaseException | None, traceback: Any) -> None:
        if isinstance(exc, aiohttp.ClientConnectorError):
            raise ConnectionRefused(str(exc)) from exc
        if isinstance(exc, aiohttp.ClientError | TimeoutError):
            raise DeliveryUnknown(repr(exc)) from exc


@dataclass
class Comfy:
    """As much of a ComfyUI server as has to do with files; further routes per test."""

    root: Path
    app: web.Application = field(default_factory=lambda: web.Application(client_max_size=2**40))
    seen: list[str] = field(default_factory=list)
    answer_upload: Callable[[web.Request], Awaitable[web.Response]] | None = None

    def __post_init__(self) -> None:
        self.app.router.add_get("/view", self.view)
        self.app.router.add_get("/api/view", self.view)
        self.app.router.add_post("/upload/image", self.upload)
        self.app.router.add_post("/upload/mask", self.upload)

    def path(self, name: str, type: str = "input", subfolder: str = "") -> Path:
        return self.root / type / subfolder / name

    def put(self, name: str, data: bytes, *, type: str = "input", subfolder: str = "") -> None:
        path = self.path(name, type, subfolder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    async def view(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(f"{request.method} {request.raw_path}")
        query = request.query
        if ".." in query["filename"]:
            return web.Response(status=400)
        if ".." in query.get("subfolder", ""):
            return web.Response(status=403)
        path = self.path(query["filename"], query.get("type", "output"), query.get("subfolder", ""))
        if not path.is_file():
            return web.Response(status=404)
        return web.FileResponse(path, headers={"Content-Disposition": f'filename="{path.name}"'})

    async def upload(self, request: web.Request) -> web.Response:
        self.seen.append(f"{request.method} {request.raw_path}")
        if self.answer_upload is not None:
            return await self.answer_upload(request)
        post = await request.post()
        image = post["image"]
        assert isinstance(image, web.FileField)
        subfolder, type = str(post.get("subfolder", "")), str(post.get("type", "input"))
        name, data = image.filename, image.file.read()
        if "original_ref" in post:
            original = json.loads(str(post["original_ref"]))
            data = self.path(original["filename"], original["type"], original["subfolder"]).read_bytes() + data
        split, count = PurePosixPath(name), 0
        while "overwrite" not in post and self.path(name, type, subfolder).exists():
            if self.path(name, type, subfolder).read_bytes() == data:
                break
            count += 1
            name = f"{split.stem} ({count}){split.suffix}"
        self.put(name, data, type=type, subfolder=subfolder)
        return web.json_response({"name": name, "subfolder": subfolder, "type": type})


class MemoryIndex:
    """The index of files as the store keeps it."""

    def __init__(self) -> None:
        self.records: dict[FileRef, FileRecord] = {}
        self.held: dict[FileRef, dict[BackendId, str]] = {}

    async def remember_file(self, record: FileRecord) -> None:
        self.records[record.ref] = record

    async def file(self, ref: FileRef) -> FileRecord | None:
        return self.records.get(ref)

    async def remember_copy(self, ref: FileRef, backend: BackendId, digest: str) -> None:
        self.held.setdefault(ref, {})[backend] = digest

    async def copies(self, ref: FileRef) -> dict[BackendId, str]:
        return dict(self.held.get(ref, {}))


class Proxy:
    """The proxy with its backends; enter it to have it listen."""

    def __init__(self, directory: Path, *names: str, cors_origin: str | None = None, prefixes: bool = True) -> None:
        self.comfy = {name: Comfy(directory / name) for name in names}
        self._directory = directory
        self._cors_origin = cors_origin
        self._prefixes = prefixes
        self._stack = AsyncExitStack()
        self.servers: dict[str, TestServer] = {}

    def __getitem__(self, name: str) -> Comfy:
        return self.comfy[name]

    async def __aenter__(self) -> Self:
        backends = []
        settings = cast(Any, SimpleNamespace(max_concurrent=2))
        for name, comfy in self.comfy.items():
            server = self.servers[name] = LikeProduction(comfy.app)
            await server.start_server()
            self._stack.push_async_callback(server.close)
            client = SocketClient(server.make_url("/"))
            self._stack.push_async_callback(client.session.close)
            health = Health(healthy=True)
            backends.append(Backend(BackendId(name), settings, cast(Any, client), health=health, epoch=1))
        observer = cast(Any, SimpleNamespace(upstream_error=lambda backend, kind: None))
        health_check = cast(Any, SimpleNamespace(rise=1, fall=3))
        now = asyncio.get_running_loop().time
        self.fleet = Fleet(
            backends, health_check=health_check, prefix_outputs=self._prefixes, now=now, observer=observer
        )
        self.files = Files(self.fleet, MemoryIndex(), self._directory / "spool", now=now)
        await self.files.open()
        self._stack.push_async_callback(self.files.close)
        app = web.Application(client_max_size=0)
        middleware.install(app, cors_origin=self._cors_origin)
        app[FLEET], app[FILES] = self.fleet, self.files
        app[KEEPER] = Keeper(
            self.fleet, cast(Any, None), None, max_bytes=0, max_age_s=0, wall_clock=lambda: 0
        )  # keeps nothing
        for prefix in ("", "/api"):
            app.router.add_get(f"{prefix}/view", view)
            app.router.add_post(f"{prefix}/upload/image", upload_image)
            app.router.add_post(f"{prefix}/upload/mask", upload_mask)
        app.router.add_route("*", "/{path:.*}", home_handler)
        proxy = LikeProduction(app)
        await proxy.start_server(auto_decompress=False)
        self._stack.push_async_callback(proxy.close)
        self.url = proxy.make_url("/")
        self.session = aiohttp.ClientSession(self.url, auto_decompress=False)
        self._stack.push_async_callback(self.session.close)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def backend(self, name: str) -> Backend:
        backend = self.fleet.get(name)
        assert backend is not None
        return backend

    async def dies(self, name: str) -> None:
        """Close a backend's socket; its health is for the proxy to find out."""
        await self.servers[name].close()


def picture(name: str, data: bytes | AsyncIterable[bytes], **fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("image", data, filename=name, content_type="image/png")
    for key, value in fields.items():
        form.add_field(key, value)
    return form
