"""A lock that one process holds on a file, and that dies with the process."""

import contextlib
import errno
import os
import sys
from pathlib import Path

from comfyproxy.core.ports import StoreInUse, StoreUnavailable

# Windows forbids others to read what is locked; the pid at the beginning must stay readable.
_LOCKED_AT = 1024 * 1024


class FileLock:
    """Holds `<path>.lock`. The file stays when the lock goes: to remove it would race with the next holder."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    @classmethod
    def acquire(cls, path: Path) -> "FileLock":
        """Take the lock that goes with `path`.

        Raises StoreInUse if another process (or another store of this one) holds it, StoreUnavailable if the file
        system does not allow it.
        """
        lock_path = path.with_name(path.name + ".lock")
        try:
            handle = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as exc:
            raise StoreUnavailable(f"the store {path} cannot be locked: {exc}") from exc
        try:
            _lock(handle)
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, f"{os.getpid()}\n".encode())
        except OSError as exc:
            holder = _holder(handle)
            os.close(handle)
            if exc.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise StoreInUse(
                    f"the store {path} is in use by {holder}; stop it, or give this one another data directory"
                ) from exc
            raise StoreUnavailable(f"the store {path} cannot be locked: {exc}") from exc
        return cls(handle)

    def release(self) -> None:
        """Let go. Safe to call twice."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)  # nobody is told a pid that may be another program's by then
            os.close(self._handle)
            self._handle = None


def _holder(handle: int) -> str:
    with contextlib.suppress(OSError, ValueError):
        os.lseek(handle, 0, os.SEEK_SET)
        pid = int(os.read(handle, 32))
        return "this process (it has it open already)" if pid == os.getpid() else f"another process (pid {pid})"
    return "another process"


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, _LOCKED_AT, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        # Not lockf: its locks belong to the process, and a second store in it would be let in.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
