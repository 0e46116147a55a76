"""The tables, and how a database of an earlier version becomes one of this."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from comfyproxy.core.ports import StoreError
from comfyproxy.store.database import transaction

APPLICATION_ID: Final = 0x43504F58  # "CPOX": tells our databases from those of other programs

# Each step is the statements that lead from the version before to the next. Never change a step that was released.
MIGRATIONS: Final[Sequence[Sequence[str]]] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
        # id: the order in which they came. number: NULL stands for NaN, which SQLite cannot hold.
        # settled: the order in which they ended; NULL before.
        """CREATE TABLE jobs (
            id INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL UNIQUE, number REAL, client_id TEXT,
            fingerprint TEXT NOT NULL, created_s REAL NOT NULL, state TEXT NOT NULL, backend TEXT,
            backend_prompt_id TEXT, attempts INTEGER NOT NULL, node_errors BLOB NOT NULL,
            outputs_to_execute TEXT NOT NULL, workflow_id TEXT, started_s REAL, finished_s REAL, error TEXT,
            pinned TEXT, settled INTEGER
        )""",
        "CREATE INDEX jobs_unfinished ON jobs (number, id) WHERE settled IS NULL",
        "CREATE UNIQUE INDEX jobs_settled ON jobs (settled) WHERE settled IS NOT NULL",
        """CREATE TABLE payloads (
            job INTEGER PRIMARY KEY, graph BLOB NOT NULL, extra_data BLOB NOT NULL, rest BLOB NOT NULL
        )""",
        # One row for each job that ended with an entry. Small rows: to skip thousands must not read their entries.
        """CREATE TABLE history (
            settled INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL, status TEXT NOT NULL, workflow_id TEXT,
            created_ms INTEGER NOT NULL, duration_ms INTEGER NOT NULL
        )""",
        "CREATE INDEX history_by_created ON history (created_ms, settled, status, workflow_id)",
        "CREATE INDEX history_by_duration ON history (duration_ms, settled, status, workflow_id)",
        "CREATE INDEX history_by_workflow ON history (workflow_id, status) WHERE workflow_id IS NOT NULL",
        # The item comes first: to read it then does not touch the pages of the entry.
        """CREATE TABLE documents (
            settled INTEGER PRIMARY KEY, item BLOB NOT NULL, packed INTEGER NOT NULL, entry BLOB NOT NULL
        )""",
        # digest: NULL where only copies are known. touched: grows with every mention; the least are forgotten first.
        """CREATE TABLE files (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL, subfolder TEXT NOT NULL, type TEXT NOT NULL, digest TEXT,
            size INTEGER, touched INTEGER NOT NULL, UNIQUE (name, subfolder, type)
        )""",
        "CREATE UNIQUE INDEX files_touched ON files (touched)",
        """CREATE TABLE copies (
            file INTEGER NOT NULL, backend TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (file, backend)
        ) WITHOUT ROWID""",
    ),
)


def check(connection: sqlite3.Connection, path: Path, *, newest: int = len(MIGRATIONS)) -> int:
    """Return the version of a database, 0 for an empty one; nothing is changed.

    Raises StoreError if it is not ours or newer than we are, sqlite3.Error if it cannot be read.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise StoreError(f"{path} is the database of another program; choose another path")
    if version > newest:
        raise StoreError(
            f"{path} was written by a newer comfyproxy (version {version} of its tables; this one knows {newest}): "
            "install that release again, or move the file away to begin anew"
        )
    return int(version)


def migrate(connection: sqlite3.Connection, path: Path, *, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> int:
    """Bring a database to the newest version, all steps or none, and return the version that it had.

    Raises StoreError and sqlite3.Error as `check` does; the database is as it was then.
    """
    with transaction(connection):
        version = check(connection, path, newest=len(migrations))
        for step in migrations[version:]:
            for statement in step:
                connection.execute(statement)
        if version < len(migrations):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(migrations)}")
    return version
