"""Files over the fleet: a prompt finds its inputs wherever it lands, and an upload is everywhere."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Container
from pathlib import Path
from typing import Any

from comfyproxy.core import graph as graphs
from comfyproxy.core import outputs
from comfyproxy.core.errors import NotDelivered, UpstreamError
from comfyproxy.core.files import FileRef
from comfyproxy.core.graph import Evidence, FileInput
from comfyproxy.core.jobs import BackendId
from comfyproxy.core.ports import FileIndex, StoreUnavailable
from comfyproxy.service.file_ports import UploadAnswer, client_of
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.replication import Replicator, Source
from comfyproxy.service.spool import Spool, Spooled
from comfyproxy.service.uploads import Distributor, Upload

log = logging.getLogger(__name__)

PREPARED_AT_ONCE = 8  # files of one prompt


class Files:
    """What the dispatcher and the web ask about files."""

    def __init__(
        self, fleet: Fleet, index: FileIndex, spool_dir: Path, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._fleet = fleet
        self._index = index
        self._spool = Spool(spool_dir)
        self._replicator = Replicator(fleet, index, now=now)
        self._distributor = Distributor(fleet, index, self._replicator)

    async def open(self) -> None:
        """Make ready to take uploads."""
        await asyncio.to_thread(self._spool.open)

    async def close(self) -> None:
        """Stop all transfers; those cut off are made again when a job needs them."""
        await self._replicator.close()

    async def prepare(
        self, prompt_id: str, graph: bytes, backend: Backend, upload_inputs: Container[tuple[str, str]]
    ) -> bytes | None:
        """Make every file that a graph names present on the backend that is going to run it.

        Args:
            prompt_id: for the log.
            upload_inputs: (class, input) pairs that take uploaded files, from the backend's catalog.

        Returns the graph with the names that the files have there, None if nothing changes. What is nowhere keeps
        its name, and the client reads ComfyUI's own error.
        Raises NotDelivered if the backend fails: nothing of the prompt was sent, another one may get it.
        """
        if len(self._fleet) < 2:
            return None
        names = self._fleet.names if self._fleet.prefixes else frozenset[str]()
        found = graphs.file_inputs(graph, names=names, upload_inputs=upload_inputs)
        if not found:
            return None
        by_value = {(item.value, item.evidence): item for item in found}  # a file named twice is looked for once
        new = dict(zip(by_value, await self._resolve_all(list(by_value.values()), backend), strict=True))
        replacements = {
            item.place: value for item in found if (value := new[(item.value, item.evidence)]) != item.value
        }
        if not replacements:
            return None
        log.info("prompt %s: %d file names changed for %s", prompt_id, len(replacements), backend.id)
        return graphs.rewrite(graph, replacements)

    async def receive(self, chunks: AsyncIterator[bytes]) -> Spooled:
        """Put an upload's file on the disk as it arrives; let go of it with `release`."""
        return await self._spool.receive(chunks)

    async def upload(self, upload: Upload) -> tuple[Backend, UploadAnswer]:
        """Give an upload to every ready backend under one name, and return the answer for the client.

        Raises NoBackend, BackendUnavailable, UpstreamFailed.
        """
        return await self._distributor.distribute(upload, _send_image, digest=upload.file.digest, size=upload.file.size)

    async def upload_mask(self, upload: Upload, original_ref: str) -> tuple[Backend, UploadAnswer]:
        """Give a mask to every ready backend, each of which lays it over its own copy of the original.

        Args:
            original_ref: JSON as the client sent it: `{"filename", "subfolder", "type"}`, an output with its backend's
                name in front of the subfolder.

        Raises NoBackend, BackendUnavailable, UpstreamFailed.
        """

        async def send(backend: Backend, mask: Upload) -> UploadAnswer:
            return await client_of(backend).upload_mask(
                mask.file.chunks(),
                name=mask.name,
                type=mask.type,
                subfolder=mask.subfolder,
                overwrite=mask.overwrites,
                content_type=mask.content_type,
                original_ref=await self._original_on(backend, original_ref),
            )

        # Every backend encodes its own PNG, so the content has no digest; what it is made from has.
        digest = hashlib.sha256(f"{upload.file.digest}:{original_ref}".encode()).hexdigest()
        return await self._distributor.distribute(upload, send, digest=f"{digest}:mask", size=None)

    async def locate(self, ref: FileRef, *, skip: Backend | None = None) -> Backend | None:
        """Return a ready backend that has a file."""
        source = await self._replicator.locate(ref, skip=skip)
        return source.backend if source is not None else None

    async def _resolve_all(self, items: list[FileInput], target: Backend) -> list[str]:
        slots = asyncio.Semaphore(PREPARED_AT_ONCE)

        async def resolve(item: FileInput) -> str:
            async with slots:
                return await self._resolve(item, target)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(resolve(item), name=f"file {item.value}") for item in items]
        except ExceptionGroup as failed:
            if failed.split((UpstreamError, StoreUnavailable))[1] is not None:
                raise
            if (lost := failed.subgroup(StoreUnavailable)) is not None:
                raise StoreUnavailable(str(lost.exceptions[0])) from failed
            raise NotDelivered(f"{target.id}: {failed.exceptions[0]}") from failed
        return [task.result() for task in tasks]

    async def _resolve(self, item: FileInput, target: Backend) -> str:
        """Return the value that names the item's file on `target`."""
        declared = None if item.evidence is not Evidence.ANNOTATED else item.ref.type
        if item.backend is not None:
            actual = await self._output_on(item.backend, item.ref, target)
        else:
            actual = await self._on(item.ref, target, known_only=item.evidence is Evidence.LOOKS)
        if actual is None or (item.backend is None and actual == item.ref):
            return item.value
        if actual.type == "input" and declared != "input":
            declared = None  # nodes that list their choices know plain names only
        return outputs.format_annotated(outputs.join_name(actual.subfolder, actual.name), declared)

    async def _output_on(self, owner: BackendId, ref: FileRef, target: Backend) -> FileRef | None:
        """Return the name that an output of `owner` has on `target`."""
        if owner == target.id:
            return ref
        backend = self._fleet.get(owner)
        return await self._replicator.bring_output(backend, ref, target) if backend is not None else None

    async def _on(self, ref: FileRef, target: Backend, *, known_only: bool) -> FileRef | None:
        """Return the name that a file has on `target`; None if it is nowhere, or (`known_only`) not in the index."""
        record = await self._index.file(ref)
        if record is not None:
            actual = await self._replicator.bring_known(record, target)
            if actual is not None or known_only:
                return actual
        if known_only:
            return None
        if await self._replicator.has(target, ref):
            return ref
        source = await self._replicator.locate(ref, skip=target)
        return await self._bring_found(source, target) if source is not None else None

    async def _bring_found(self, source: Source, target: Backend) -> FileRef | None:
        if source.ref.type in outputs.PREFIXED_TYPES:
            # Put among the target's own outputs, it could take the name of one that is still to come.
            return await self._replicator.bring_output(source.backend, source.ref, target)
        return await self._replicator.bring_found(source, target)

    async def _original_on(self, backend: Backend, original_ref: str) -> str:
        """Return `original_ref` as it reads on a backend, the original brought there; unchanged if that is in vain."""
        if len(self._fleet) < 2:
            return original_ref
        parsed = _original(original_ref, self._fleet.names if self._fleet.prefixes else frozenset())
        if parsed is None:
            return original_ref
        fields, ref, owner = parsed
        if owner is not None:
            actual = await self._output_on(owner, ref, backend)
        else:
            actual = await self._on(ref, backend, known_only=False)
        if actual is None:
            return original_ref
        return json.dumps({**fields, "filename": actual.name, "subfolder": actual.subfolder, "type": actual.type})


async def _send_image(backend: Backend, upload: Upload) -> UploadAnswer:
    return await client_of(backend).upload(
        upload.file.chunks(),
        name=upload.name,
        type=upload.type,
        subfolder=upload.subfolder,
        overwrite=upload.overwrites,
        content_type=upload.content_type,
    )


def _original(original_ref: str, names: Container[str]) -> tuple[dict[str, Any], FileRef, BackendId | None] | None:
    """Read an `original_ref` (ComfyUI 0.25.0, `server.py`, `upload_mask`); None where it is none."""
    try:
        fields = json.loads(original_ref)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    filename, subfolder = fields.get("filename"), fields.get("subfolder") or ""
    if not isinstance(filename, str) or not isinstance(subfolder, str):
        return None
    path, annotated = outputs.parse_annotated(filename)
    file_type = annotated or fields.get("type") or "output"
    if file_type not in outputs.ANNOTATIONS:
        return None
    path = outputs.join_name(subfolder, path)
    owner = None
    if file_type in outputs.PREFIXED_TYPES:
        owner, path = outputs.split_path(path, names)
    subfolder, name = outputs.split_name(path)
    if not name or ".." in path:
        return None
    return fields, FileRef(name, subfolder, file_type), owner
