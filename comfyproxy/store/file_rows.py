"""What the store says to the database about files, about counters and about small values of the proxy's own."""

from sqlite3 import Connection
from typing import Final

from comfyproxy.core.files import FileRecord, FileRef
from comfyproxy.core.jobs import BackendId
from comfyproxy.store.rows import from_text, text

# Files that were mentioned last are known; to count them every time would cost more than to keep a few too many.
_TRIM_EVERY: Final = 1000

_IS: Final = "name = ? AND subfolder = ? AND type = ?"
_NEXT: Final = "(SELECT coalesce(max(touched), 0) + 1 FROM files)"


def remember_file(db: Connection, record: FileRecord, max_files: int) -> None:
    """Keep a record in the place of an earlier one."""
    db.execute(
        f"""INSERT INTO files (name, subfolder, type, digest, size, touched) VALUES (?, ?, ?, ?, ?, {_NEXT})
            ON CONFLICT (name, subfolder, type)
            DO UPDATE SET digest = excluded.digest, size = excluded.size, touched = excluded.touched""",
        (*_key(record.ref), text(record.digest), record.size),
    )
    _trim_sometimes(db, max_files)


def remember_copy(db: Connection, ref: FileRef, backend: BackendId, digest: str, max_files: int) -> None:
    """Keep what a backend has under a name."""
    db.execute(
        f"""INSERT INTO files (name, subfolder, type, touched) VALUES (?, ?, ?, {_NEXT})
            ON CONFLICT (name, subfolder, type) DO UPDATE SET touched = excluded.touched""",
        _key(ref),
    )
    db.execute(
        f"""INSERT INTO copies SELECT id, ?, ? FROM files WHERE {_IS}
            ON CONFLICT (file, backend) DO UPDATE SET digest = excluded.digest""",
        (text(backend), text(digest), *_key(ref)),
    )
    _trim_sometimes(db, max_files)


def file(db: Connection, ref: FileRef) -> FileRecord | None:
    """Return what a file should hold."""
    row = db.execute(f"SELECT digest, size FROM files WHERE {_IS} AND digest IS NOT NULL", _key(ref)).fetchone()
    return None if row is None else FileRecord(ref, from_text(row[0]), row[1])


def copies(db: Connection, ref: FileRef) -> dict[BackendId, str]:
    """Return what each backend has under a name."""
    rows = db.execute(
        f"SELECT backend, copies.digest FROM files JOIN copies ON copies.file = files.id WHERE {_IS}", _key(ref)
    )
    return {BackendId(from_text(backend)): from_text(digest) for backend, digest in rows}


def trim_files(db: Connection, max_files: int) -> None:
    """Forget the files that were not mentioned for longest, with their copies."""
    newest_too_old = db.execute(
        "SELECT touched FROM files ORDER BY touched DESC LIMIT 1 OFFSET ?", (max_files,)
    ).fetchone()
    if newest_too_old is not None:
        db.execute("DELETE FROM copies WHERE file IN (SELECT id FROM files WHERE touched <= ?)", newest_too_old)
        db.execute("DELETE FROM files WHERE touched <= ?", newest_too_old)


def meta(db: Connection, key: str) -> str | None:
    """Return a value of the proxy's own."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (text(key),)).fetchone()
    return None if row is None else from_text(row[0])


def set_meta(db: Connection, key: str, value: str) -> None:
    """Keep a value of the proxy's own."""
    db.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (text(key), text(value)),
    )


def counter(db: Connection, name: str) -> int:
    """Return a counter; it starts with 0."""
    row = db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return 0 if row is None else row[0]


def set_counter(db: Connection, name: str, value: int) -> None:
    """Write a counter."""
    db.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
    )


def _key(ref: FileRef) -> tuple[str | bytes | None, ...]:
    return text(ref.name), text(ref.subfolder), text(ref.type)


def _trim_sometimes(db: Connection, max_files: int) -> None:
    if db.execute("SELECT max(touched) FROM files").fetchone()[0] % _TRIM_EVERY == 0:
        trim_files(db, max_files)
