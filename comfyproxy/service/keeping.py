"""Copies of outputs, kept here so that they can be seen while the backend that made them is gone.

Bounded by size and age: the oldest go first. A copy's name is a digest, so that no name of a backend's can lead out of
the folder.
"""

import asyncio
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from comfyproxy.core import rawjson
from comfyproxy.core.errors import UpstreamError
from comfyproxy.core.files import FileRef
from comfyproxy.core.jobs import BackendId, Job
from comfyproxy.core.outputs import PREFIXED_TYPES, split_subfolder
from comfyproxy.service.file_ports import client_of
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.ports import Spawn

log = logging.getLogger(__name__)

AT_ONCE = 4
_PARTIAL = ".partial"


class Keeper:
    """The folder of kept outputs.

    Args:
        directory: None where nothing is kept.
        max_bytes: of all copies together.
        max_age_s: of each.
        wall_clock: seconds since the epoch, as the file system counts them.
    """

    def __init__(
        self,
        fleet: Fleet,
        spawn: Spawn,
        directory: Path | None,
        *,
        max_bytes: int,
        max_age_s: float,
        wall_clock: Callable[[], float],
    ) -> None:
        self._fleet, self._spawn, self._directory = fleet, spawn, directory
        self._max_bytes, self._max_age_s, self._wall_clock = max_bytes, max_age_s, wall_clock
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def open(self) -> None:
        """Make the folder, and remove what is too old or half written."""
        if self._directory is not None:
            await asyncio.to_thread(self._open, self._directory)

    def keep(self, job: Job, entry: bytes) -> None:
        """Copy the outputs of a job that has ended, in the background.

        Args:
            entry: its history entry as clients see it.
        """
        backend = self._fleet.get(job.backend)
        if self._directory is not None and backend is not None:
            self._spawn(self._keep_all(backend, entry, self._directory), name=f"copies of {job.prompt_id}")

    async def find(self, backend: BackendId, ref: FileRef) -> Path | None:
        """Return the copy of a backend's output, if there is one."""
        if self._directory is None:
            return None
        path = self._directory / _name(backend, ref)
        return path if await asyncio.to_thread(path.is_file) else None

    async def _keep_all(self, backend: Backend, entry: bytes, directory: Path) -> None:
        try:
            outputs = rawjson.decode(rawjson.members(entry).get("outputs", b"{}"))
        except (ValueError, RecursionError):
            return
        names = self._fleet.names if self._fleet.prefixes else frozenset[str]()
        for ref in set(_refs(outputs, names)):
            async with self._slots:
                try:
                    await self._keep(backend, ref, directory)
                except (UpstreamError, OSError) as exc:
                    log.warning("%s of %s could not be kept: %s", ref.name, backend.id, exc)
        await asyncio.to_thread(self._trim, directory)

    async def _keep(self, backend: Backend, ref: FileRef, directory: Path) -> None:
        path = directory / _name(backend.id, ref)
        handle, partial = await asyncio.to_thread(tempfile.mkstemp, suffix=_PARTIAL, dir=directory)
        try:
            with os.fdopen(handle, "wb") as file:
                async with client_of(backend).open_file(ref) as source:
                    async for chunk in source.chunks():
                        await asyncio.to_thread(file.write, chunk)
            await asyncio.to_thread(os.replace, partial, path)
        except BaseException:
            _remove(partial)
            raise

    def _open(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.glob(f"*{_PARTIAL}"):
            path.unlink(missing_ok=True)
        self._trim(directory)

    def _trim(self, directory: Path) -> None:
        """Remove the oldest copies until the rest fits, and all that are too old. Runs in a thread."""
        found = sorted(
            ((stat.st_mtime, stat.st_size, entry.path) for entry in os.scandir(directory) if (stat := _stat(entry))),
            reverse=True,
        )
        kept = 0
        oldest = self._wall_clock() - self._max_age_s
        for modified, size, path in found:
            kept += size
            if (kept > self._max_bytes or modified < oldest) and not path.endswith(_PARTIAL):
                _remove(path)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat() if entry.is_file() else None
    except FileNotFoundError:  # another one has just been replaced
        return None


def _name(backend: BackendId, ref: FileRef) -> str:
    digest = hashlib.sha256("\0".join((backend, ref.type, ref.subfolder, ref.name)).encode(errors="surrogatepass"))
    suffix = PurePosixPath(ref.name).suffix
    # The end tells what it is to whoever serves it; anything odd does without.
    return digest.hexdigest() + (suffix.lower() if suffix[1:].isascii() and suffix[1:].isalnum() else "")


def _refs(value: Any, names: frozenset[str]) -> Iterator[FileRef]:
    """Yield the output files that a history entry names, as their backend knows them."""
    if isinstance(value, list):
        for item in value:
            yield from _refs(item, names)
    elif isinstance(value, dict):
        name, subfolder, kind = value.get("filename"), value.get("subfolder"), value.get("type")
        if isinstance(name, str) and isinstance(subfolder, str) and isinstance(kind, str) and kind in PREFIXED_TYPES:
            yield FileRef(name, split_subfolder(subfolder, names)[1], kind)
        for item in value.values():
            yield from _refs(item, names)
