"""Backends in memory for the tests of files: they name uploads as ComfyUI does, and fail on demand."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, cast

from comfyproxy.core.errors import ConnectionRefused, DeliveryUnknown
from comfyproxy.core.files import FileRecord, FileRef, FileStamp
from comfyproxy.core.health import Health
from comfyproxy.core.jobs import BackendId
from comfyproxy.service.files import Files
from comfyproxy.service.fleet import Backend, Fleet

IMAGE_INPUTS = frozenset({("LoadImage", "image")})


@dataclass
class Answer:
    status: int
    ref: FileRef | None = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class OpenFile:
    data: bytes
    break_after: int | None
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "image/png"})

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.data), 4):
            if self.break_after is not None and start >= self.break_after:
                raise ConnectionResetError("the source died")
            yield self.data[start : start + 4]


class FakeClient:
    """One ComfyUI server's folders."""

    def __init__(self) -> None:
        self.files: dict[FileRef, bytes] = {}
        self.calls: list[str] = []
        self.is_away = False
        self.refuse_with: int | None = None
        self.break_after: int | None = None  # bytes of a download
        self.gate: asyncio.Event | None = None  # uploads wait for it
        self.uploading = asyncio.Event()

    def put(self, name: str, data: bytes, *, subfolder: str = "", type: str = "input") -> FileRef:
        ref = FileRef(name, subfolder, type)
        self.files[ref] = data
        return ref

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if self.is_away:
            raise ConnectionRefused("nothing listens")

    async def stat_file(self, ref: FileRef) -> FileStamp | None:
        self._called(f"stat {ref.type} {ref.subfolder}/{ref.name}")
        data = self.files.get(ref)
        return None if data is None else FileStamp(size=len(data), etag=hashlib.md5(data).hexdigest())

    @asynccontextmanager
    async def open_file(self, ref: FileRef) -> AsyncIterator[OpenFile]:
        self._called(f"open {ref.type} {ref.subfolder}/{ref.name}")
        yield OpenFile(self.files[ref], self.break_after)

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
        self._called(f"upload {type or 'input'} {subfolder or ''}/{name}")
        self.uploading.set()
        if self.gate is not None:
            await self.gate.wait()
        try:
            data = b"".join([chunk async for chunk in source])
        except ConnectionResetError as exc:
            raise DeliveryUnknown(f"failed to send: {exc}") from exc
        if self.refuse_with is not None:
            return Answer(self.refuse_with, body=b"no")
        return self._keep(FileRef(name, subfolder or "", type or "input"), data, data, overwrite=overwrite)

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
        original = json.loads(original_ref)
        self._called(f"mask {original['type']} {original['subfolder']}/{original['filename']}")
        mask = b"".join([chunk async for chunk in source])
        below = self.files.get(FileRef(original["filename"], original["subfolder"], original["type"]), b"?")
        return self._keep(
            FileRef(name, subfolder or "", type or "input"), mask, below + b"+" + mask, overwrite=overwrite
        )

    def _keep(self, ref: FileRef, sent: bytes, kept: bytes, *, overwrite: bool) -> Answer:
        path, count = PurePosixPath(ref.name), 0
        while not overwrite and ref in self.files and self.files[ref] != sent:
            count += 1
            ref = FileRef(f"{path.stem} ({count}){path.suffix}", ref.subfolder, ref.type)
        self.files[ref] = kept
        body = json.dumps({"name": ref.name, "subfolder": ref.subfolder, "type": ref.type}).encode()
        return Answer(200, ref, body)

    def count(self, verb: str) -> int:
        return sum(call.startswith(verb) for call in self.calls)


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


class Servers:
    """A fleet of fakes with `Files` in front."""

    def __init__(self, directory: Path, *names: str, prefixes: bool = True) -> None:
        self.clients = {name: FakeClient() for name in names}
        settings = cast(Any, SimpleNamespace(max_concurrent=2))
        backends = [
            Backend(BackendId(name), settings, cast(Any, client), health=Health(healthy=True), epoch=1)
            for name, client in self.clients.items()
        ]
        observer = cast(Any, SimpleNamespace(upstream_error=lambda backend, kind: None))
        health_check = cast(Any, SimpleNamespace(rise=1, fall=3))
        self.time = 0.0
        self.fleet = Fleet(
            backends, health_check=health_check, prefix_outputs=prefixes, now=lambda: self.time, observer=observer
        )
        self.index = MemoryIndex()
        self.files = Files(self.fleet, self.index, directory / "spool", now=lambda: self.time)

    def __getitem__(self, name: str) -> FakeClient:
        return self.clients[name]

    def backend(self, name: str) -> Backend:
        backend = self.fleet.get(name)
        assert backend is not None
        return backend

    def goes_away(self, name: str) -> None:
        self[name].is_away = True
        self.backend(name).health = Health(healthy=False)

    def comes_back(self, name: str) -> None:
        self[name].is_away = False
        backend = self.backend(name)
        backend.health, backend.epoch = Health(healthy=True), backend.epoch + 1

    async def prepare(self, value: Any, target: str, *, class_type: str = "LoadImage") -> Any:
        """Prepare a graph of one node; return the value that its input has afterwards."""
        graph = json.dumps({"1": {"class_type": class_type, "inputs": {"image": value}}}).encode()
        rewritten = await self.files.prepare("p", graph, self.backend(target), IMAGE_INPUTS)
        return json.loads(graph if rewritten is None else rewritten)["1"]["inputs"]["image"]


async def stream(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 3):
        yield data[start : start + 3]
