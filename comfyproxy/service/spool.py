"""Files on their way through the proxy: on the disk, never in memory."""

import asyncio
import hashlib
import io
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from comfyproxy.core.ports import StoreUnavailable

# Few hops to a thread per megabyte, and little memory per transfer.
BLOCK_BYTES = 512 * 1024
_SUFFIX = ".upload"


class Spooled:
    """A received file. It is removed when the last of its users lets go of it."""

    def __init__(self, path: Path, *, size: int, digest: str) -> None:
        self.path, self.size, self.digest = path, size, digest
        self._users = 1

    def hold(self) -> None:
        """Count one more user."""
        self._users += 1

    def release(self) -> None:
        """Count one user less."""
        self._users -= 1
        if self._users == 0:
            _remove(self.path)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Read the file from its beginning; as often as needed, at the same time, too."""
        with await asyncio.to_thread(self.path.open, "rb") as file:
            while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
                yield block


class Spool:
    """The folder of received files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> None:
        """Make the folder, and remove what a killed process left in it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in self._directory.glob(f"*{_SUFFIX}"):
            path.unlink(missing_ok=True)

    async def receive(self, chunks: AsyncIterator[bytes]) -> Spooled:
        """Write a file as it arrives; the caller lets go of it with `release`.

        Raises whatever `chunks` raises, and StoreUnavailable where the disk is full; nothing is left behind then.
        """
        handle, path = await asyncio.to_thread(self._create)
        digest = hashlib.sha256()
        try:
            size = 0
            with io.FileIO(handle, "wb") as file:
                waiting, waiting_bytes = [], 0
                async for chunk in chunks:
                    waiting.append(bytes(chunk))
                    waiting_bytes += len(chunk)
                    if waiting_bytes >= BLOCK_BYTES:
                        size += await asyncio.to_thread(_write, file, b"".join(waiting), digest)
                        waiting, waiting_bytes = [], 0
                size += await asyncio.to_thread(_write, file, b"".join(waiting), digest)
        except BaseException:
            _remove(path)
            raise
        return Spooled(path, size=size, digest=digest.hexdigest())

    def _create(self) -> tuple[int, Path]:
        try:
            handle, name = tempfile.mkstemp(suffix=_SUFFIX, dir=self._directory)
        except OSError as exc:
            raise StoreUnavailable(f"an upload cannot be written to {self._directory}: {exc}") from exc
        return handle, Path(name)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _write(file: io.FileIO, block: bytes, digest: "hashlib._Hash") -> int:
    """Write and hash a block off the event loop: hashing a gigabyte takes seconds."""
    view = memoryview(block)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as exc:
        raise StoreUnavailable(f"an upload cannot be written to {file.name}: {exc}") from exc
    digest.update(block)
    return len(block)
