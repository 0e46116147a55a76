"""Copies of a file from one backend to another: made when needed, once, and as streams.

A backend's own word (HEAD /view) is the truth about what it has; the index of files says what it should be.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from comfyproxy.core.errors import NotDelivered, UpstreamError
from comfyproxy.core.files import FileRecord, FileRef, FileStamp
from comfyproxy.core.outputs import join_name
from comfyproxy.core.ports import FileIndex
from comfyproxy.service.file_ports import OpenFile, client_of
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.flights import Flights
from comfyproxy.service.recent import Recent

log = logging.getLogger(__name__)

ASKED_AT_ONCE = 16  # backends that are asked for one file
MISSING_FOR_S = 10.0  # how long "nobody has it" holds
COPIES_FOLDER = "comfyproxy"


class SourceFailed(Exception):
    """The backend that a file is read from failed in mid-copy; the target is not to blame."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file on a backend, as it is now."""

    backend: Backend
    ref: FileRef
    stamp: FileStamp


class Replicator:
    """Finds files on backends and copies them to others."""

    def __init__(self, fleet: Fleet, index: FileIndex, *, now: Callable[[], float]) -> None:
        self._fleet = fleet
        self._index = index
        self._now = now
        self._copies: Flights[FileRef | None] = Flights("copy of")
        # All keys hold the backend's epoch: one that was away may have come back with empty folders.
        self._present: Recent[bool] = Recent()
        self._settled: Recent[FileRef] = Recent()
        self._missing: Recent[float] = Recent()

    async def close(self) -> None:
        """Stop the copies under way."""
        await self._copies.close()

    def note_present(self, backend: Backend, ref: FileRef) -> None:
        """Remember that a backend has just taken a file."""
        self._present.put((backend.id, backend.epoch, ref), True)
        self._missing.drop(ref)

    def note_settled(self, backend: Backend, record: FileRecord, actual: FileRef) -> None:
        """Remember under which name a backend has just taken a known file."""
        self._settled.put((backend.id, backend.epoch, record.ref, record.digest), actual)
        self.note_present(backend, actual)

    async def has(self, backend: Backend, ref: FileRef) -> bool:
        """Ask a backend whether it has a file; a yes holds until the backend was away. Raises UpstreamError."""
        if self._present.get((backend.id, backend.epoch, ref)):
            return True
        return await self._stat(backend, ref) is not None

    async def locate(self, ref: FileRef, *, skip: Backend | None) -> Source | None:
        """Find a ready backend that has a file: those first that should, then all, in configured order."""
        if (self._missing.get(ref) or float("-inf")) > self._now():
            return None
        copies = await self._index.copies(ref)
        others = [backend for backend in self._fleet.ready() if backend is not skip]
        others.sort(key=lambda backend: backend.id not in copies)
        for batch in _batches(others, ASKED_AT_ONCE):
            for source in await asyncio.gather(*(self.source(backend, ref) for backend in batch)):
                if source is not None:
                    return source
        self._missing.put(ref, self._now() + MISSING_FOR_S)
        return None

    async def source(self, backend: Backend, ref: FileRef) -> Source | None:
        """Return the file as a backend has it; None if it has not, or cannot be asked."""
        try:
            stamp = await self._stat(backend, ref)
        except UpstreamError as exc:
            log.info("cannot ask %s for %s: %s", backend.id, _path(ref), exc)
            return None
        return Source(backend, ref, stamp) if stamp is not None else None

    async def bring_known(self, record: FileRecord, target: Backend) -> FileRef | None:
        """Make a file of the index present on `target`.

        Returns its name there, which differs from the record's where a stranger's file has that name; None if no
        backend that is up has it. Raises NotDelivered if the target fails.
        """
        key = (target.id, target.epoch, record.ref, record.digest)
        if (actual := self._settled.get(key)) is not None:
            return actual
        return await self._copies.run(key, lambda: self._bring_known(record, target))

    async def bring_output(self, backend: Backend, ref: FileRef, target: Backend) -> FileRef | None:
        """Copy an output of one backend into the input folder of another, again if it has changed since.

        Returns its name there; None if it is not to be had. Raises NotDelivered if the target fails.
        """
        folder = "/".join((COPIES_FOLDER, backend.id, ref.type))
        dest = FileRef(ref.name, join_name(folder, ref.subfolder.replace("\\", "/")).rstrip("/"), "input")
        try:
            stamp = await self._stat(backend, ref)
        except UpstreamError as exc:
            log.info("%s cannot be asked for %s: %s", backend.id, _path(ref), exc)
            return await self._earlier_copy(dest, target)
        if stamp is None:
            return None
        source = Source(backend, ref, stamp)
        record = FileRecord(dest, _token(source), source.stamp.size)
        key = (target.id, target.epoch, dest, record.digest)
        if (actual := self._settled.get(key)) is not None:
            return actual
        return await self._copies.run(key, lambda: self._bring_output(source, record, target))

    async def bring_found(self, source: Source, target: Backend) -> FileRef | None:
        """Copy a file that the index does not know to another backend, under its own name if that is free."""
        key = (target.id, target.epoch, source.ref, _token(source))
        if (actual := self._settled.get(key)) is not None:
            return actual

        async def bring() -> FileRef | None:
            actual = await self._try_copy(source, target, source.ref, overwrite=False)
            if actual is not None:
                self._settled.put(key, actual)
            return actual

        return await self._copies.run(key, bring)

    def adopt(
        self, record: FileRecord, target: Backend, work: Callable[[], Coroutine[Any, Any, FileRef | None]]
    ) -> asyncio.Task[FileRef | None]:
        """Begin a transfer of the caller's own to `target`; a job that needs the file there waits for it."""
        return self._copies.start((target.id, target.epoch, record.ref, record.digest), work)

    async def _bring_known(self, record: FileRecord, target: Backend) -> FileRef | None:
        copies = await self._index.copies(record.ref)
        mine = copies.get(target.id)
        if mine == record.digest and await self._is_same(target, record):
            self.note_settled(target, record, record.ref)
            return record.ref
        holders = [self._fleet.get(holder) for holder, digest in copies.items() if digest == record.digest]
        for holder in sorted((h for h in holders if h is not None and h is not target), key=lambda h: not h.is_ready):
            source = await self.source(holder, record.ref)
            if source is None or not _fits(source.stamp, record):
                continue
            # What it has under this name came from us, so an older version may be replaced; a stranger's may not.
            actual = await self._try_copy(source, target, record.ref, overwrite=mine is not None)
            if actual is not None:
                await self._note_copy(target, record, actual)
                return actual
        return None

    async def _bring_output(self, source: Source, record: FileRecord, target: Backend) -> FileRef | None:
        copies = await self._index.copies(record.ref)
        if copies.get(target.id) == record.digest and await self._is_same(target, record):
            self.note_settled(target, record, record.ref)
            return record.ref
        # The folder is ours alone, so what is there is an older version of the same file.
        actual = await self._try_copy(source, target, record.ref, overwrite=True)
        if actual is not None:
            await self._note_copy(target, record, actual)
        return actual

    async def _earlier_copy(self, dest: FileRef, target: Backend) -> FileRef | None:
        """Return the copy made before its source went away: better than none."""
        copies = await self._index.copies(dest)
        return dest if target.id in copies and await self._stat_target(target, dest) is not None else None

    async def _note_copy(self, target: Backend, record: FileRecord, actual: FileRef) -> None:
        if actual == record.ref:
            await self._index.remember_copy(record.ref, target.id, record.digest)
        self.note_settled(target, record, actual)

    async def _is_same(self, target: Backend, record: FileRecord) -> bool:
        stamp = await self._stat_target(target, record.ref)
        return stamp is not None and _fits(stamp, record)

    async def _try_copy(self, source: Source, target: Backend, dest: FileRef, *, overwrite: bool) -> FileRef | None:
        """Copy; None if the source failed or the target refused. Raises NotDelivered if the target failed."""
        try:
            actual = await self._copy(source, target, dest, overwrite=overwrite)
        except SourceFailed as exc:
            log.warning("%s could not be copied from %s: %s", _path(source.ref), source.backend.id, exc)
            return None
        except UpstreamError as exc:
            self._fleet.note_failure(target, exc)
            raise NotDelivered(f"{target.id}: {_path(dest)} could not be copied there: {exc}") from exc
        if actual is not None:
            log.info("copied %s from %s to %s as %s", _path(source.ref), source.backend.id, target.id, _path(actual))
            self.note_present(target, actual)
        return actual

    async def _copy(self, source: Source, target: Backend, dest: FileRef, *, overwrite: bool) -> FileRef | None:
        failure: UpstreamError | None = None
        try:
            async with client_of(source.backend).open_file(source.ref) as file:
                reader = _Reader(file)
                try:
                    answer = await client_of(target).upload(
                        reader.chunks(),
                        name=dest.name,
                        type=dest.type,
                        subfolder=dest.subfolder,
                        overwrite=overwrite,
                        content_type=file.headers.get("Content-Type", "application/octet-stream"),
                    )
                except UpstreamError as exc:
                    failure = exc
        except UpstreamError as exc:
            self._fleet.note_failure(source.backend, exc)
            raise SourceFailed(str(exc)) from exc
        if failure is not None and reader.failed:
            raise SourceFailed(str(failure)) from failure
        if failure is not None:
            raise failure
        if answer.ref is None:
            log.warning("%s refused a copy of %s: status %d", target.id, _path(dest), answer.status)
        return answer.ref

    async def _stat_target(self, target: Backend, ref: FileRef) -> FileStamp | None:
        try:
            return await self._stat(target, ref)
        except UpstreamError as exc:
            raise NotDelivered(f"{target.id}: cannot be asked for {_path(ref)}: {exc}") from exc

    async def _stat(self, backend: Backend, ref: FileRef) -> FileStamp | None:
        try:
            stamp = await client_of(backend).stat_file(ref)
        except UpstreamError as exc:
            self._fleet.note_failure(backend, exc)
            raise
        if stamp is not None:
            self.note_present(backend, ref)
        return stamp


class _Reader:
    """Passes chunks on and remembers that it was the reading that failed."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self.failed = False

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._file.chunks():
                yield chunk
        except Exception:
            self.failed = True
            raise


def _token(source: Source) -> str:
    """Stand in for a digest where nobody has read the file: it changes when the file does."""
    return f"stamp:{source.stamp.etag or ''}:{source.stamp.size}"


def _fits(stamp: FileStamp, record: FileRecord) -> bool:
    return stamp.size is None or record.size is None or stamp.size == record.size


def _path(ref: FileRef) -> str:
    return f"{join_name(ref.subfolder, ref.name)} [{ref.type}]"


def _batches(items: Iterable[Backend], size: int) -> Iterable[Sequence[Backend]]:
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch
