"""Reads what has ended from a database that a running proxy may have open, and changes nothing."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from comfyproxy.core.jobs import Job
from comfyproxy.core.ports import StoreError
from comfyproxy.store.database import is_no_database, unavailable
from comfyproxy.store.rows import JOB_COLUMNS, Row, to_job, unpack
from comfyproxy.store.schema import MIGRATIONS, check

# A reader keeps the write-ahead log from being begun anew: it must not take long at a time.
_PORTION: Final = 200
_COLUMNS: Final = ", ".join(f"j.{column}" for column in JOB_COLUMNS)


def settled_jobs(path: Path, *, busy_timeout_s: float = 5.0) -> Iterator[tuple[Job, bytes]]:
    """Yield the jobs that ended and their history entries, in the order in which they ended.

    Jobs without an entry (those that never ran) are left out. What ends meanwhile may be there or not.

    Raises StoreError, with what to do, if it is not ours or of another version; StoreUnavailable if it cannot be read.
    """
    path = path.resolve()
    if not path.is_file():
        raise StoreError(f"there is no store at {path}")
    # Where nobody has it open there is no log, and SQLite would make one, which the proxy's user may not be able to
    # write; it does not if it is told that the file will not change.
    journal = path.with_name(f"{path.name}-wal")
    is_closed = not journal.exists()
    mode = "mode=ro&immutable=1" if is_closed else "mode=ro"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=busy_timeout_s, isolation_level=None)
        ) as db:
            if (version := check(db, path)) < len(MIGRATIONS):
                raise StoreError(f"{path} is of an earlier version ({version}): start this comfyproxy on it once")
            after = -1
            while rows := _portion(db, after):
                if is_closed and journal.exists():
                    raise StoreError(f"a proxy has opened {path} in the meantime: try again")
                after = rows[-1][0]
                for _, packed, entry, *job in rows:
                    yield to_job(tuple(job)), unpack(packed, entry)
    except sqlite3.Error as exc:
        if is_no_database(exc):
            raise StoreError(f"{path} is not a database") from exc
        raise unavailable(path, exc) from exc


def _portion(db: sqlite3.Connection, after: int) -> list[Row]:
    """Return (settled, packed, entry, *JOB_COLUMNS) of the next jobs."""
    return db.execute(
        f"""SELECT j.settled, d.packed, d.entry, {_COLUMNS} FROM jobs j JOIN documents d ON d.settled = j.settled
            WHERE j.settled > ? ORDER BY j.settled LIMIT ?""",
        (after, _PORTION),
    ).fetchall()
