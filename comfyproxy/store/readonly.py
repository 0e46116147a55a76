"""Reads what has ended from a database that a running proxy may have open, and changes nothing."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from comfyproxy.core.jobs import Job
from comfyproxy.core.ports import StoreError
from comfyproxy.store.database import is_no_database, unavailable
from comfyproxy.store.rows import JOB_COLUMNS, to_job, unpack
from comfyproxy.store.schema import MIGRATIONS, check

# A reader keeps the write-ahead log from being begun anew: it must not take long at a time.
_PORTION: Final = 200


def settled_jobs(path: Path, *, busy_timeout_s: float = 5.0) -> Iterator[tuple[Job, bytes]]:
    """Yield the jobs that ended and their history entries, in the order in which they ended.

    Jobs without an entry (those that never ran) are left out. What ends meanwhile may be there or not.

    Raises StoreError, with what to do, if it is not ours or of another version; StoreUnavailable if it cannot be read.
    """
    path = path.resolve()
    if not path.is_file():
        raise StoreError(f"there is no store at {path}")
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=busy_timeout_s, isolation_level=None)
        ) as db:
            if (version := check(db, path)) < len(MIGRATIONS):
                raise StoreError(f"{path} is of an earlier version ({version}): start this comfyproxy on it once")
            columns = ", ".join(f"j.{column}" for column in JOB_COLUMNS)
            after = -1
            while True:
                rows = db.execute(
                    f"""SELECT j.settled, d.packed, d.entry, {columns}
                        FROM jobs j JOIN documents d ON d.settled = j.settled
                        WHERE j.settled > ? ORDER BY j.settled LIMIT ?""",
                    (after, _PORTION),
                ).fetchall()
                if not rows:
                    return
                after = rows[-1][0]
                for _, packed, entry, *job in rows:
                    yield to_job(tuple(job)), unpack(packed, entry)
    except sqlite3.Error as exc:
        if is_no_database(exc):
            raise StoreError(f"{path} is not a database") from exc
        raise unavailable(path, exc) from exc
