"""Connections to the database file, and what their errors mean to people."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from comfyproxy.core.ports import StoreUnavailable

Synchronous = Literal["full", "normal"]

# The log is cut back to this after a checkpoint: one settled giant must not keep its size on the disk.
_LOG_BYTES: Final = 64 * 1024 * 1024

_MEANING: Final = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk failed, is full or is over its quota",
    sqlite3.SQLITE_BUSY: "another program has it locked",
    sqlite3.SQLITE_LOCKED: "another program has it locked",
    sqlite3.SQLITE_READONLY: "it cannot be written",
    sqlite3.SQLITE_PERM: "it cannot be written",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore a backup, or move it away to begin anew",
    sqlite3.SQLITE_NOTADB: "it is not a database; move it away, or choose another path",
}


def connect(path: Path, *, synchronous: Synchronous, busy_timeout_s: float) -> sqlite3.Connection:
    """Open an existing database for the calling thread; transactions are begun and ended by hand.

    Args:
        path: absolute.
        busy_timeout_s: how long a statement waits while another program has the file locked.

    Raises sqlite3.Error.
    """
    # `mode=rw`: a file that somebody removed must not come back empty.
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=busy_timeout_s, isolation_level=None, cached_statements=256
    )
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        connection.execute("PRAGMA temp_store = memory")  # a sort must not fail for want of a folder
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is written inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_busy(error: BaseException) -> bool:
    """Whether somebody else holds a lock: it passes by itself, and waiting again at once is in vain."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_no_database(error: BaseException) -> bool:
    """Whether the file is something else than a database."""
    return _code(error) == sqlite3.SQLITE_NOTADB


def unavailable(path: Path, error: sqlite3.Error | OSError) -> StoreUnavailable:
    """Return what to raise for an error of the database or the disk."""
    name = getattr(error, "sqlite_errorname", None)
    meaning = _MEANING.get(_code(error))
    said = f"{error} ({name})" if name else str(error)
    raised = StoreUnavailable(f"the store {path} failed: {said if meaning is None else f'{meaning}: {said}'}")
    raised.__cause__ = error
    return raised


def _code(error: BaseException) -> int:
    """Return SQLite's primary result code; 0 for errors that are not its own."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return 0 if code is None else code & 0xFF
