"""An upload goes to every ready backend under one agreed name, so that a prompt may land anywhere.

A backend that is away or too slow is left out; `Files.prepare` brings it the file before a job needs it. No file is
overwritten that the client did not ask to overwrite: where two backends would have to disagree about the name, the
file gets one that nobody else has.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from weakref import WeakValueDictionary

from comfyproxy.core.errors import BackendUnavailable, NotDelivered, UpstreamError, UpstreamFailed
from comfyproxy.core.files import FileRecord, FileRef
from comfyproxy.core.ports import FileIndex
from comfyproxy.service.file_ports import UploadAnswer
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.replication import Replicator
from comfyproxy.service.spool import Spooled

log = logging.getLogger(__name__)

AT_ONCE = 16  # backends that one process feeds at the same time
WAIT_FOR_OTHERS_S = 10.0  # for the backends besides home; those that need longer go on unwatched


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What a client sent to `/upload/image` or `/upload/mask`, its file on the disk."""

    file: Spooled
    name: str
    content_type: str
    type: str | None = None
    subfolder: str | None = None
    overwrite: str | None = None  # as sent; ComfyUI takes `true` and `1` for yes

    @property
    def overwrites(self) -> bool:
        """Whether the client wants an existing file replaced (ComfyUI 0.25.0, `server.py`, `image_upload`)."""
        return self.overwrite in ("true", "1")


# Sends the upload to a backend: the image alone, or a mask with the name that its original has there.
Send = Callable[[Backend, Upload], Awaitable[UploadAnswer]]


class Distributor:
    """Gives one upload to all ready backends."""

    def __init__(
        self, fleet: Fleet, index: FileIndex, replicator: Replicator, *, wait_s: float = WAIT_FOR_OTHERS_S
    ) -> None:
        self._fleet = fleet
        self._index = index
        self._replicator = replicator
        self._wait_s = wait_s
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    async def distribute(
        self, upload: Upload, send: Send, *, digest: str, size: int | None
    ) -> tuple[Backend, UploadAnswer]:
        """Send to the home backend, then under the name that it gave to the others.

        Args:
            digest: stands for the content that every backend will have.
            size: of that content; None where backends differ in it.

        Returns the answer for the client, and the backend that gave it.
        Raises BackendUnavailable or UpstreamFailed where no backend took the file.
        """
        if not upload.overwrites:
            return await self._distribute(upload, send, digest, size)
        # Of two clients that overwrite one file, the same one must come last on every backend.
        ref = FileRef(upload.name, upload.subfolder or "", upload.type or "input")
        async with self._turn(ref):
            return await self._distribute(upload, send, digest, size)

    async def _distribute(
        self, upload: Upload, send: Send, digest: str, size: int | None
    ) -> tuple[Backend, UploadAnswer]:
        home, answer = await self._to_home(upload, send)
        if answer.ref is None:
            return home, answer
        record = FileRecord(answer.ref, digest, size)
        is_taken = not upload.overwrites and await self._is_taken(record, home)
        if not is_taken and not await self._to_others(upload, send, record, home):
            return home, answer
        # Somewhere a different file has that name, and nobody asked to overwrite it.
        upload = replace(upload, name=unique_name(record.ref.name, digest))
        home, answer = await self._to_home(upload, send)
        if answer.ref is not None:
            await self._to_others(upload, send, FileRecord(answer.ref, digest, size), home)
        return home, answer

    async def _to_home(self, upload: Upload, send: Send) -> tuple[Backend, UploadAnswer]:
        """Send to the home backend; where it fails and another becomes home, to that one.

        An upload may be sent again on a doubt: the same file under the same name is kept once.
        """
        while True:
            home = self._fleet.home()
            try:
                async with self._slots:
                    return home, await send(home, upload)
            except UpstreamError as exc:
                self._fleet.note_failure(home, exc)
                if self._fleet.home() is not home:
                    continue
                if isinstance(exc, NotDelivered):
                    raise BackendUnavailable(f"Backend {home.id} cannot be reached", details=str(exc)) from exc
                raise UpstreamFailed(f"Backend {home.id} failed to take the file", details=str(exc)) from exc

    async def _is_taken(self, record: FileRecord, home: Backend) -> bool:
        """Whether others hold another file of ours by that name; home may just not have got it."""
        known = await self._index.file(record.ref)
        if known is None or known.digest == record.digest:
            return False
        copies = await self._index.copies(record.ref)
        return any(digest == known.digest and backend != home.id for backend, digest in copies.items())

    async def _to_others(self, upload: Upload, send: Send, record: FileRecord, home: Backend) -> bool:
        """Send to the other ready backends; return whether one of them had to choose another name."""
        await self._index.remember_file(record)
        await self._index.remember_copy(record.ref, home.id, record.digest)
        self._replicator.note_settled(home, record, record.ref)
        agreed = replace(upload, name=record.ref.name)
        transfers = [
            self._replicator.adopt(record, backend, partial(self._to_one, agreed, send, record, backend))
            for backend in self._fleet.ready()
            if backend is not home
        ]
        if not transfers:
            return False
        done, late = await asyncio.wait(transfers, timeout=self._wait_s)
        if late:
            log.info("upload of %s: %d backends need longer", record.ref.name, len(late))
        answers = [transfer.result() for transfer in done if not transfer.cancelled() and not transfer.exception()]
        return any(ref is not None and ref != record.ref for ref in answers)

    async def _to_one(self, upload: Upload, send: Send, record: FileRecord, backend: Backend) -> FileRef | None:
        upload.file.hold()
        try:
            # What is late with an older version of the file must not come after the newer one.
            async with self._turn((backend.id, record.ref)), self._slots:
                answer = await send(backend, upload)
        except UpstreamError as exc:
            self._fleet.note_failure(backend, exc)
            log.warning("upload of %s: %s is left out: %s", record.ref.name, backend.id, exc)
            return None
        finally:
            upload.file.release()
        if answer.ref == record.ref:
            await self._index.remember_copy(record.ref, backend.id, record.digest)
            self._replicator.note_settled(backend, record, record.ref)
        elif answer.ref is None:
            log.warning("upload of %s: %s refused it with status %d", record.ref.name, backend.id, answer.status)
        return answer.ref

    def _turn(self, key: Hashable) -> asyncio.Lock:
        return self._turns.setdefault(key, asyncio.Lock())


def unique_name(name: str, digest: str) -> str:
    """Return `up_1a2b3c4d.png`: the same for the same content, so that a repeated upload stays one file."""
    path = PurePosixPath(name)
    return f"{path.stem}_{digest[:8]}{path.suffix}"
